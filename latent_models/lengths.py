"""How long texts are: lengths to sample with, and the nats that a text's length costs.

B batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from latent_models.claim import to_disk
from latent_models.codec import ModelError, first_line


def load_tensors(path: Path, *names: str) -> list[Tensor]:
    """The tensors of a safetensors file that holds just these; raises ModelError."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read ({first_line(error)}); expected the file that training writes"
        ) from error
    if tensors.keys() != set(names):
        holds, wanted = ", ".join(sorted(tensors)), ", ".join(names)
        raise ModelError(f"{path}: holds {holds}; expected {wanted}: restore the file that training writes")
    return [tensors[name] for name in names]


def load_counts(path: Path, name: str) -> Tensor:
    """The one tensor of a safetensors file, counts [n] of which some are above 0; raises ModelError."""
    (counts,) = load_tensors(path, name)
    check_counts(path, counts)
    return counts


def check_counts(path: Path, counts: Tensor) -> None:
    """Raises ModelError unless these are whole numbers [n] from 0, some above it."""
    if counts.dtype != torch.int64 or counts.dim() != 1 or (counts < 0).any() or not (counts > 0).any():
        raise ModelError(f"{path}: holds no counts; expected what training writes, whole numbers from 0: restore it")


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes a small safetensors file, whole or not at all; OSError names it."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(save(tensors, about))
        to_disk(beside)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        error.filename = str(path)
        raise


@dataclass(frozen=True)
class LengthModel:
    """counts [n]: training texts of 0, 1, ... n - 1 positions, n - 1 being the longest that a text can be."""

    counts: Tensor

    @classmethod
    def fit(cls, lengths: np.ndarray, max_length: int) -> LengthModel:
        """From the length of each training text; ValueError where one is not in 1 ... max_length."""
        if lengths.min() < 1 or lengths.max() > max_length:
            raise ValueError(f"lengths {lengths.min()} to {lengths.max()} are not all in 1 to {max_length}")
        return cls(torch.from_numpy(np.bincount(lengths, minlength=max_length + 1)))

    @property
    def max_length(self) -> int:
        """The longest length that `nll` knows."""
        return len(self.counts) - 1

    @property
    def mean(self) -> float:
        """The mean length of the training texts."""
        return (self.counts.double() @ torch.arange(len(self.counts)).double() / self.counts.sum()).item()

    def up_to(self, limit: int) -> LengthModel:
        """The same, where texts of up to `limit` positions occur: `nll` knows these, sampling is as before."""
        return LengthModel(pad(self.counts, (0, max(0, limit - self.max_length))))

    def lengths_at(self, u: Tensor) -> Tensor:
        """Lengths [B] at the quantiles u [B] in [0, 1) of the training lengths; u uniform draws from them."""
        cumulated = self.counts.double().cumsum(0) / self.counts.sum()
        return torch.searchsorted(cumulated, u.double().contiguous(), right=True).clamp(max=self.max_length)

    def nll(self, lengths: Tensor) -> Tensor:
        """-log p(length) [B] in nats, float64, one added to each count, so that p sums to 1 over 1 ... max_length.

        ValueError for a length outside of that.
        """
        if ((lengths < 1) | (lengths > self.max_length)).any():
            raise ValueError(f"lengths {lengths.tolist()} are not all in 1 to {self.max_length}")
        smoothed = self.counts[1:].double() + 1
        return (smoothed.sum() / smoothed[lengths.to(smoothed.device) - 1]).log()

    def save(self, path: Path) -> None:
        save_tensors(path, {"length_counts": self.counts})

    @classmethod
    def load(cls, path: Path) -> LengthModel:
        """Raises ModelError where the file is missing or damaged."""
        return cls(load_counts(path, "length_counts"))
