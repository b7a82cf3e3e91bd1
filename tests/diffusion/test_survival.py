"""Noise schedules of tokens, against figures from running the public reference code and by their own properties."""

import math

import pytest
import torch

from diffusion.process import DiffusionError
from diffusion.survival import SURVIVALS, SurvivalOptions, geometric

SCHEDULES = SURVIVALS | {"geometric_class_default": lambda: geometric(1e-3, 1)}


@pytest.fixture(params=SCHEDULES)
def name(request):
    return request.param


@pytest.fixture
def survival(name):
    return SCHEDULES[name]()


def interior(count: int = 999) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)


def test_schedules_match_figures_from_running_the_reference_code(name, survival, discrete_golden):
    golden = discrete_golden("mdlm_schedules")
    t = torch.tensor(golden["t"], dtype=torch.float64)
    ours = {"sigma": survival.sigma(t), "dsigma": survival.rate(t), "move_chance": survival.move_chance(t)}
    for key, values in ours.items():
        first = 1 if key == "move_chance" else 0  # at t = 0 every token is itself here, by definition
        theirs = torch.tensor(golden["schedules"][name][key], dtype=torch.float64)
        torch.testing.assert_close(values[first:], theirs[first:], rtol=1e-9, atol=1e-9)


def test_the_rate_is_the_derivative_of_sigma(survival):
    t = interior().requires_grad_()
    (derivative,) = torch.autograd.grad(survival.sigma(t).sum(), t)
    torch.testing.assert_close(survival.rate(t), derivative, rtol=1e-11, atol=0)


def test_alpha_falls_from_exactly_one_and_is_one_minus_the_move_chance(survival):
    t = torch.cat([torch.zeros(1), interior(), torch.ones(1)])
    alpha = survival.alpha(t)
    assert alpha[0] == 1 and survival.move_chance(t)[0] == 0
    assert (alpha.diff() < 0).all() and alpha[-1] > 0
    torch.testing.assert_close(1 - survival.move_chance(t), alpha, rtol=0, atol=1e-15)


def test_times_are_found_again_from_their_move_chance(survival):
    t = torch.cat([interior(), torch.ones(1)])
    torch.testing.assert_close(survival.time_of_move_chance(survival.move_chance(t)), t, rtol=1e-7, atol=0)


def test_a_move_chance_out_of_reach_belongs_to_the_nearest_end(survival):
    assert survival.time_of_move_chance(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("name", "small"), [("cosine", math.pi**2 / 8), ("cosine_squared", math.pi**2 / 4)])
def test_small_move_chances_are_precise(name, small):
    t = torch.tensor([1e-9], dtype=torch.float64)
    move = SURVIVALS[name]().move_chance(t)
    torch.testing.assert_close(move, 0.999 * small * t**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(SURVIVALS[name]().time_of_move_chance(move), t, rtol=1e-12, atol=0)


# Options


def test_a_method_has_its_own_default_schedule():
    assert SurvivalOptions().survival().move_chance(torch.tensor([0.5])).item() == pytest.approx(0.4995, abs=1e-12)
    sigma = SurvivalOptions(sigma_max=5.0).survival(default="geometric").sigma(torch.tensor([0.0, 1.0]).double())
    assert sigma.tolist() == pytest.approx([1e-4, 5.0])
    sigma = SurvivalOptions("linear", sigma_min=0.5).survival(default="geometric").sigma(torch.tensor([0.0, 1.0]))
    assert sigma.tolist() == pytest.approx([0.5, 7.0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"noise_schedule": "polynomial"}, "loglinear"),
        ({"noise_schedule": "linear", "sigma_min": 0.0}, "--sigma_min"),
        ({"noise_schedule": "linear", "sigma_max": math.inf}, "--sigma_max"),
        ({"noise_schedule": "linear", "sigma_min": 2.0, "sigma_max": 1.0}, "--sigma_min 2.0"),
        ({"noise_schedule": "linear", "sigma_min": 8.0}, "--sigma_max 7"),
        ({"noise_schedule": "cosine", "sigma_max": 5.0}, "cosine"),
        ({"sigma_min": 0.1}, "loglinear"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, told):
    with pytest.raises(DiffusionError, match=told) as error:
        SurvivalOptions(**options).survival()
    assert "\n" not in str(error.value)
