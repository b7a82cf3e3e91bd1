"""Samplers against figures from running the reference system, and against denoisers whose exact output is known."""

import math
from dataclasses import asdict
from itertools import product
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import HfArgumentParser

from diffusion import samplers
from diffusion.gaussian import GaussianProcess
from diffusion.process import DiffusionError
from diffusion.randomness import SampleGenerators, normal, sample_seeds
from diffusion.samplers import SAMPLERS, SamplingOptions, sample_ancestral, sample_ddim
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


def each_sampler():
    return [sample_ancestral, *(lambda *a, eta=eta, **k: sample_ddim(*a, eta=eta, **k) for eta in (0.0, 0.3, 1.0))]


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("S", [1, 2, 7, 100])
def test_an_oracle_denoiser_is_reproduced_exactly(beta, S, gaussian, generator, randn):
    x0, p = randn(2, 3, 4), gaussian(beta_schedule=beta, timesteps=100)
    for sampler in each_sampler():
        x = sampler(p, lambda xt, t: x0, randn(2, 3, 4, seed=1), time_grid(100, S), generator=generator())
        assert torch.equal(x, x0)


@pytest.mark.parametrize("sampler", each_sampler())
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


def test_two_point_data_are_recovered_by_every_sampler(gaussian, generator):
    p = gaussian(beta_schedule="cosine")

    def predict_x0(xt, t):  # exact for data that are -1 with probability 1/4 and 1 with probability 3/4
        bar = p.alpha_bar(t).float()[:, None, None]
        return torch.tanh(bar.sqrt() / (1 - bar) * xt + 0.5 * math.log(3))

    for sampler in each_sampler():
        g = generator(2)
        x = sampler(p, predict_x0, normal((4, 50, 50), g), time_grid(1000, 100), generator=g)
        assert (x.abs() > 0.99).float().mean() > 0.98
        assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.025)


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
        "ddim_sampling_eta": 1.0,
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
        ({"sampler": "dpm"}, "default, ddim, ancestral, ddpm_cache, first_hitting, euler, left_to_right"),
        ({"sampling_timesteps": 0}, "--sampling_timesteps 0"),
        ({"ddim_sampling_eta": 1.5}, "--ddim_sampling_eta 1.5"),
        ({"ddim_sampling_eta": -0.1}, "--ddim_sampling_eta -0.1"),
        ({"ddim_sampling_eta": math.nan}, "--ddim_sampling_eta nan"),
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
