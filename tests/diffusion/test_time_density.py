"""Training times by what was measured: shares that are known in closed form, ranges, and grids of their quantiles."""

import math

import pytest
import torch

from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.process import DiffusionError
from diffusion.schedules import NoiseSchedule, log_snr_betas, tan_betas
from diffusion.time_density import RISING, UNIFORM_SHARE, TimeDensity
from diffusion.window import Levels

T = 1000
EVEN = NoiseSchedule.from_betas(log_snr_betas(T)).gamma  # u = (gamma + 8) / 20


def cubic() -> Levels:
    """An error u^3 of the place u in the range, whose density is 3 u^2."""
    gamma = torch.linspace(-8, 12, 201, dtype=torch.float64)
    return Levels(gamma, ((gamma + 8) / 20) ** 3)


def test_times_are_drawn_where_the_loss_rises(generator):
    density = TimeDensity(EVEN, cubic(), "loss")
    u = torch.rand(200_000, generator=generator(), dtype=torch.float64)
    found = torch.histc((density.steps(u, range(T)).double() + 0.5) / T, 20, 0, 1) / len(u)
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    expected = (1 - UNIFORM_SHARE) * edges.pow(3).diff() + UNIFORM_SHARE / 20
    torch.testing.assert_close(found, expected, rtol=0, atol=0.002)


def test_the_loss_is_a_straight_line_over_the_times_drawn():
    density, levels = TimeDensity(EVEN, cubic(), "loss"), cubic()
    own = (density.probability - UNIFORM_SHARE / T) / (1 - UNIFORM_SHARE)  # without the share of all alike
    loss = ((EVEN + 8) / 20) ** 3
    torch.testing.assert_close(loss, own.cumsum(0), rtol=0, atol=0.003)
    assert levels.start == -math.inf and density.first == 0


@pytest.mark.parametrize("schedule", [EVEN, NoiseSchedule.from_betas(tan_betas(T, 5)).gamma])
def test_every_draw_takes_away_as_much_information(schedule):
    gamma = torch.linspace(-8, 12, 401, dtype=torch.float64)
    rate = torch.exp(-((gamma - 3) ** 2) / 2)
    density = TimeDensity(schedule, Levels(gamma, 2 * gamma.exp() * rate), "information")
    own = ((density.probability - UNIFORM_SHARE / T) / (1 - UNIFORM_SHARE)).cumsum(0)
    normal = (1 + torch.erf((schedule - 3) / math.sqrt(2))) / 2  # below or at a level
    torch.testing.assert_close(own, normal, rtol=0, atol=0.01)


def test_what_lies_below_the_start_is_drawn_as_seldom_as_the_uniform_share_says():
    levels = Levels(*(getattr(cubic(), name) for name in ("gamma", "squared_error")), start=2.0)
    density = TimeDensity(EVEN, levels, "information")
    told = EVEN < 1.9
    assert density.probability[told].sum().item() == pytest.approx(UNIFORM_SHARE * told.double().mean().item())
    assert density.first == (EVEN < 2).sum()


def test_an_error_that_falls_by_chance_gives_no_negative_share():
    levels = Levels(torch.tensor([-8.0, 0.0, 2.0, 12.0]), torch.tensor([0.0, 0.5, 0.3, 1.0]))
    density = TimeDensity(EVEN, levels, "loss")
    assert (density.probability > 0).all() and density.probability.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", RISING)
def test_steps_outside_of_what_was_measured_share_what_all_have(kind):
    density = TimeDensity(EVEN, Levels(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), kind)
    outside = (EVEN < -0.1) | (EVEN > 1.1)
    assert density.probability[outside].tolist() == pytest.approx([UNIFORM_SHARE / T] * int(outside.sum()))
    assert density.probability.sum().item() == pytest.approx(1)
    assert density.steps(torch.tensor([0.0, 0.505, 0.999]), range(100)).tolist() == [0, 50, 99]


@pytest.mark.parametrize("kind", RISING)
@pytest.mark.parametrize("levels", [(12.5, 20.0), (-20.0, -8.5)])
def test_a_window_outside_of_the_schedule_is_refused_in_one_line(kind, levels):
    measured = Levels(torch.tensor(levels), torch.tensor([1.0, 2.0]))
    with pytest.raises(DiffusionError, match="--time_density: .*-8 to 12.*--noise_shift") as refusal:
        TimeDensity(EVEN, measured, kind)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("among", [range(200), range(300, 1000), range(5, 6), range(T)])
def test_a_range_of_steps_has_its_own_part_of_the_density(among, generator):
    density = TimeDensity(EVEN, cubic(), "loss")
    u = torch.rand(50_000, generator=generator(1), dtype=torch.float64)
    found = density.steps(u, among)
    assert found.min() >= among.start and found.max() < among.stop
    own = density.probability[among.start : among.stop]
    mean = (own * torch.arange(among.start, among.stop)).sum() / own.sum()
    assert found.double().mean().item() == pytest.approx(mean.item(), abs=0.02 * len(among))
    edges = density.steps(torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64), among)
    assert edges.tolist() == [among.start, among.stop - 1]


@pytest.mark.parametrize("S", [1, 2, 3, 10, 50, 999, 1000])
def test_a_grid_falls_from_the_last_step_and_repeats_none(S):
    levels = Levels(*(getattr(cubic(), name) for name in ("gamma", "squared_error")), start=2.0)
    for kind in ("loss", "information"):
        grid = TimeDensity(EVEN, levels, kind).grid(S)
        assert len(grid) == S and grid[0] == T - 1 and grid[-1] >= 0
        assert all(b < a for a, b in zip(grid, grid[1:], strict=False))


def test_a_grid_visits_even_quantiles_and_where_texts_begin_to_be_told():
    levels = Levels(*(getattr(cubic(), name) for name in ("gamma", "squared_error")), start=-4.0)
    density = TimeDensity(EVEN, levels, "loss")
    *quantiles, last = density.grid(11)
    assert last == density.first == 200
    shares = [density.cumulated[i].item() for i in quantiles]
    assert shares == pytest.approx([k / 10 for k in range(10, 0, -1)], abs=0.004)


def test_the_process_draws_and_samples_by_it(gaussian):
    options = GaussianOptions(beta_schedule="log_snr", time_density="loss", window="window.json")
    process = GaussianProcess.from_options(options, cubic())
    u = torch.tensor([0.0, 0.5, 0.999])
    assert process.times(u, range(T)).tolist() == [
        (step + 1) / T for step in process.density.steps(u, range(T)).tolist()
    ]
    grid = process.grid(20)
    assert grid[0] == 1 and grid[-1] == 0 and len(grid) == 21
    assert [round(t * T) - 1 for t in grid[:-1]] == process.density.grid(20)
    assert gaussian().density is None
