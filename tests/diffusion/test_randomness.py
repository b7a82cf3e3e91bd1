"""One generator per sample: a sample must not depend on its batch partners, on padding, or on global random state."""

import pytest
import torch
from scipy import stats

from diffusion import randomness
from diffusion.randomness import SampleGenerators, normal, sample_seeds, stratified, uniform


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_same_alone_in_a_batch_and_under_more_padding(draw, dtype):
    seeds, lengths = sample_seeds(42, 0, 4), [3, 16, 1, 7]
    batch = draw((4, 16, 5), SampleGenerators(seeds, lengths), dtype=dtype)
    wider = draw((4, 29, 5), SampleGenerators(seeds, lengths), dtype=dtype)
    backwards = draw((4, 16, 5), SampleGenerators(seeds[::-1], lengths[::-1]), dtype=dtype).flip(0)
    assert torch.equal(batch, wider[:, :16]) and torch.equal(batch, backwards)
    for i in range(4):
        alone = draw((1, 20, 5), SampleGenerators([seeds[i]], [lengths[i]]), dtype=dtype)
        assert torch.equal(alone[0, :16], batch[i])
        assert (batch[i, lengths[i] :] == 0).all() and (batch[i, : lengths[i]] != 0).all()


def test_later_draws_continue_each_samples_own_stream():
    seeds = [5, 6]
    together = SampleGenerators(seeds, [2, 9])
    first, second = normal((2, 9, 3), together), normal((2, 12, 3), together)
    alone = SampleGenerators(seeds[1:], [9])
    assert torch.equal(normal((1, 9, 3), alone)[0], first[1])
    assert torch.equal(normal((1, 9, 3), alone)[0], second[1, :9])
    assert not torch.equal(first[1], second[1, :9])


@pytest.mark.parametrize("lengths", [None, [3, 0, 40, 7, 1]])
@pytest.mark.parametrize(("draw", "of_torch"), [(normal, torch.randn), (uniform, torch.rand)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_however_many_threads_draw_the_numbers_are_each_generators_own(
    monkeypatch, threads, dtype, draw, of_torch, lengths
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(randomness, "IN_THREADS", 0)
    seeds = sample_seeds(1, 0, 5)
    ours, theirs = SampleGenerators(seeds, lengths), [torch.Generator().manual_seed(seed) for seed in seeds]
    for shape in ((5, 40, 6), (5, 40), (5, 41, 3)):
        x = draw(shape, ours, "cpu", dtype)
        for i, (row, generator) in enumerate(zip(x, theirs, strict=True)):
            own = shape[1] if lengths is None else lengths[i]
            assert torch.equal(row[:own], of_torch(own, *shape[2:], generator=generator, dtype=dtype))
            assert (row[own:] == 0).all()


def test_without_lengths_rows_are_whole_and_one_axis_is_one_number_per_sample():
    seeds = [1, 2, 3]
    x = normal((3, 4, 2), SampleGenerators(seeds))
    assert (x != 0).all()
    assert torch.equal(x[2:], normal((1, 4, 2), SampleGenerators([3])))
    u = uniform((3,), SampleGenerators(seeds, [1, 2, 3]), dtype=torch.float64)
    assert u.shape == (3,) and len(set(u.tolist())) == 3


@pytest.mark.parametrize(("draw", "mean", "std"), [(normal, 0, 1), (uniform, 0.5, 12**-0.5)])
def test_moments(draw, mean, std):
    for generator in (torch.Generator().manual_seed(0), SampleGenerators(sample_seeds(0, 0, 100))):
        x = draw((100, 50, 20), generator)
        assert x.mean().item() == pytest.approx(mean, abs=0.01) and x.std().item() == pytest.approx(std, rel=0.01)


def test_neighbouring_samples_are_uncorrelated():
    x = normal((2000, 100), SampleGenerators(sample_seeds(7, 0, 2000)))
    assert (x[1:] * x[:-1]).mean().abs().item() < 5 / (2000 * 100) ** 0.5


def test_plain_generator_is_torchs_own_draw_and_global_state_is_untouched():
    before = torch.get_rng_state()
    x = normal((2, 3), torch.Generator().manual_seed(9), dtype=torch.float64)
    assert torch.equal(x, torch.randn(2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    normal((1, 3), SampleGenerators([9]))
    assert torch.equal(before, torch.get_rng_state())


def test_misuse_is_refused():
    with pytest.raises(TypeError, match="Generator"):
        normal((2, 3), None)
    with pytest.raises(ValueError, match="axis 0"):
        normal((3, 4), SampleGenerators([1, 2]))
    with pytest.raises(ValueError, match="length 5"):
        normal((2, 4), SampleGenerators([1, 2], [5, 1]))
    with pytest.raises(ValueError, match="one length per seed"):
        SampleGenerators([1, 2], [5])


def test_sample_seeds_are_stable_distinct_and_independent_of_batching():
    seeds = sample_seeds(42, 0, 50_000)
    assert seeds[10:30] == sample_seeds(42, 10, 15) + sample_seeds(42, 25, 5)
    assert len(set(seeds)) == 50_000 and not set(seeds) & set(sample_seeds(43, 0, 50_000))
    assert seeds[:2] == [3444837047, 3444837048]  # written down: samples of an old run must stay reproducible
    # Only the low 32 bits of a seed reach torch's CPU generator, so seeds must be distinct there.
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_some_samples_go_on_as_they_would_have_among_all():
    alone, together = (SampleGenerators(sample_seeds(3, 0, 5)) for _ in range(2))
    for generators in (alone, together):
        uniform((5, 2), generators)
    everyone = normal((5, 4, 3), together)
    assert torch.equal(normal((2, 4, 3), alone.of([4, 1])), everyone[[4, 1]])
    shorter = alone.of([0], lengths=[2])
    assert torch.equal(normal((1, 4, 3), shorter)[0, 2:], torch.zeros(2, 3))


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_stratified_draws_are_one_from_each_bin_and_each_by_itself_is_uniform(count):
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(0)
    draws = torch.stack([stratified(count, generator) for _ in range(500)])
    assert draws.dtype == torch.float64 and draws.shape == (500, count) and torch.equal(state, torch.get_rng_state())
    assert ((draws * count).long().sort(1).values == torch.arange(count)).all()
    for i in {0, count // 2, count - 1}:  # whatever stands beside it: the order is random
        assert stats.kstest(draws[:, i].numpy(), "uniform").pvalue > 1e-3
    means = draws.mean(1)  # of independent draws the variance would be 1 / (12 count)
    assert means.var().item() == pytest.approx(1 / (12 * count**3), rel=0.25)
