"""Random numbers from explicit generators: one generator for a batch, or one per sample.

All draws are made on the generator's own device and then moved, so the same seed gives the same numbers whether the
model sits on a CPU or a GPU. Nothing here reads or changes torch's global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IN_THREADS = 2**18  # numbers from which a draw is shared out among threads: fewer take about as long as starting them


class SampleGenerators:
    """One CPU generator per sample, so that sample i depends on seed i (and its own length), not on its batch partners.

    With `lengths` the second axis of every draw counts positions, and row i gets numbers for its own first lengths[i]
    positions only, zeros after: the batch may then be padded to any L without changing the sample.
    """

    def __init__(self, seeds: Sequence[int], lengths: Iterable[int] | None = None):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.lengths = None if lengths is None else [int(length) for length in lengths]
        if self.lengths is not None and len(self.lengths) != len(self.generators):
            raise ValueError(f"{len(self.generators)} seeds but {len(self.lengths)} lengths: give one length per seed")

    def __len__(self) -> int:
        return len(self.generators)

    def of(self, samples: Sequence[int], lengths: Iterable[int] | None = None) -> SampleGenerators:
        """The generators of some samples, going on where they are, for a batch of just these."""
        chosen = SampleGenerators([])
        chosen.generators = [self.generators[i] for i in samples]
        chosen.lengths = None if lengths is None else [int(length) for length in lengths]
        return chosen

    def draw(self, random: Callable[..., Tensor], shape: Sequence[int], device: Any, dtype: torch.dtype) -> Tensor:
        """A tensor of `shape` with row i = random(row shape) from generator i; ValueError if the shape misfits.

        Nothing waits for a GPU: the numbers are made on the CPU while it computes, and copied when it comes to them.
        """
        if len(shape) == 0 or shape[0] != len(self):
            raise ValueError(f"{len(self)} sample generators cannot fill shape {tuple(shape)}: axis 0 must agree")
        by_length = self.lengths is not None and len(shape) > 1
        if by_length and max(self.lengths, default=0) > shape[1]:
            raise ValueError(f"a sample of length {max(self.lengths)} does not fit shape {tuple(shape)}")
        on_gpu = device is not None and torch.device(device).type == "cuda"
        batch = torch.zeros(tuple(shape), dtype=dtype, pin_memory=on_gpu)

        def fill(rows: range) -> None:
            for i in rows:
                # Exactly the sample's own rows: what torch draws on a CPU depends on how many numbers are asked for.
                own = batch[i, : self.lengths[i]] if by_length else batch[i]
                random(own.shape, generator=self.generators[i], dtype=dtype, out=own)

        threads = min(torch.get_num_threads(), len(self))
        if threads < 2 or batch.numel() < IN_THREADS:
            fill(range(len(self)))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, (range(first, len(self), threads) for first in range(threads))))
        return batch.to(device, non_blocking=on_gpu)


@dataclass(frozen=True)
class DrawsAt:
    """The numbers that draws for a batch of `shape` [B, L] have at some positions, by their flat `index` [n]: [n, 1].

    All B L are drawn, so that no position's numbers depend on which others are chosen.
    """

    generator: Randomness
    shape: Sequence[int]
    index: Tensor

    def draw(self, random: Callable[..., Tensor], shape: Sequence[int], device: Any, dtype: torch.dtype) -> Tensor:
        """A tensor of `shape`, which must be [n, 1]."""
        every = _draw(random, self.shape, self.generator, self.index.device, dtype)
        return every.flatten()[self.index].view(shape).to(device)


@dataclass(frozen=True)
class RowsOf:
    """The numbers that draws for a batch of `count` have in some of its rows: those of a process that has no others."""

    generator: torch.Generator
    rows: slice
    count: int

    def draw(self, random: Callable[..., Tensor], shape: Sequence[int], device: Any, dtype: torch.dtype) -> Tensor:
        """A tensor of `shape`, whose axis 0 counts the rows."""
        return _draw(random, (self.count, *shape[1:]), self.generator, None, dtype)[self.rows].to(device)


Randomness = torch.Generator | SampleGenerators | DrawsAt | RowsOf


def normal(
    shape: Sequence[int],
    generator: Randomness,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, 1) draws of `shape`, made on the generator's device and moved to `device`; TypeError without a generator."""
    return _draw(torch.randn, shape, generator, device, dtype)


def uniform(
    shape: Sequence[int],
    generator: Randomness,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws of `shape` from [0, 1), as `normal`; float64 resolves 2^-53, float32 only 2^-24 (0 itself does occur)."""
    return _draw(torch.rand, shape, generator, device, dtype)


def stratified(count: int, generator: torch.Generator | RowsOf, device: torch.device | str | None = None) -> Tensor:
    """`count` draws in [0, 1) float64, one in each of as many equal bins, in random order: their mean varies little.

    The order is random because neighbours in a batch are alike (batches are sorted by length): each draw by itself
    is then uniform whatever stands beside it.
    """
    if isinstance(generator, RowsOf):
        return stratified(generator.count, generator.generator, device)[generator.rows]
    bins = torch.randperm(count, generator=generator, device=generator.device)
    return ((bins + uniform((count,), generator, dtype=torch.float64)) / count).to(device)


def systematic(count: int, draws: int, generator: Randomness, device: torch.device | str | None = None) -> list[Tensor]:
    """`draws` times u [count] in [0, 1) float64, those of a row 1 / draws apart: one random offset each."""
    offset = uniform((count,), generator, device, torch.float64)
    return [(offset + k / draws) % 1 for k in range(draws)]


def _draw(random: Callable[..., Tensor], shape, generator, device, dtype) -> Tensor:
    if isinstance(generator, SampleGenerators | DrawsAt | RowsOf):
        return generator.draw(random, shape, device, dtype)
    if not isinstance(generator, torch.Generator):  # torch would take None for its global state
        raise TypeError(f"randomness needs a torch.Generator or SampleGenerators, got {type(generator).__name__}")
    return random(tuple(shape), generator=generator, device=generator.device, dtype=dtype).to(device)


def sample_seeds(seed: int, start: int, count: int) -> list[int]:
    """Seeds of samples start .. start+count-1 of the run `seed`: sample i has the same one however a run is batched."""
    # torch's CPU generator uses only the low 32 bits of a seed. Counting up from a hashed start keeps the seeds of a
    # run distinct, where independent hashes would give about one pair of identical samples per 100,000.
    first = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    return [(first + i) % 2**32 for i in range(start, start + count)]
