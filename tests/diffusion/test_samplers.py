"""Samplers against figures from running the reference system, and against denoisers whose exact output is known."""

import math
from dataclasses import asdict
from functools import partial
from itertools import pairwise, product
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import HfArgumentParser

from diffusion import samplers
from diffusion.gaussian import GaussianProcess
from diffusion.process import DiffusionError
from diffusion.randomness import SampleGenerators, normal, sample_seeds
from diffusion.samplers import (
    SAMPLERS,
    SamplingOptions,
    sample_ancestral,
    sample_churn,
    sample_ddim,
    sample_dpmpp,
    sample_q,
)
from diffusion.schedules import BETA_SCHEDULES, time_grid

# Figures from running the reference system


@pytest.fixture(scope="module")
def golden(golden_arrays):
    return golden_arrays("ddim")


def closed_form_denoiser(golden, p: GaussianProcess, seen: list):
    a, b, c, w = golden["coef"].tolist()

    def predict_x0(xt, t):
        seen.append(xt)
        index = (t * 1000).round() - 1
        output = a * xt + b * golden["mask"][..., None] + c * torch.cos(w * index)[:, None, None]
        return p.denoised(output, xt, t)

    return predict_x0


@pytest.mark.parametrize(
    ("beta", "objective", "S"), list(product(["linear", "cosine"], ["pred_x0", "pred_noise"], [10, 25, 50, 250]))
)
def test_deterministic_ddim_matches_figures_from_running_the_reference_system(
    golden, beta, objective, S, gaussian, generator, assert_close
):
    p, seen = gaussian(beta_schedule=beta, objective=objective), []
    predict_x0 = closed_form_denoiser(golden, p, seen)
    x = sample_ddim(p, predict_x0, golden["start"], time_grid(1000, S), generator=generator(), eta=0.0)
    assert_close(x, golden[f"final__{beta}__{objective}__S{S}"], 5e-5)
    if S == 10:
        for ours, theirs in zip(seen, golden[f"trajectory__{beta}__{objective}__S10"], strict=True):
            assert_close(ours, theirs, 5e-5)


@pytest.mark.parametrize(
    ("beta", "objective", "eta"), list(product(["linear", "cosine"], ["pred_x0", "pred_noise"], [0.5, 1.0]))
)
def test_stochastic_ddim_matches_figures_from_running_the_reference_system(
    golden, monkeypatch, beta, objective, eta, gaussian, generator, assert_close
):
    p = gaussian(beta_schedule=beta, objective=objective)
    last = torch.full_like(golden["start"], 9.0)  # must not be seen in the result
    given = iter([*golden["step_noise__S10"], last])
    monkeypatch.setattr(samplers, "normal", lambda *_: next(given))
    predict_x0 = closed_form_denoiser(golden, p, [])
    x = sample_ddim(p, predict_x0, golden["start"], time_grid(1000, 10), generator=generator(), eta=eta)
    assert_close(x, golden[f"final__{beta}__{objective}__S10__eta{eta}"], 5e-5)


# Denoisers whose output is known


def each_integrator():
    return [sample_ancestral, sample_dpmpp, *(partial(sample_ddim, eta=eta) for eta in (0.0, 0.3, 1.0))]


def each_that_keeps_to_the_grid():
    q_samplers = (partial(sample_q, q_from=q_from) for q_from in (0.4, 1.0))
    return [*each_integrator(), *q_samplers, partial(sample_churn, churn=0.0)]


def each_sampler():
    return [*each_that_keeps_to_the_grid(), *(partial(sample_churn, churn=churn) for churn in (1.0, 2.5))]


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("S", [1, 2, 7, 100])
def test_an_oracle_denoiser_is_reproduced_exactly(beta, S, gaussian, generator, randn):
    x0, p = randn(2, 3, 4), gaussian(beta_schedule=beta, timesteps=100)
    for sampler in each_sampler():
        x = sampler(p, lambda xt, t: x0, randn(2, 3, 4, seed=1), time_grid(100, S), generator=generator())
        assert torch.equal(x, x0)


