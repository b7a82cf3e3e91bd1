"""What a run remembers of its training latents: mean and scale to normalise with, and how long texts are.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from latent_models.codec import ModelError
from latent_models.lengths import LengthModel, check_counts, load_tensors, save_tensors

EPSILON = 1e-5


@dataclass(frozen=True)
class LatentStatistics:
    """mean [D] and scale ([] or [D]) of the valid training states, and the lengths of the training texts.

    `codec`: identity and name of what made the states, empty where that is not known.
    """

    mean: Tensor
    scale: Tensor
    lengths: LengthModel
    codec: str = ""

    @classmethod
    def fit(
        cls,
        pieces: Iterable[Tensor],
        lengths: np.ndarray,
        latent_scale: Literal["scalar", "dimension", "none"] = "scalar",
    ) -> LatentStatistics:
        """From all states of the training split, some [n, D] at a time, and the length of each text.

        `scalar`: one population standard deviation around the mean, pooled over dimensions; `dimension`: one for
        each dimension; `none`: mean 0 and scale 1, latents stay as they are.
        """
        length_model = LengthModel.fit(lengths, int(lengths.max()))
        if latent_scale == "none":
            width = next(iter(pieces)).shape[1]
            return cls(torch.zeros(width), torch.tensor(1.0 - EPSILON), length_model)
        seen, mean, squares = 0, 0.0, 0.0  # Chan, Golub, LeVeque 1983: one pass, as exact as two
        for piece in pieces:
            rows, before = piece.double(), seen
            own = rows.mean(0)
            shift, seen = own - mean, before + len(rows)
            squares = squares + (rows - own).square_().sum(0) + shift**2 * (before * len(rows) / seen)
            mean = mean + shift * (len(rows) / seen)
        scale = (squares / seen if latent_scale == "dimension" else squares.mean() / seen).sqrt()
        return cls(mean.float(), scale.float(), length_model)

    def normalise(self, states: Tensor) -> Tensor:
        """Encoder states [..., D] -> x0 of about zero mean and unit variance."""
        return (states - self.mean.to(states)) / (self.scale.to(states) + EPSILON)

    def unnormalise(self, x0: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return x0 * (self.scale.to(x0) + EPSILON) + self.mean.to(x0)

    def is_near(self, other: LatentStatistics) -> bool:
        """Whether what one normalises is normalised by the other too, within a tenth of its spread."""
        scale, theirs = self.scale + EPSILON, other.scale + EPSILON
        shift = (self.mean - other.mean) / theirs
        return bool((shift.abs() <= 0.1).all() and ((scale / theirs - 1).abs() <= 0.1).all())

    def save(self, path: Path) -> None:
        tensors = {"mean": self.mean, "scale": self.scale, "length_counts": self.lengths.counts}
        save_tensors(path, tensors, {"codec": self.codec})

    @classmethod
    def load(cls, path: Path) -> LatentStatistics:
        """Raises ModelError where the file is missing or damaged."""
        mean, scale, length_counts = load_tensors(path, "mean", "scale", "length_counts")
        check_counts(path, length_counts)
        numbers = all(each.is_floating_point() and each.isfinite().all() for each in (mean, scale))
        if not numbers or mean.dim() != 1 or scale.shape not in ((), mean.shape) or (scale < 0).any():
            raise ModelError(f"{path}: holds no mean [D] and scale; expected what training writes: restore it")
        with safe_open(path, "pt") as file:
            return cls(mean, scale, LengthModel(length_counts), (file.metadata() or {}).get("codec", ""))
