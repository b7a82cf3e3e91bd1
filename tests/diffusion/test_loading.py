"""Batches made ahead: the same ones in the same order, no more of them than asked for, errors where they are used."""

import threading
from itertools import count, islice

import pytest

from diffusion.training.loading import made_ahead


@pytest.mark.parametrize("depth", [0, 1, 3, 10])
def test_all_items_come_made_and_in_order(depth):
    assert list(made_ahead(range(7), lambda i: i * i, depth)) == [i * i for i in range(7)]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_more_are_taken_than_the_depth_says(depth):
    taken = []
    endless = made_ahead((taken.append(i) or i for i in count()), lambda i: i, depth)
    for used in range(1, 6):
        next(endless)
        assert len(taken) == used + depth


def test_they_are_made_by_another_thread_while_the_first_is_used():
    made, main = threading.Event(), threading.get_ident()

    def make(i: int) -> int:
        assert threading.get_ident() != main
        if i == 2:
            made.set()
        return i

    ahead = made_ahead(range(3), make, 2)
    assert next(ahead) == 0
    assert made.wait(timeout=10)  # nobody has asked for item 2


def test_what_making_raises_is_raised_where_the_item_is_used():
    def make(i: int) -> int:
        if i == 2:
            raise OSError("disk")
        return i

    ahead = made_ahead(count(), make, 2)
    assert list(islice(ahead, 2)) == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(ahead)


def test_leaving_off_ends_the_thread():
    ahead = made_ahead(count(), lambda i: i, 2)
    next(ahead)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("made_ahead")]
