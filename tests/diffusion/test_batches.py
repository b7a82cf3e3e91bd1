"""EpochBatches: every sample once an epoch with the same expected weight, little padding, resumable anywhere."""

from itertools import islice

import numpy as np
import pytest

from diffusion.training.batches import EpochBatches


def lengths(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 65, count)


def take(batches: EpochBatches, count: int) -> list[list[int]]:
    return [batch.tolist() for batch in islice(iter(batches), count)]


@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 16), (96, 16), (7, 16), (16, 16), (17, 16), (40, 1)])
def test_every_epoch_holds_every_sample_once_in_the_announced_number_of_batches(samples, batch_size):
    batches = EpochBatches(lengths(samples), batch_size, seed=3)
    assert batches.per_epoch == -(-samples // batch_size)
    given = take(batches, 3 * batches.per_epoch)
    for epoch in range(3):
        own = given[epoch * batches.per_epoch : (epoch + 1) * batches.per_epoch]
        assert sorted(i for batch in own for i in batch) == list(range(samples))
        assert sorted(map(len, own))[1:] == [batch_size] * (batches.per_epoch - 1)  # all full but one
    assert batches.epoch == 3


@pytest.mark.parametrize("position", [1, 5, 6, 7, 20])  # 7 batches an epoch
def test_a_new_iterator_at_a_position_goes_on_with_the_very_next_batch(position):
    uninterrupted = take(EpochBatches(lengths(100), 16, seed=1), 30)
    resumed = EpochBatches(lengths(100), 16, seed=1, position=position)
    assert take(resumed, 30 - position) == uninterrupted[position:]
    assert resumed.position == 30


def test_position_counts_the_batches_given_out():
    batches = EpochBatches(lengths(100), 16, seed=1)
    iterator = iter(batches)
    for count in range(1, 20):
        next(iterator)
        assert batches.position == count
        assert batches.epoch == pytest.approx(count / 7)


def test_epochs_and_seeds_differ_and_the_same_seed_repeats():
    one, again, other = (EpochBatches(lengths(100), 16, seed) for seed in (1, 1, 2))
    first = take(one, 14)
    assert first == take(again, 14)
    assert first != take(other, 14)
    assert first[:7] != first[7:]


def test_batches_hold_texts_of_similar_length_in_random_order():
    own = lengths(2000)
    batches = [own[batch] for batch in EpochBatches(own, 16, seed=0).of_epoch(0)]
    padded = sum(len(batch) * batch.max() for batch in batches) / own.sum()
    assert padded < 1.1  # batches of random texts: about 1.7
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # short and long batches alternate


@pytest.mark.parametrize(("samples", "batch_size"), [(100, 16), (530, 16)])
def test_the_expected_weight_of_a_sample_does_not_depend_on_its_length(samples, batch_size):
    """A step averages over its batch, so samples of the one small batch weigh more: they must be drawn blindly."""
    own, epochs = lengths(samples), 400
    batches, weight = EpochBatches(own, batch_size, seed=0), np.zeros(samples)
    for epoch in range(epochs):
        for batch in batches.of_epoch(epoch):
            weight[batch] += 1 / len(batch)
    expected = batches.per_epoch * epochs / samples
    by_length = weight[np.argsort(own)] / expected
    for part in np.array_split(by_length, 10):
        assert part.mean() == pytest.approx(1, abs=0.1)
    assert by_length[-4:].mean() == pytest.approx(1, abs=0.25)
