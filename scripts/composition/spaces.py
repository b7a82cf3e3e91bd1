"""The space that a method works in, latents or tokens: from the texts of a corpus to batches of x0, and back.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from diffusion.training.files import faults, sums
from diffusion.training.trainer import TrainingData
from latent_models.corpora import Corpus
from latent_models.lengths import LengthModel
from scripts.fetching.checksums import read_record, write_record
from scripts.job.errors import UsageError

RECORD = "space.json"  # size and SHA-256 of the files of a space


class Space(Protocol):
    """What trainer, sampler and evaluation need to know of the data of a method."""

    strategies: tuple[str, ...]  # ways to write x0 as text, all of which an evaluation takes
    files: tuple[str, ...]  # what `save` writes into a run folder
    lengths: LengthModel
    limit: int  # longest text in positions
    fingerprint: str  # equal ones read and write x0 alike

    def data(self, corpus: Corpus, name: str, labels: np.ndarray | None) -> TrainingData:
        """A split of the corpus, encoded."""

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """The shape of x0."""

    def piece(self, text: str, *, first: bool = False, last: bool = False) -> Tensor:
        """The tokens [n] of words to be clamped somewhere; `first`, `last`: they begin or end the whole text."""

    def among(self, ids: Tensor, start: int, length: int) -> Tensor:
        """x0 [n] or [n, D] of such tokens where they stand from `start` on in a text of `length` positions."""

    def decode(self, x0: Tensor, shown: Tensor, strategy: str, seeds: Sequence[int]) -> list[str]:
        """The texts of the `shown` [B, L] positions."""

    def save(self, run_dir: Path) -> None:
        """Writes what `load` needs into the run folder."""


def save_space(space: Space, run_dir: Path) -> None:
    """Writes what `load` needs, and a record by which it is told from what is damaged."""
    space.save(run_dir)
    paths = [path for name in space.files for path in (run_dir / name, *(run_dir / name).rglob("*")) if path.is_file()]
    write_record(run_dir / RECORD, {"files": sums(run_dir, (path.relative_to(run_dir).as_posix() for path in paths))})


def check_files(run_dir: Path) -> None:
    """Raises UsageError where what `save_space` wrote is not as it was; runs from before it have no record."""
    record = read_record(run_dir / RECORD)
    if record is not None and (found := faults(run_dir, record["files"])):
        raise UsageError(f"{found[0]}; restore the folder of the run")