@pytest.mark.parametrize("sampler", each_that_keeps_to_the_grid())
def test_the_network_sees_each_time_of_the_grid_but_zero(sampler, gaussian, generator, randn):
    seen, told = [], []

    def predict_x0(xt, t):
        assert t.shape == (2,) and t.dtype == torch.float64 and not torch.is_grad_enabled()
        seen.append(round(t[0].item() * 1000) - 1)
        return xt

    def on_step(i, n, x):
        told.append((i, n, tuple(x.shape)))

    p = gaussian(beta_schedule="linear")
    sampler(p, predict_x0, randn(2, 3, 4), time_grid(1000, 250), generator=generator(), on_step=on_step)
    assert seen == list(range(999, 2, -4))
    assert told == [(i, 250, (2, 3, 4)) for i in range(1, 251)]


def best_for_normal_data(p: GaussianProcess):
    """E[x0 | x_t] = sqrt(alpha_bar) x_t where the data are N(0, 1)."""
    return lambda xt, t: p.alpha_bar(t).sqrt().to(xt.dtype)[:, None, None] * xt


@pytest.mark.parametrize(("S", "std"), [(50, 0.9636), (250, 0.9926), (1000, 0.9981)])
def test_deterministic_ddim_scales_normal_data_as_it_should(S, std, gaussian, generator):
    p = gaussian(beta_schedule="linear")  # linear in the start, so a start of one shows the factor itself
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    x = sample_ddim(p, best_for_normal_data(p), start, time_grid(1000, S), generator=generator(), eta=0.0)
    assert x.item() == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize(("S", "std"), [(50, 0.9260), (250, 0.9829), (1000, 0.9955)])
@pytest.mark.parametrize("sampler", [sample_ddim, sample_ancestral])
def test_random_samplers_give_normal_data_its_spread(sampler, S, std, gaussian, generator):
    p, g = gaussian(beta_schedule="linear"), generator(S)
    x = sampler(p, best_for_normal_data(p), normal((1, 300, 200), g), time_grid(1000, S), generator=g)
    assert x.std().item() == pytest.approx(std, abs=0.01) and x.mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("S", [1000, 50])
def test_ddim_with_full_noise_is_ancestral(beta, S, gaussian, generator, randn):
    """The same noise must give the same sample: the update's mean and spread agree as formulas."""
    p, start = gaussian(beta_schedule=beta), randn(2, 3, 4, dtype=torch.float64)
    ddim, ancestral = (
        sampler(p, lambda xt, t: torch.tanh(xt), start, time_grid(1000, S), generator=generator(5))
        for sampler in (sample_ddim, sample_ancestral)
    )
    torch.testing.assert_close(ddim, ancestral, rtol=1e-9, atol=1e-9)


def two_points(p: GaussianProcess):
    """E[x0 | x_t] where the data are -1 with probability 1/4 and 1 with probability 3/4."""

    def predict_x0(xt, t):
        bar = p.alpha_bar(t).float()[:, None, None]
        return torch.tanh(bar.sqrt() / (1 - bar) * xt + 0.5 * math.log(3))

    return predict_x0


@pytest.mark.parametrize("sampler", each_integrator())
def test_two_point_data_are_recovered(sampler, gaussian, generator):
    p, g = gaussian(beta_schedule="cosine"), generator(2)
    x = sampler(p, two_points(p), normal((4, 50, 50), g), time_grid(1000, 100), generator=g)
    assert (x.abs() > 0.99).float().mean() > 0.98
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.025)


@pytest.mark.parametrize(("S", "share"), [(10, 0.79), (100, 0.83)])
def test_q_sampling_ends_on_the_points_and_favours_the_common_one(S, share, gaussian, generator):
    p, g = gaussian(beta_schedule="cosine"), generator(2)
    x = sample_q(p, two_points(p), normal((4, 50, 50), g), time_grid(1000, S), generator=g, q_from=0.4)
    assert (x.abs() > 0.99).float().mean() > 0.98
    assert (x > 0).float().mean().item() == pytest.approx(share, abs=0.02)  # of 0.75


