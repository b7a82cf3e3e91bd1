"""Work shared out over the processes of `accelerate launch` or srun; one process alone is the usual case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, distributed

from diffusion.training.progress import progress_bar

Item, Made = TypeVar("Item"), TypeVar("Made")

PATIENCE = timedelta(days=1)  # that processes wait for each other: one may encode or score while the others wait


def join() -> None:
    """Meets the other processes, where the environment says that there are any, and takes a device of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def rank_and_count() -> tuple[int, int]:
    """Which process this is, of how many."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank_and_count()[0] == 0


def shared_out(items: Sequence[Item], work: Callable[[Item], Made]) -> list[Made]:
    """work(item) of all items in their order, each made by one process and then known to all."""
    rank, count = rank_and_count()
    made = [work(item) for item in items[rank::count]]
    if count == 1:
        return made
    by_rank = [None] * count
    distributed.all_gather_object(by_rank, made)
    return [by_rank[i % count][i // count] for i in range(len(items))]


def told_by_main(work: Callable[[], Made]) -> Made:
    """What work() finds on the main process alone, known to all; an error there is raised by all."""

    def attempt(_: None) -> tuple[Made | None, Exception | None]:
        try:
            return work(), None
        except Exception as error:
            return None, error

    ((found, error),) = shared_out([None], attempt)
    if error is not None:
        raise error
    return found


def shared_groups(
    title: str, lengths: np.ndarray, size: int, work: Callable[[Tensor], Made]
) -> list[tuple[Tensor, Made]]:
    """Texts in groups of `size` that are alike in length: the indices of each, and what work(indices) makes of them.

    Shared out over the processes, with a bar of that title.
    """
    groups = torch.tensor(lengths).argsort(stable=True).split(size)
    with progress_bar(None, title, total=len(groups), disable=not is_main()) as bar:

        def one(group: Tensor) -> Made:
            made = work(group)
            bar.update()
            return made

        return list(zip(groups, shared_out(groups, one), strict=True))


@contextmanager
def main_first() -> Iterator[None]:
    """The others do what is within after the main process, and find what that has left on disk."""
    rank, count = rank_and_count()
    if rank > 0:
        distributed.barrier()
    yield
    if rank == 0 and count > 1:
        distributed.barrier()
