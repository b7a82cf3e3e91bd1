"""Samples that are finished early: which, with what, and what that saves.

B batch, L positions, D latent width.
"""

import math

import pytest
import torch

from diffusion.denoiser import LatentDenoiser
from diffusion.early_stop import EarlyStop
from diffusion.guidance import Clamped, Prediction
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.samplers import SAMPLERS
from diffusion.schedules import time_grid

B, L, D, S = 4, 6, 3, 20
TIMES = time_grid(1000, S)
ALL = torch.ones(B, L, dtype=torch.bool)
MORE_SIGNAL_FROM = 11  # the index of the first time of this grid with alpha_bar > 1/2, under the cosine schedule


class Scripted:
    """Predicts [rows, S, L, D] as written down, by row and step, and keeps which rows it was asked about."""

    def __init__(self, script: torch.Tensor):
        self.script, self.left, self.asked, self.step = script, torch.arange(len(script)), [], 0

    def __call__(self, xt, t):
        assert len(xt) == len(t) == len(self.left) > 0
        self.asked.append(self.left.tolist())
        self.step = round(S * (1 - t[0].item()))
        return self.script[self.left, self.step]

    def rows(self, index):
        self.left = self.left[index]
        return self


def moving_until(*steps: int, by: float = 1.0) -> torch.Tensor:
    """A script in which row i goes on by `by` at each step up to steps[i], and rests from then on."""
    path = by * torch.arange(S).clamp(max=torch.tensor(steps)[:, None])
    return path[:, :, None, None].expand(-1, -1, L, D).clone()


def walk(gaussian, script, tolerance, made=ALL, sampler="ddim", start=None, generator=None):
    p, predict_x0 = gaussian(), Scripted(script)
    start = torch.zeros(len(script), L, D) if start is None else start
    generator = generator or torch.Generator().manual_seed(0)
    stop = EarlyStop(p, predict_x0, made[: len(script)], tolerance)
    return SAMPLERS[sampler](p, stop, start, TIMES, generator=generator), predict_x0.asked


# Which samples, and when


def test_the_time_from_which_samples_may_be_finished(gaussian):
    bar = gaussian().alpha_bar(torch.tensor(TIMES))
    assert (bar > 0.5).int().argmax() == MORE_SIGNAL_FROM


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_that_rests_is_finished_with_its_estimate(gaussian, sampler):
    script = moving_until(12, 15, 18, 19)
    x, asked = walk(gaussian, script, 0.5, sampler=sampler)
    assert torch.equal(x, script[:, -1])
    late = sampler == "churn"  # asks at the time of the step before
    assert [sum(i in rows for rows in asked) for i in range(B)] == [14 + late, 17 + late, 20, 20]  # one to see it rest
    assert len(asked) == S


def test_what_the_network_would_have_said_later_is_not_heard(gaussian):
    script = moving_until(12, 19)
    script[0, 14:] = 99.0
    x, _ = walk(gaussian, script, 0.5)
    assert torch.equal(x[0], script[0, 13]) and torch.equal(x[1], script[1, -1])


def test_when_all_are_finished_the_network_is_not_asked(gaussian):
    x, asked = walk(gaussian, moving_until(11, 13), 0.5)
    assert [len(rows) for rows in asked] == [2] * 13 + [1] * 2
    assert (x[0] == 11).all() and (x[1] == 13).all()


def test_an_estimate_that_rests_under_more_noise_than_signal_has_only_seen_nothing(gaussian):
    script = moving_until(0)
    script[:, MORE_SIGNAL_FROM + 2 :] = 5.0  # would be missed
    script[:, MORE_SIGNAL_FROM - 1] = 1.0
    script[:, MORE_SIGNAL_FROM] = 2.0
    script[:, MORE_SIGNAL_FROM + 1] = 3.0
    x, asked = walk(gaussian, script, 0.5)
    assert len(asked) == MORE_SIGNAL_FROM + 4 and (x == 5).all()


@pytest.mark.parametrize(("by", "is_early"), [(0.99, True), (1.01, False)])
def test_the_tolerance_is_of_the_root_mean_square(gaussian, by, is_early):
    signs = torch.tensor([1.0, -1.0, 2.0, 0.0, 0.5, -2.5])[:, None].expand(L, D)  # of root mean square 1.429
    assert signs.square().mean().sqrt().item() == pytest.approx(1.4434, abs=1e-4)
    script = by / 1.4434 * signs * torch.arange(S)[:, None, None]
    _, asked = walk(gaussian, script[None], 1.0)
    assert (len(asked) < S) == is_early


def test_positions_that_are_not_made_do_not_count(gaussian, randn):
    made = torch.arange(L) < torch.tensor([3, 6])[:, None]
    script = moving_until(12, 12)
    script[:, :, 3:] += 9.0 * torch.arange(S)[:, None, None]
    _, asked = walk(gaussian, script, 0.5, made)
    assert [sum(i in rows for rows in asked) for i in range(2)] == [14, S]


def test_what_is_not_a_number_is_never_finished(gaussian):
    _, asked = walk(gaussian, torch.full((1, S, L, D), math.nan), 0.5)
    assert len(asked) == S


# With a network


@pytest.fixture
def denoiser(tiny):
    return tiny(LatentDenoiser, D, self_condition=True)


LENGTHS = torch.tensor([3, 6, 4, 5])


def sample(p, denoiser, rows, tolerance, sampler="ddim", length=L):
    """Samples of some seeds, and how often the network was asked about each."""
    lengths = LENGTHS[rows].tolist()
    generator = SampleGenerators([sample_seeds(7, 0, B)[i] for i in rows], lengths)
    valid = torch.arange(length) < LENGTHS[rows][:, None]
    start, counts = p.prior((len(rows), length, D), generator), []
    with torch.no_grad():
        predict_x0 = Clamped(Prediction(p, denoiser, valid), torch.zeros(len(rows), length, D), torch.ones_like(valid))
        if tolerance is not None:
            predict_x0 = EarlyStop(p, predict_x0, valid, tolerance)
        hook = denoiser.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
        x = SAMPLERS[sampler](p, predict_x0, start, TIMES, generator=generator)
        hook.remove()
    return x, counts


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tolerance_zero_is_the_full_run_bit_for_bit(gaussian, denoiser, sampler):
    whole, _ = sample(gaussian(), denoiser, [0, 1, 2, 3], None, sampler)
    stopped, counts = sample(gaussian(), denoiser, [0, 1, 2, 3], 0.0, sampler)
    assert torch.equal(whole, stopped) and counts == [B] * S


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_who_stops_beside_it(gaussian, denoiser, sampler):
    """The estimates fed back stay with their samples when others leave the batch."""
    p = gaussian()
    batch, counts = sample(p, denoiser, [0, 1, 2, 3], 0.4, sampler)
    assert len(set(counts)) > 1  # they do not leave all at once
    alone = [sample(p, denoiser, [i], 0.4, sampler, length=9) for i in range(B)]
    for i, (x, _) in enumerate(alone):
        own = slice(0, LENGTHS[i])
        torch.testing.assert_close(x[0, own], batch[i, own], rtol=1e-5, atol=1e-5)
    assert sum(counts) == sum(sum(own) for _, own in alone)
