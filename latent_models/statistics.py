"""What a run remembers of its training latents: mean and scale to normalise with, and how long texts are.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latent_models.lengths import LengthModel, load_tensors

EPSILON = 1e-5
CHUNK = 65_536  # rows of states read at a time, so that no split is ever held in memory


@dataclass(frozen=True)
class LatentStatistics:
    """mean [D] and scale ([] or [D]) of the valid training states, and the lengths of the training texts."""

    mean: Tensor
    scale: Tensor
    lengths: LengthModel

    @classmethod
    def fit(
        cls, states: np.ndarray, lengths: np.ndarray, latent_scale: Literal["scalar", "dimension", "none"] = "scalar"
    ) -> LatentStatistics:
        """From all states [tokens, D] of the training split and the length of each text.

        `scalar`: one population standard deviation around the mean, pooled over dimensions; `dimension`: one for
        each dimension; `none`: mean 0 and scale 1, latents stay as they are.
        """
        width = states.shape[1]
        length_model = LengthModel.fit(lengths, int(lengths.max()))
        if latent_scale == "none":
            return cls(torch.zeros(width), torch.tensor(1.0 - EPSILON), length_model)
        chunks = [slice(i, i + CHUNK) for i in range(0, len(states), CHUNK)]
        mean = sum(states[c].sum(0, dtype=np.float64) for c in chunks) / len(states)
        squares = sum(((states[c] - mean) ** 2).sum(0, dtype=np.float64) for c in chunks) / len(states)
        scale = np.sqrt(squares if latent_scale == "dimension" else squares.mean())
        return cls(torch.from_numpy(mean).float(), torch.as_tensor(scale).float(), length_model)

    def normalise(self, states: Tensor) -> Tensor:
        """Encoder states [..., D] -> x0 of about zero mean and unit variance."""
        return (states - self.mean.to(states)) / (self.scale.to(states) + EPSILON)

    def unnormalise(self, x0: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return x0 * (self.scale.to(x0) + EPSILON) + self.mean.to(x0)

    def save(self, path: Path) -> None:
        save_file({"mean": self.mean, "scale": self.scale, "length_counts": self.lengths.counts}, path)

    @classmethod
    def load(cls, path: Path) -> LatentStatistics:
        """Raises ModelError where the file is missing or damaged."""
        mean, scale, length_counts = load_tensors(path, "mean", "scale", "length_counts")
        return cls(mean, scale, LengthModel(length_counts))
