"""Batches made ready by a thread while the device works on those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Made = TypeVar("Item"), TypeVar("Made")


def made_ahead(items: Iterable[Item], make: Callable[[Item], Made], depth: int) -> Iterator[Made]:
    """make(item) of each item in order, up to `depth` of them before they are asked for; raises what `make` raises."""
    with ThreadPoolExecutor(1, "made_ahead") as worker:
        waiting = deque()
        for item in items:
            waiting.append(worker.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