# The deterministic path: normal data, whose ideal denoiser and whose path from noise to data are known

MEAN, STD = torch.tensor([[1.0, -0.5, 0.0, 0.3], [0.1, 0.5, 1.0, 2.0]], dtype=torch.float64)
START = torch.tensor([1.0, -1.0, 0.5, 0.8], dtype=torch.float64).view(1, 1, 4)


class Normal:
    """Data N(MEAN, STD^2) under a process."""

    def __init__(self, p: GaussianProcess):
        self.p = p

    def level(self, t):
        """alpha and the variance of x_t."""
        bar = self.p.alpha_bar(t)[:, None, None]
        return bar.sqrt(), bar * STD**2 + 1 - bar

    def predict_x0(self, xt, t):
        """E[x0 | x_t], linear in x_t."""
        alpha, variance = self.level(t)
        return MEAN + alpha * STD**2 / variance * (xt - alpha * MEAN)

    def end(self, x, t: float, s: float):
        """Where the path from x at t is at s: it keeps the distance to the mean in standard deviations."""
        (alpha, variance), (alpha_s, variance_s) = (self.level(torch.tensor([at])) for at in (t, s))
        return alpha_s * MEAN + (variance_s / variance).sqrt() * (x - alpha * MEAN)


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize(("sampler", "order"), [(partial(sample_ddim, eta=0.0), 1), (sample_dpmpp, 2)])
def test_the_error_falls_as_the_order_of_the_sampler_says(beta, sampler, order, gaussian):
    p = gaussian(beta_schedule=beta, tan_d=3.0, timesteps=3200)
    data, errors = Normal(p), []
    for S in (40, 80, 160, 320):  # away from both ends, where log(alpha / sigma) is smooth in time
        times = [0.9 - 0.8 * i / S for i in range(S + 1)]
        x = sampler(p, data.predict_x0, START, times, generator=None)
        errors.append((x - data.end(START, 0.9, 0.1)).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("sampler", [partial(sample_ddim, eta=0.0), sample_dpmpp])
def test_both_deterministic_samplers_end_where_the_path_ends(beta, sampler, gaussian):
    p = gaussian(beta_schedule=beta)
    data = Normal(p)
    x = sampler(p, data.predict_x0, START, time_grid(1000, 1000), generator=None)
    torch.testing.assert_close(x, data.end(START, 1.0, 0.0), rtol=0, atol=1e-2)


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
def test_ten_steps_of_the_second_order_are_nearer_than_ten_of_the_first(beta, gaussian):
    p = gaussian(beta_schedule=beta)
    data, errors = Normal(p), []
    for sampler in (partial(sample_ddim, eta=0.0), sample_dpmpp):
        x = sampler(p, data.predict_x0, START, time_grid(1000, 10), generator=None)
        errors.append((x - data.end(START, 1.0, 0.0)).abs().max().item())
    assert errors[1] < 0.85 * errors[0]


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
def test_dpmpp_is_ddim_until_there_is_an_estimate_to_look_back_to(beta, gaussian, generator, randn):
    """The first step and the last are of first order, so up to two steps are DDIM's."""
    p, start = gaussian(beta_schedule=beta), randn(2, 3, 4)
    for S in (1, 2, 3):
        ddim, dpmpp = (
            sampler(p, lambda xt, t: torch.tanh(xt), start, time_grid(1000, S), generator=None)
            for sampler in (partial(sample_ddim, eta=0.0), sample_dpmpp)
        )
        assert torch.equal(ddim, dpmpp) == (S < 3)


def test_dpmpp_follows_the_formula_of_its_paper(gaussian, randn):
    """x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D with D = (1 + 1 / 2r) x0_hat - 1 / 2r (x0_hat before)."""
    p, start = gaussian(beta_schedule="cosine"), randn(1, 2, 3, dtype=torch.float64)
    times, seen = time_grid(1000, 7), []
    ours = sample_dpmpp(
        p, lambda xt, t: torch.tanh(xt), start, times, generator=None, on_step=lambda i, n, x: seen.append(x)
    )
    alpha = [p.alpha_bar(torch.tensor(t)).sqrt().item() for t in times[:-1]]
    sigma = [math.sqrt(1 - a**2) for a in alpha]
    level = [math.log(a / b) for a, b in zip(alpha, sigma, strict=True)]
    x, before = start, None
    for i in range(6):
        x0_hat, h = torch.tanh(x), level[i + 1] - level[i]
        d = x0_hat
        if i > 0:
            r = (level[i] - level[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * before
        x, before = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * d, x0_hat
        torch.testing.assert_close(seen[i], x, rtol=1e-10, atol=1e-10)
    assert torch.equal(ours, torch.tanh(seen[5]))  # the estimate of the last step, not of the one before


# q-sampling


def test_the_variance_of_q_sampling_is_what_its_steps_add_up_to(gaussian, monkeypatch):
    """The start and every draw have an axis of their own, so that the variance of x is the sum of its squares."""
    p, S, std, axes = gaussian(beta_schedule="cosine"), 10, 0.8, iter(torch.eye(11, dtype=torch.float64))
    monkeypatch.setattr("diffusion.gaussian.normal", lambda *_: next(axes).view(1, 1, 11))
    start, found = next(axes).view(1, 1, 11), []

    def predict_x0(xt, t):  # exact for N(0, std^2)
        bar = p.alpha_bar(t)
        return bar.sqrt() * std**2 / (bar * std**2 + 1 - bar) * xt

    times = time_grid(1000, S)
    sample_q(
        p, predict_x0, start, times, generator=None, q_from=0.4,
        on_step=lambda i, n, x: found.append(x.square().sum().item()),
    )  # fmt: skip
    variance = 1.0
    for (t, s), ours in zip(pairwise(times), found, strict=True):
        bar, bar_s = (p.alpha_bar(torch.tensor(at)).item() for at in (t, s))
        gain = bar**0.5 * std**2 / (bar * std**2 + 1 - bar)
        if t <= 0.4:
            variance = bar_s * gain**2 * variance + 1 - bar_s
        else:
            kept = bar_s**0.5 * gain + ((1 - bar_s) / (1 - bar)) ** 0.5 * (1 - bar**0.5 * gain)
            variance *= kept**2
        assert ours == pytest.approx(variance, rel=1e-9)
    assert variance < 0.9 * std**2  # it is no integrator
    assert next(axes).tolist() == [0] * 5 + [1] + [0] * 5  # 4 draws at t = 0.4, 0.3, 0.2, 0.1


def test_q_sampling_that_never_starts_is_deterministic_ddim(gaussian, randn):
    p, start, times = gaussian(), randn(2, 3, 4), time_grid(1000, 9)
    never, ddim = (
        sampler(p, lambda xt, t: torch.tanh(xt), start, times, generator=None)
        for sampler in (partial(sample_q, q_from=0.0), partial(sample_ddim, eta=0.0))
    )
    assert torch.equal(never, ddim)


@pytest.mark.parametrize("q_from", [0.4, 1.0])
def test_q_sampling_draws_x_as_in_training(q_from, gaussian, generator):
    """Given x0_hat, x_s does not depend on x_t: wherever it went before, it has the mean and spread of q(x_s | x_0)."""
    p, x0, seen = gaussian(), torch.full((1, 4, 50_000), 1.5), []
    times = time_grid(1000, 10)
    start = torch.full_like(x0, -7.0)  # far from any x_t
    sample_q(
        p, lambda xt, t: x0, start, times, generator=generator(), q_from=q_from,
        on_step=lambda i, n, x: seen.append(x),
    )  # fmt: skip
    for (t, s), xs in zip(pairwise(times[:-1]), seen, strict=False):
        if t <= q_from:
            left = p.alpha_bar(torch.tensor(s)).item()
            assert xs.mean().item() == pytest.approx(1.5 * left**0.5, abs=0.01)
            assert xs.var().item() == pytest.approx(1 - left, rel=0.02)
        else:
            assert xs.var().item() < 1e-6


# Churn


def test_no_churn_is_deterministic_ddim_to_the_bit(gaussian, generator, randn):
    p, start, times = gaussian(beta_schedule="linear"), randn(2, 3, 4), time_grid(1000, 20)
    churned, ddim = (
        sampler(p, lambda xt, t: torch.tanh(xt), start, times, generator=generator(), **own)
        for sampler, own in ((sample_churn, {"churn": 0.0}), (sample_ddim, {"eta": 0.0}))
    )
    assert torch.equal(churned, ddim)


@pytest.mark.parametrize("churn", [0.5, 1.0, 3.0])
def test_churn_asks_the_network_at_the_time_it_went_back_to(churn, gaussian, generator, randn):
    seen = []

    def predict_x0(xt, t):
        seen.append(round(t[0].item() * 1000))
        return xt

    sample_churn(
        gaussian(), predict_x0, randn(1, 2, 3), time_grid(1000, 10), generator=generator(), churn=churn
    )
    assert seen == [min(1000, round(t + 100 * churn)) for t in range(1000, 100, -100)] + [100]


def test_noised_further_is_the_forward_process(gaussian, generator):
    """From x_t ~ q(x_t | x_0 = 2) it makes x_u ~ q(x_u | x_0 = 2)."""
    p, g = gaussian(beta_schedule="linear"), generator(3)
    t, u = torch.tensor([0.2]), torch.tensor([0.5])
    xt = p.corrupt(torch.full((1, 500, 400), 2.0), t, g)
    xu, bar = p.noised_further(xt, t, u, g), p.alpha_bar(u).item()
    assert xu.mean().item() == pytest.approx(2 * bar**0.5, abs=0.01)
    assert xu.var().item() == pytest.approx(1 - bar, abs=0.01)
    assert torch.equal(p.noised_further(xt, t, t, g), xt)


@pytest.mark.parametrize("churn", [0.5, 1.0, 2.0])
def test_churned_samples_of_two_point_data_have_their_shares(churn, gaussian, generator):
    p, g = gaussian(beta_schedule="cosine"), generator(2)
    x = sample_churn(p, two_points(p), normal((4, 50, 50), g), time_grid(1000, 100), generator=g, churn=churn)
    assert (x.abs() > 0.99).float().mean() > 0.98
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.025)


@pytest.mark.parametrize("churn", [0.0, 2.0])
def test_churn_drowns_an_error_of_the_past(churn, gaussian, generator):
    """A start of too small a spread, which the deterministic path keeps to the end."""
    p, g = gaussian(beta_schedule="linear"), generator(4)
    start = 0.5 * normal((1, 300, 200), g)
    x = sample_churn(p, best_for_normal_data(p), start, time_grid(1000, 250), generator=g, churn=churn)
    assert x.std().item() == pytest.approx(0.496 if churn == 0 else 0.96, abs=0.03)


# Randomness


def test_without_noise_the_sample_depends_on_the_start_only(gaussian, generator, randn):
    p, start = gaussian(beta_schedule="linear"), randn(2, 3, 4)
    times = time_grid(1000, 20)

    def sample(eta, seed):
        return sample_ddim(p, lambda xt, t: torch.tanh(xt), start, times, generator=generator(seed), eta=eta)

    assert torch.equal(sample(0.0, 1), sample(0.0, 2))
    assert torch.equal(sample(1.0, 1), sample(1.0, 1)) and not torch.equal(sample(1.0, 1), sample(1.0, 2))
    assert not torch.allclose(sample(1.0, 1), sample(0.0, 1), atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch_or_padding_or_global_state(name, gaussian):
    p, seeds, lengths = gaussian(beta_schedule="linear"), sample_seeds(42, 0, 3), [3, 8, 5]

    def sample(rows, L):
        g = SampleGenerators([seeds[i] for i in rows], [lengths[i] for i in rows])
        start = p.prior((len(rows), L, 4), g)
        return SAMPLERS[name](p, lambda xt, t: torch.tanh(xt), start, time_grid(1000, 10), generator=g)

    before = torch.get_rng_state()
    batch = sample([0, 1, 2], 8)
    assert torch.equal(before, torch.get_rng_state())
    for i in range(3):
        alone = sample([i], 11)[0, : lengths[i]]
        torch.testing.assert_close(alone, batch[i, : lengths[i]], rtol=1e-6, atol=1e-6)
    assert (batch[0, 3:] == 0).all()


def test_ancestral_asks_nothing_of_a_process_but_its_step(generator):
    class Countdown:
        step_reads = None

        def step(self, x0_hat, xt, t, s, generator):
            return xt + torch.stack([t, s], dim=1).round(decimals=3) * x0_hat

    start, times = torch.zeros(1, 2), [1.0, 0.5, 0.0]
    x = sample_ancestral(Countdown(), lambda xt, t: torch.ones_like(xt), start, times, generator=generator())
    assert x.tolist() == [[1.5, 0.5]]


# Options


def test_command_line_defaults():
    (options,) = HfArgumentParser(SamplingOptions).parse_args_into_dataclasses([])
    assert asdict(options) == {
        "sampler": "default",
        "sampling_timesteps": 250,
        "grid_power": 1.0,
        "ddim_sampling_eta": 1.0,
        "q_sampling_from": 0.4,
        "churn": 1.0,
        "early_stop": 0.0,
        "guidance": 1.0,
        "self_condition_guidance": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }
    assert {"default", *SAMPLERS} <= set(get_args(get_type_hints(SamplingOptions)["sampler"]))


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.7), ("top_p", 0.9), ("top_k", 5)])
def test_any_option_that_sharpens_makes_predictions_tempered(name, value):
    assert not SamplingOptions().is_tempered and SamplingOptions(**{name: value}).is_tempered


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"sampler": "dpm"}, "default, ddim, ancestral, dpmpp, q, churn, ddpm_cache, first_hitting, euler, left_"),
        ({"sampling_timesteps": 0}, "--sampling_timesteps 0"),
        ({"ddim_sampling_eta": 1.5}, "--ddim_sampling_eta 1.5"),
        ({"ddim_sampling_eta": -0.1}, "--ddim_sampling_eta -0.1"),
        ({"ddim_sampling_eta": math.nan}, "--ddim_sampling_eta nan"),
        ({"q_sampling_from": 1.5}, "--q_sampling_from 1.5"),
        ({"q_sampling_from": -0.1}, "--q_sampling_from -0.1"),
        ({"q_sampling_from": math.nan}, "--q_sampling_from nan"),
        ({"churn": -0.1}, "--churn -0.1"),
        ({"churn": math.inf}, "--churn inf"),
        ({"early_stop": -0.1}, "--early_stop -0.1"),
        ({"early_stop": math.nan}, "--early_stop nan"),
        ({"early_stop": math.inf}, "--early_stop inf"),
        ({"guidance": -1.0}, "--guidance -1.0"),
        ({"self_condition_guidance": math.nan}, "--self_condition_guidance nan"),
        ({"guidance": 2.0, "self_condition_guidance": 2.0}, "leave out one of the two"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"temperature": math.inf}, "--temperature inf"),
        ({"top_p": 0.0}, "--top_p 0.0"),
        ({"top_p": 1.1}, "--top_p 1.1"),
        ({"top_k": -1}, "--top_k -1"),
    ],
)
def test_bad_options_are_refused_in_one_line(bad, told):
    with pytest.raises(DiffusionError) as error:
        SamplingOptions(**bad)
    assert told in str(error.value) and "\n" not in str(error.value)
