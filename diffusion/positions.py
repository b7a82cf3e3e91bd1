"""Some positions of a batch, each taken as a text of one position, so that a network's head is asked about these alone.

A process of tokens treats positions apart once the network has spoken: its formulas hold for n texts of one position as
for B texts of L. Legend: B batch, L positions, n of the B L positions chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.randomness import DrawsAt, Randomness


@dataclass(frozen=True)
class Positions:
    """Chosen positions of a batch of `shape` [B, L], by their `index` [n] in the batch laid out flat."""

    shape: torch.Size
    index: Tensor

    @classmethod
    def where(cls, chosen: Tensor) -> Positions:
        """Those where `chosen` [B, L] holds. A GPU is waited for here, to learn n, and nowhere else."""
        return cls(chosen.shape, chosen.flatten().nonzero().squeeze(1))

    def of(self, x: Tensor) -> Tensor:
        """What x [B, L, ...] holds there, [n, 1, ...]."""
        return x.flatten(0, 1).index_select(0, self.index).unsqueeze(1)

    def times(self, t: Tensor) -> Tensor:
        """What t [B] says of the text that each stands in, [n]."""
        return t[self.index // self.shape[1]]

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """x [B, L] with values [n, 1] there."""
        return x.flatten().index_copy(0, self.index, values.squeeze(1)).view(self.shape)

    def spread(self, values: Tensor) -> Tensor:
        """Values [n, 1] there and 0 elsewhere, [B, L]."""
        return self.put(values.new_zeros(self.shape), values)

    def draws(self, generator: Randomness) -> DrawsAt:
        """The randomness that they have among all, drawn for all."""
        return DrawsAt(generator, self.shape, self.index)
