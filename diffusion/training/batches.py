"""Which samples form which batch: a pure function of seed and epoch, so that a run resumes at the very next batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 32  # batches are sorted by length inside windows of this many: little padding, order still random


@dataclass
class EpochBatches:
    """Endless batches of sample indices; each epoch holds every sample once, in batches of similar length.

    `lengths` [N] in positions. `position` counts the batches given out so far; set it to resume.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int
    position: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def epoch(self) -> float:
        """Epochs given out so far."""
        return self.position / self.per_epoch

    def of_epoch(self, epoch: int) -> list[np.ndarray]:
        """All batches of one epoch, in their order."""
        rng = np.random.default_rng([self.seed, epoch])
        order, lengths = rng.permutation(len(self.lengths)), np.asarray(self.lengths)
        # Samples of a smaller batch weigh more in the mean over it: they are drawn before lengths are looked at.
        smaller, order = np.split(order, [len(order) % self.batch_size])
        batches = [smaller] if len(smaller) else []
        for start in range(0, len(order), WINDOW * self.batch_size):
            window = order[start : start + WINDOW * self.batch_size]
            window = window[np.argsort(lengths[window], kind="stable")]
            batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            epoch, done = divmod(self.position, self.per_epoch)
            for batch in self.of_epoch(epoch)[done:]:
                self.position += 1
                yield batch
