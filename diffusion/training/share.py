"""The rows of a batch that one of several processes works on, so that all of them do what one alone would.

Noise is drawn for the whole batch by every process, from generators that go on alike, and belongs to the rows.
B rows of the whole batch, b of the share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.randomness import Randomness, RowsOf
from diffusion.training.objective import Batch


@dataclass(frozen=True)
class Share:
    """Some `rows` of a batch of `whole` texts; by default all of it.

    `weight`: mean losses of the processes, each times its weight, have the mean loss of the whole batch as their mean.
    """

    batch: Batch
    rows: slice | None = None
    whole: int | None = None
    weight: float = 1.0

    @classmethod
    def of(cls, batch: Batch, rank: int, count: int) -> Share:
        """Every count-th row; where none is left, the last one at weight 0, as every process takes part in a step."""
        if count == 1:
            return cls(batch)
        B = len(batch.x0)
        rows = slice(rank, None, count) if rank < B else slice(B - 1, B)
        own = batch.each(lambda part: part[rows].contiguous())
        weight = count * len(own.x0) / B if rank < B else 0.0
        return cls(own, rows, B, weight)

    def each(self, move: Callable[[Tensor], Tensor]) -> Share:
        """The share with `move` done to every tensor of its batch."""
        return Share(self.batch.each(move), self.rows, self.whole, self.weight)

    def randomness(self, *generators: torch.Generator) -> list[Randomness]:
        """What the rows have of the numbers that the generators give the whole batch."""
        if self.rows is None:
            return list(generators)
        return [RowsOf(generator, self.rows, self.whole) for generator in generators]

    def mean(self, loss: Tensor) -> Tensor:
        """The weighted mean of a loss [b]."""
        return loss.mean() if self.rows is None else loss.mean() * self.weight
