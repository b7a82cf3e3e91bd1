"""The information window of a distribution that is known: 16 atoms, whose posterior can be written down."""

import math

import pytest
import torch
from scipy.stats import norm
from torch.nn.functional import log_softmax

from diffusion.schedules import BETA_SCHEDULES, NoiseSchedule, cosine_betas, linear_betas, tan_betas
from diffusion.window import Levels, Window, information, information_rate

DRAWS = 5_000


@pytest.fixture(scope="module")
def atoms(randn, generator):
    """Levels, squared error of the posterior mean and entropy left at each, and the entropy of the atoms themselves."""
    points = randn(16, 8, dtype=torch.float64)
    weights = randn(16, seed=1, dtype=torch.float64).mul(0.5).log_softmax(0)
    which = torch.multinomial(weights.exp(), DRAWS, True, generator=generator(2))
    gamma = torch.linspace(-6, 10, 161, dtype=torch.float64)
    errors, left = [], []
    for i, g in enumerate(gamma):
        alpha, sigma = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        z = alpha * points[which] + sigma * randn(DRAWS, 8, seed=10 + i, dtype=torch.float64)
        posterior = log_softmax(weights - torch.cdist(z, alpha * points) ** 2 / (2 * sigma**2), dim=1)
        errors.append(((points[which] - posterior.exp() @ points) ** 2).sum(1).mean())
        left.append(-(posterior.exp() * posterior).sum(1).mean())
    return gamma, torch.stack(errors), torch.stack(left), -(weights.exp() * weights).sum().item()


def test_the_information_of_all_levels_is_the_entropy(atoms):
    gamma, errors, _, entropy = atoms
    rate = information_rate(gamma, errors)
    beyond = rate[-1].item()  # w falls as e^-gamma where nothing is known
    assert information(gamma, rate)[-1].item() + beyond == pytest.approx(entropy, abs=0.02)


def test_what_is_lost_up_to_a_level_is_the_entropy_that_is_left_there(atoms):
    gamma, errors, left, _ = atoms
    assert (information(gamma, information_rate(gamma, errors)) - left).abs().max() < 0.03


def levels(gamma, rate, start=-math.inf):
    """Levels whose information is lost at this rate."""
    return Levels(gamma, 2 * torch.exp(gamma) * rate, start)


def test_the_window_of_a_bell_is_where_its_quantiles_are():
    gamma = torch.linspace(-8, 16, 481, dtype=torch.float64)
    window = Window.of(levels(gamma, 3 * torch.from_numpy(norm.pdf(gamma, 4, 1.5))))
    assert [window.low, window.median, window.high] == pytest.approx(norm.ppf([0.05, 0.5, 0.95], 4, 1.5), abs=0.01)
    assert window.nats == pytest.approx(3, abs=1e-3)
    assert window.tan_d == pytest.approx(math.exp(2), rel=0.01)


def test_an_error_that_never_ends_is_cut_off_where_the_text_is_told():
    gamma = torch.linspace(-8, 16, 481, dtype=torch.float64)
    rate = torch.from_numpy(norm.pdf(gamma, 4, 1.5))
    floored = rate + information_rate(gamma, torch.full_like(gamma, 0.01))  # 1e-2 of error is 15 nats at gamma = -8
    assert Window.of(levels(gamma, floored)).median < 0
    assert Window.of(levels(gamma, floored, 0.0)).median == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("width", [2, 8])
def test_copies_of_every_coordinate_move_the_window_by_their_logarithm(width):
    """One unit of data with two values, told by `width` copies: sigma may be sqrt(width) times as large."""

    def median(copies: int) -> float:
        gamma = torch.linspace(-8, 12, 201, dtype=torch.float64)
        x = torch.linspace(-40, 40, 20001, dtype=torch.float64)
        errors = []
        for g in gamma:  # the sum of the copies is sufficient: alpha c +- noise of variance sigma^2 c
            alpha, sigma = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
            snr = (copies * alpha**2 / sigma**2).sqrt()
            error = 1 - torch.tanh(snr**2 + snr * x) ** 2
            errors.append(copies * torch.trapezoid(error * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), x))
        return Window.of(Levels(gamma, torch.stack(errors))).median

    assert median(width) - median(1) == pytest.approx(math.log(width), abs=0.03)


@pytest.mark.parametrize("name", list(BETA_SCHEDULES))
def test_a_shifted_schedule_has_its_median_in_the_middle_of_the_window(name):
    window = Window(1.0, 3.0, 5.0, 1.0)
    schedule = NoiseSchedule.from_betas(BETA_SCHEDULES[name](1000))
    shifted = schedule.shifted(window.shift_of(schedule.gamma))
    assert shifted.gamma.median().item() == pytest.approx(3.0, abs=1e-9)


def test_shares_of_schedules_in_a_window():
    even = NoiseSchedule.from_betas(BETA_SCHEDULES["log_snr"](1000))
    assert Window(-3.0, 2.0, 7.0, 1.0).share(even.gamma) == pytest.approx(0.5, abs=0.002)
    published = Window(3.79, 5.04, 7.25, 7.02)  # LangFlow's, learned on OpenWebText
    betas = {"cosine": cosine_betas(1000), "linear": linear_betas(1000)}
    betas |= {f"tan-{d}": tan_betas(1000, d) for d in (5, 9)}
    shares = {name: published.share(NoiseSchedule.from_betas(each).gamma) for name, each in betas.items()}
    assert shares == pytest.approx({"cosine": 0.078, "linear": 0.235, "tan-5": 0.326, "tan-9": 0.445}, abs=0.005)
