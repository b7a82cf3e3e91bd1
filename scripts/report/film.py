"""The film strip: texts of a run at chosen noise levels on their way from noise to sentence.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scripts.composition.build import System, load_system
from scripts.composition.options import Options
from scripts.evaluation.evaluation import VALID_SEED
from scripts.sampling.sampling import Given, sample

FRAMES = 9


@dataclass(frozen=True)
class Frame:
    """A text on its way: how far it has come, in words, and what it says there."""

    place: str
    text: str


def film_strips(run_dir: Path, count: int) -> list[list[Frame]]:
    """The frames of `count` texts of a run, those of sampling seed 42; a user error where models are not at hand."""
    system, _ = load_system(Options.from_argv(["--gen_data", "--resume_dir", str(run_dir)]))
    sources = system.sources(system.corpus.test, VALID_SEED)
    if sources is not None:
        sources = sources[:count]
        count = len(sources)
    kept: list[list[tuple[int, int, Tensor]]] = [[] for _ in range(count)]

    def watch(i: int, n: int, rows: Sequence[int], x: Tensor) -> None:
        if i in _chosen(n):
            for row, own in zip(rows, x, strict=True):
                kept[row].append((i, n, own))

    strategies = system.space.strategies[:1]
    made = sample(system, count, VALID_SEED, strategies=strategies, given=Given(sources), watch=watch)
    before = [0] * count if sources is None else [len(ids) for ids in system.space.encode_sources(sources)]
    return [
        [*(_frame(system, i, n, x[skipped:], length) for i, n, x in frames if i < n), Frame("text", text)]
        for frames, skipped, length, text in zip(kept, before, made.lengths, made.first, strict=True)
    ]


def _chosen(steps: int) -> set[int]:
    """The steps to be shown, from the first to the last."""
    return {round(1 + k * (steps - 1) / (FRAMES - 1)) for k in range(FRAMES)}


def _frame(system: System, i: int, n: int, x: Tensor, length: int) -> Frame:
    """What x [L] or [L, D] is after step i of n, in words."""
    if system.method.on_tokens:
        text = system.space.codec.show([each for each in x.tolist() if each >= 0])  # ar has written none behind
    else:
        shown = torch.arange(len(x), device=x.device) < length
        (text,) = system.space.decode(x[None], shown[None], system.space.strategies[0], [0])
    if n == len(system.times) - 1 and not system.method.causal:
        return Frame(f"t = {system.times[i]:.2f}", text)
    return Frame(f"{i} of {n}", text)  # one token a step, without a grid of times
