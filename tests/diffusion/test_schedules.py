"""Noise levels, time grids, sampled times and T-range annealing, against figures from running the reference system."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.process import DiffusionError
from diffusion.randomness import uniform
from diffusion.schedules import (
    BETA_SCHEDULES,
    MAX_TIMESTEPS,
    T_SCHEDULES,
    NoiseSchedule,
    T_schedule,
    cosine_betas,
    cosine_T_schedule,
    even_grid,
    linear_betas,
    linear_T_schedule,
    log_snr_betas,
    normal_T_schedule,
    polynomial_T_schedule,
    step_times,
    tan_betas,
    time_grid,
    training_steps,
    unsmooth_T_schedule,
    warped,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Noise levels


@pytest.mark.parametrize("key", ["linear_1000", "linear_200", "linear_100", "cosine_1000", "cosine_200", "cosine_100"])
def test_betas_and_alpha_bar_match_figures_from_running_the_reference_system(key):
    golden = json.loads((GOLDEN / "beta_schedules.json").read_text())[key]
    T, index = golden["timesteps"], torch.tensor(golden["index"])
    betas = BETA_SCHEDULES[key.split("_")[0]](T)
    schedule = NoiseSchedule.from_betas(betas)
    assert betas.dtype == torch.float64 and betas.shape == (T,) and schedule.timesteps == T
    tolerance = np.where((index.numpy() == T - 1) & key.startswith("cosine"), 1e-9, 1e-12)
    alpha_bar = schedule.alpha_bar((index + 1) / T)
    for ours, theirs in ((betas[index], "beta_f64"), (alpha_bar, "alphas_cumprod_f64")):
        reference = np.array(golden[theirs])
        assert (np.abs(ours.numpy() - reference) <= tolerance * reference).all(), theirs
    for ours, theirs in ((alpha_bar, "alphas_cumprod_f32"), ((1 / alpha_bar - 1).sqrt(), "sqrt_recipm1_f32")):
        np.testing.assert_allclose(ours.float().numpy(), golden[theirs], rtol=2e-7)
    assert schedule.table[1:].sum().item() == pytest.approx(golden["sum_alphas_cumprod_f64"], rel=1e-12)


def test_alpha_bar_table_of_the_reference_notes():
    index = torch.tensor([0, 99, 199, 499, 999])
    for betas, figures, last in (
        (linear_betas(1000), [0.9999, 0.89702, 0.65904, 0.078587], 4.0358e-5),
        (cosine_betas(1000), [0.999959, 0.972093, 0.898706, 0.493844], 2.43e-9),
    ):
        alpha_bar = NoiseSchedule.from_betas(betas).alpha_bar((index + 1) / 1000).tolist()
        assert alpha_bar[:4] == pytest.approx(figures, abs=5e-6) and alpha_bar[4] == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize("betas", [linear_betas, cosine_betas, tan_betas, lambda T: tan_betas(T, 0.1), log_snr_betas])
@pytest.mark.parametrize("T", [21, 50, 200, 1000, MAX_TIMESTEPS])
def test_alpha_bar_falls_strictly_from_exactly_one_and_stays_positive(betas, T):
    table = NoiseSchedule.from_betas(betas(T)).table
    assert table.dtype == torch.float64 and table.shape == (T + 1,) and table[0] == 1
    assert (table[1:] < table[:-1]).all() and table[-1] > 0


@pytest.mark.parametrize("d", [1, 5, 9])
def test_tan_is_its_formula_up_to_the_clipped_last_step(d):
    T = 1000
    schedule = NoiseSchedule.from_betas(tan_betas(T, d))
    t = torch.arange(1, T, dtype=torch.float64) / T
    formula = 1 / (1 + (d * torch.tan(math.pi / 2 * t)) ** 2)
    torch.testing.assert_close(schedule.alpha_bar(t), formula, rtol=1e-9, atol=0)
    assert 1 - schedule.table[-1] / schedule.table[-2] == pytest.approx(0.999, abs=1e-12)
    # Half of all times are noisier than log(sigma^2 / alpha^2) = 2 ln d.
    half = schedule.alpha_bar(torch.tensor(0.5)).item()
    assert math.log((1 - half) / half) == pytest.approx(2 * math.log(d), abs=1e-9)


def test_log_snr_rises_evenly_over_its_range():
    gamma = NoiseSchedule.from_betas(log_snr_betas(1000)).gamma
    torch.testing.assert_close(gamma, torch.linspace(-8, 12, 1000, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("d", [1.5, 3, 9])
def test_tan_is_cosine_shifted(d):
    """tan-d has sigma / alpha = d tan(pi t / 2), which is d times that of tan-1 (but for its clipped last step)."""
    shifted = NoiseSchedule.from_betas(tan_betas(1000, 1)).shifted(d)
    torch.testing.assert_close(
        shifted.table[:-1], NoiseSchedule.from_betas(tan_betas(1000, d)).table[:-1], rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("factor", [0.1, 1, 4, 30])
def test_a_shift_scales_noise_against_signal_at_every_time(factor):
    schedule = NoiseSchedule.from_betas(linear_betas(1000))
    shifted = schedule.shifted(factor)
    assert shifted.table[0] == 1 and (shifted.table[1:] < shifted.table[:-1]).all() and shifted.table[-1] > 0
    torch.testing.assert_close(shifted.gamma - schedule.gamma, torch.full((1000,), 2 * math.log(factor)).double())


def test_lookup_reads_every_grid_point_in_single_precision_and_rounds_between():
    T = MAX_TIMESTEPS
    schedule = NoiseSchedule.from_betas(cosine_betas(T))
    t = torch.tensor([i / T for i in range(T + 1)])
    assert t.dtype == torch.float32 and torch.equal(schedule.alpha_bar(t), schedule.table)
    assert torch.equal(schedule.alpha_bar(t.view(1, -1, 1))[0, :, 0], schedule.table)
    assert schedule.alpha_bar(torch.tensor(10.4 / T)) == schedule.table[10]
    assert schedule.alpha_bar(torch.tensor(0.0)) == 1
    for outside in (-0.001, 1.001):  # a negative index must not wrap round to the noisy end
        with pytest.raises((IndexError, RuntimeError)):
            schedule.alpha_bar(torch.tensor([outside]))


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_the_time_of_a_noise_ratio_is_the_first_that_is_as_noisy(name):
    schedule = NoiseSchedule.from_betas(BETA_SCHEDULES[name](100))
    grid = torch.arange(101, dtype=torch.float64) / 100
    levels = schedule.noise_ratio(grid)
    assert torch.allclose(levels**2, (1 - schedule.table) / schedule.table) and levels[0] == 0
    assert torch.equal(schedule.time_at(levels[1:]), grid[1:])
    between = (levels[1:-1] + levels[2:]) / 2
    assert torch.equal(schedule.time_at(between), grid[2:])
    assert schedule.time_at(torch.tensor([0.0, 1e9])).tolist() == [0.01, 1.0]  # no time that is clean


@pytest.mark.parametrize("T", [1, 2, 3, 10, 20])
def test_few_steps_suit_cosine_and_tan_but_not_linear(T):
    assert NoiseSchedule.from_betas(cosine_betas(T)).timesteps == NoiseSchedule.from_betas(tan_betas(T)).timesteps == T
    with pytest.raises(DiffusionError, match="21") as error:
        linear_betas(T)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.5, 1.0], [0.5, 1.5, 0.1], [0.1, math.nan], [1e-20, 0.1]])
def test_a_schedule_that_is_none_is_refused(betas):
    with pytest.raises(DiffusionError, match="noise schedule"):
        NoiseSchedule.from_betas(torch.tensor(betas, dtype=torch.float64))


# Times


def test_time_grids_match_figures_from_running_the_reference_system():
    golden = np.load(GOLDEN / "ddim.npz")
    names = [name for name in golden.files if name.startswith("grid")]
    assert len(names) == 9
    for name in names:
        T = int(name.split("__T")[1].split("__")[0]) if "__T" in name else 1000
        times = time_grid(T, len(golden[name]) - 1)
        assert [round(t * T) - 1 for t in times] == golden[name].tolist(), name
        assert times == [(i + 1) / T for i in golden[name].tolist()]


def test_time_grid_of_250_steps():
    index = [round(t * 1000) - 1 for t in time_grid(1000, 250)]
    assert index == list(range(999, 2, -4)) + [-1]


@pytest.mark.parametrize("T", [1, 7, 97, 1000])
def test_time_grids_fall_from_one_to_zero_without_repeats(T):
    for S in range(1, T + 1):
        times = time_grid(T, S)
        assert len(times) == S + 1 and times[0] == 1 and times[-1] == 0
        assert all(t > s for t, s in pairwise(times))


@pytest.mark.parametrize("S", [1, 2, 10, 50])
@pytest.mark.parametrize("power", [0.3, 0.5, 1, 1.5])
def test_a_warped_grid_has_the_power_of_its_even_times_on_the_steps_of_the_process(S, power):
    even = even_grid(S)
    exact, on_steps = warped(even, power), warped(time_grid(1000, S), power, 1000)
    assert exact == pytest.approx([t**power for t in even], abs=1e-12)
    for times in (exact, on_steps):
        assert times[0] == 1 and times[-1] == 0 and len(times) == S + 1
        assert all(t > s for t, s in pairwise(times))
    assert on_steps == [round(1000 * t) / 1000 for t in on_steps]
    assert on_steps == pytest.approx(exact, abs=2e-3 if power >= 1 else 0.02)


def test_a_power_of_one_changes_nothing():
    assert warped(time_grid(1000, 30), 1, 1000) == time_grid(1000, 30)


@pytest.mark.parametrize(("power", "S"), [(2, 250), (0.1, 900)])
def test_a_warped_grid_that_would_repeat_a_time_is_refused(power, S):
    with pytest.raises(DiffusionError, match="would visit one of the 1000 --timesteps twice") as error:
        warped(time_grid(1000, S), power, 1000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("T", "S"), [(10, 11), (10, 0), (10, -1)])
def test_more_sampling_steps_than_steps_are_refused(T, S):
    with pytest.raises(DiffusionError, match="between 1 and --timesteps") as error:
        time_grid(T, S)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("S", [1, 3, 1000, 4001])
def test_even_grids_fall_evenly_from_one_to_zero_exactly(S):
    times = even_grid(S)
    assert len(times) == S + 1 and times[0] == 1 and times[-1] == 0
    np.testing.assert_allclose(-np.diff(times), 1 / S, rtol=1e-9)
    with pytest.raises(DiffusionError, match="--sampling_timesteps 0"):
        even_grid(0)


@pytest.mark.parametrize("T_k", [1, 2, 37, 100])
def test_sampled_times_are_uniform_on_the_training_range(T_k):
    t = step_times(uniform((20_000,), generator(), dtype=torch.float64), 100, range(T_k))
    assert t.dtype == torch.float64 and t.shape == (20_000,)
    counts = Counter((t.double() * 100).round().long().tolist())
    assert set(counts) == set(range(1, T_k + 1))  # reaches both ends, and nothing beyond
    expected = 20_000 / T_k
    assert sum((n - expected) ** 2 / expected for n in counts.values()) <= T_k + 5 * (2 * T_k) ** 0.5  # chi-squared
    assert t.tolist() == [round(u * 100) / 100 for u in t.tolist()]


# T-range annealing


def test_T_schedules_match_figures_from_running_the_reference_system():
    golden = json.loads((GOLDEN / "t_schedule.json").read_text())
    assert len(golden["rows"]) == 568
    for row in golden["rows"]:
        power = {} if row["power"] is None else {"power": row["power"]}
        T = T_SCHEDULES[row["schedule"]](row["total_step"], row["timesteps"], row["curr_step"], **power)
        assert type(T) is int and abs(T - row["T"]) <= (1 if row["rounding_sensitive"] else 0), row


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (normal_T_schedule, [1000, 1000, 1000, 1000, 1000, 1000]),
        (linear_T_schedule, [200, 400, 600, 800, 999, 1000]),
        (polynomial_T_schedule, [200, 250, 400, 650, 999, 1000]),
        (T_schedule("polynomial", power=3), [200, 212, 300, 537, 999, 1000]),
        (cosine_T_schedule, [200, 317, 600, 882, 999, 1000]),
        (unsmooth_T_schedule, [200, 200, 400, 600, 800, 800]),
    ],
)
def test_T_schedules_at_the_quarters_of_the_first_half(schedule, expected):
    T = [schedule(80_000, 1000, k) for k in (0, 10_000, 20_000, 30_000, 39_999, 40_000)]
    if schedule is cosine_T_schedule:
        assert abs(T.pop(2) - expected.pop(2)) <= 1  # 600 exactly in real numbers: rounding decides
    assert T == expected


def test_unsmooth_jumps_after_its_quarters():
    assert unsmooth_T_schedule(80_000, 1000, 10_001) == 400 and unsmooth_T_schedule(80_000, 1000, 40_001) == 1000


@pytest.mark.parametrize("name", T_SCHEDULES)
@pytest.mark.parametrize("timesteps", [1, 2, 4, 5, 97, 1000])
@pytest.mark.parametrize("total_step", [0, 1, 2, 3, 10, 501])
def test_T_stays_in_range_never_falls_and_ends_full(name, timesteps, total_step):
    T = [T_schedule(name)(total_step, timesteps, k) for k in range(total_step + 3)]
    assert all(1 <= a <= b <= timesteps for a, b in pairwise(T))
    assert T[total_step // 2 + 1 :] == [timesteps] * len(T[total_step // 2 + 1 :])


@pytest.mark.parametrize(
    ("name", "power", "below_200", "from_800"),
    [
        ("normal", 2, 0.200, 0.200),
        ("linear", 2, 0.301, 0.113),
        ("cosine", 2, 0.324, 0.123),
        ("polynomial", 2, 0.377, 0.107),
        ("polynomial", 3, 0.424, None),
        ("unsmooth", 2, 0.360, None),
    ],
)
def test_exposure_of_low_and_high_noise_over_a_run(name, power, below_200, from_800):
    N, T, batch = 80_000, 1000, 4
    schedule = T_schedule(name, power=power)
    updates = Counter(schedule(N, T, k) for k in range(N))  # how many updates train on each range
    g = generator()
    draws = ((uniform((batch * n,), g, dtype=torch.float64), T_k) for T_k, n in updates.items())
    draws = [(u, T_k) for u, T_k in draws]
    t = torch.cat([step_times(u, T, training_steps("low_to_high", T, T_k)) for u, T_k in draws])
    index = (t * T).round() - 1
    reverse = torch.cat([step_times(1 - 2**-53 - u, T, training_steps("high_to_low", T, T_k)) for u, T_k in draws])
    assert torch.equal((reverse * T).round() - 1, T - 1 - index)  # the same ranges from the other end
    assert len(index) == batch * N and index.min() == 0 and index.max() == T - 1
    assert (index < 200).double().mean().item() == pytest.approx(below_200, abs=0.005)
    if from_800 is not None:
        assert (index >= 800).double().mean().item() == pytest.approx(from_800, abs=0.005)


def test_bad_T_schedule_options_are_refused():
    with pytest.raises(DiffusionError, match="normal, linear, polynomial, cosine, unsmooth"):
        T_schedule("quadratic")
    for power in (0, -1, math.nan, math.inf):
        with pytest.raises(DiffusionError, match="polynomial_T_power"):
            T_schedule("polynomial", power=power)
