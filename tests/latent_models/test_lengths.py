"""How long texts are: what a length costs, which lengths are drawn, and the file that keeps them."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from latent_models.codec import ModelError
from latent_models.lengths import LengthModel


def test_counts_reach_to_the_longest_possible_length():
    fitted = LengthModel.fit(np.array([2, 2, 3]), max_length=5)
    assert fitted.counts.tolist() == [0, 0, 2, 1, 0, 0]
    assert fitted.max_length == 5
    assert fitted.mean == pytest.approx(7 / 3)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6]])
def test_impossible_training_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="not all in 1 to 5"):
        LengthModel.fit(np.array(lengths), max_length=5)


def test_a_length_costs_the_nats_of_its_smoothed_share():
    """Counts 0, 2, 1, 0, 0 with one more each: shares of 8."""
    found = LengthModel.fit(np.array([2, 2, 3]), max_length=5).nll(torch.tensor([1, 2, 3, 4, 5]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.log(8 / n) for n in (1, 3, 2, 1, 1)], abs=1e-12)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1))))
def test_probabilities_are_positive_and_sum_to_one(drawn):
    max_length, lengths = drawn
    nll = LengthModel.fit(np.array(lengths), max_length).nll(torch.arange(1, max_length + 1))
    assert nll.isfinite().all()
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("length", [-1, 0, 6])
def test_a_length_without_probability_is_refused(length):
    with pytest.raises(ValueError, match="not all in 1 to 5"):
        LengthModel.fit(np.array([2, 3]), max_length=5).nll(torch.tensor([2, length]))


def test_longer_texts_may_occur_and_are_never_drawn():
    fitted = LengthModel.fit(np.array([2, 2, 3]), max_length=3)
    wider = fitted.up_to(5)
    assert wider.counts.tolist() == LengthModel.fit(np.array([2, 2, 3]), max_length=5).counts.tolist()
    u = torch.linspace(0, 1 - 1e-12, 1001, dtype=torch.float64)
    assert torch.equal(wider.lengths_at(u), fitted.lengths_at(u))
    assert torch.equal(wider.up_to(2).counts, wider.counts)


def test_drawn_lengths_follow_the_training_lengths():
    counts = {2: 100, 5: 40, 6: 0, 9: 60}
    fitted = LengthModel.fit(np.repeat(list(counts), list(counts.values())), max_length=12)
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.bincount(fitted.lengths_at(u), minlength=13) / len(u)
    for length, share in enumerate(drawn.tolist()):
        wanted = counts.get(length, 0) / 200
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / len(u)) ** 0.5 + 1e-12


@pytest.mark.parametrize("max_length", [30, 64])
def test_no_draw_gives_a_length_that_no_text_has(max_length):
    """The ends of [0, 1) and both sides of every step of the cumulated shares."""
    fitted = LengthModel.fit(np.array([3] * 1 + [4] * 2 + [7] * 3 + [30] * 1), max_length)
    steps = torch.tensor([0, 1 / 7, 3 / 7, 6 / 7, 1], dtype=torch.float64)
    u = torch.cat([steps, torch.nextafter(steps, torch.zeros_like(steps)), torch.nextafter(steps, 2 * steps)])
    drawn = fitted.lengths_at(u[u < 1])
    assert set(drawn.tolist()) == {3, 4, 7, 30}
    assert fitted.lengths_at(torch.tensor([0.0])).tolist() == [3]
    assert fitted.lengths_at(torch.tensor([1.0]).double().nextafter(torch.zeros(1).double())).tolist() == [30]


def test_counts_survive_the_disk(tmp_path):
    fitted, path = LengthModel.fit(np.array([2, 2, 3]), max_length=5), tmp_path / "lengths.safetensors"
    fitted.save(path)
    assert list(load_file(path)) == ["length_counts"]
    assert torch.equal(LengthModel.load(path).counts, fitted.counts)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:30]),
    "other content": lambda path: save_file({"weights": torch.zeros(2)}, path),
    "more content": lambda path: save_file({"length_counts": torch.ones(2), "weights": torch.zeros(2)}, path),
    "negative counts": lambda path: save_file({"length_counts": torch.tensor([3, -1])}, path),
    "nothing counted": lambda path: save_file({"length_counts": torch.zeros(3, dtype=torch.int64)}, path),
    "other numbers": lambda path: save_file({"length_counts": torch.ones(3)}, path),
    "a table": lambda path: save_file({"length_counts": torch.ones(3, 3, dtype=torch.int64)}, path),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(tmp_path, kind):
    path = tmp_path / "lengths.safetensors"
    LengthModel.fit(np.array([2, 3]), max_length=5).save(path)
    DAMAGE[kind](path)
    with pytest.raises(ModelError, match=re.escape(str(path)) + ".*; expected ") as error:
        LengthModel.load(path)
    assert len(str(error.value).splitlines()) == 1
