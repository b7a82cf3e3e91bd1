"""The Gaussian process: figures from running the reference system, and properties that hold for any schedule."""

import math
from itertools import product
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import HfArgumentParser

from diffusion.gaussian import LOSSES, GaussianOptions, GaussianProcess
from diffusion.process import DiffusionError, Process, check_choices, mean_over_valid
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.schedules import BETA_SCHEDULES

OBJECTIVES = ("pred_x0", "pred_noise", "pred_v")


# Figures from running the reference system


@pytest.fixture(scope="module")
def golden(golden_arrays):
    return golden_arrays("gaussian")


@pytest.mark.parametrize(("beta", "k"), list(product(["linear", "cosine"], range(4))))
def test_corruption_and_conversions_match_figures_from_running_the_reference_system(
    golden, beta, k, gaussian, assert_close
):
    p, t = gaussian(beta_schedule=beta), (golden["t"][k] + 1) / 1000
    xt = p.corrupt(golden["x0"], t, noise=golden["noise"])
    assert_close(xt, golden[f"{beta}__x_t"][k], 1e-6)
    xt = golden[f"{beta}__x_t"][k]
    assert_close(p.noise_from_x0(golden["x0_guess"], xt, t), golden[f"{beta}__noise_from_x0_guess"][k], 1e-6)
    assert_close(p.x0_from_noise(golden["noise_guess"], xt, t), golden[f"{beta}__x0_from_noise_guess"][k], 1e-6)


@pytest.mark.parametrize(
    ("beta", "objective", "loss_type"),
    list(product(["linear", "cosine"], ["pred_x0", "pred_noise"], ["l1", "l2", "smooth_l1"])),
)
def test_losses_match_figures_from_running_the_reference_system(golden, beta, objective, loss_type, gaussian):
    p = gaussian(beta_schedule=beta, objective=objective, loss_type=loss_type, loss_space="x0")
    a, b, c, w = golden["coef"].tolist()
    for k in range(4):
        index = golden["t"][k]
        t, xt = (index + 1) / 1000, golden[f"{beta}__x_t"][k]
        wave = torch.cos(w * index.float())[:, None, None]
        output = a * xt + b * golden["mask"][..., None] + c * wave
        per_sample = mean_over_valid(p.loss(output, golden["x0"], xt, t), golden["mask"])
        name = f"{beta}__{objective}__{loss_type}__"
        tolerance = 5e-5 if objective == "pred_noise" else 1e-5
        torch.testing.assert_close(per_sample.double(), golden[name + "per_sample"][k], rtol=tolerance, atol=0)
        assert per_sample.double().mean().item() == pytest.approx(golden[name + "loss"][k].item(), rel=1e-5)


# Corruption


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("index", [0, 99, 499, 999])
def test_variance_of_xt_given_x0_and_over_unit_variance_data(beta, index, gaussian, generator, randn):
    p = gaussian(beta_schedule=beta)
    t = torch.full((200,), (index + 1) / 1000)
    left = p.alpha_bar(t)[0].item()
    fixed = torch.full((200, 40, 20), 2.0)
    xt = p.corrupt(fixed, t, generator())
    assert xt.mean().item() == pytest.approx(2 * left**0.5, abs=0.01)
    assert xt.var().item() == pytest.approx(1 - left, rel=0.01)
    assert p.corrupt(randn(200, 40, 20, seed=1), t, generator()).var().item() == pytest.approx(1, rel=0.01)


def test_time_zero_is_the_data_and_time_one_is_the_prior(gaussian, generator, randn):
    p, x0 = gaussian(), randn(3, 5, 4)
    assert torch.equal(p.corrupt(x0, torch.zeros(3), generator()), x0)
    assert torch.equal(p.prior((3, 5, 4), generator(2)), randn(3, 5, 4, seed=2))
    torch.testing.assert_close(p.corrupt(x0, torch.ones(3), generator(2)), randn(3, 5, 4, seed=2), atol=5e-4, rtol=0)


def test_corruption_per_sample_does_not_depend_on_partners_or_padding(gaussian, randn):
    p, seeds, lengths = gaussian(), sample_seeds(1, 0, 3), [2, 6, 4]
    x0, t = randn(3, 6, 4), torch.tensor([0.1, 0.5, 0.9])
    batch = p.corrupt(x0, t, SampleGenerators(seeds, lengths))
    alone = p.corrupt(x0[2:, :4], t[2:], SampleGenerators(seeds[2:], lengths[2:]))
    assert torch.equal(batch[2:, :4], alone)


def test_noise_must_be_given_or_drawn_from_a_generator(gaussian):
    with pytest.raises(TypeError, match="Generator"):
        gaussian().corrupt(torch.zeros(1, 2, 3), torch.ones(1))


# Conversions


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_denoised_undoes_target_at_every_time(beta, objective, gaussian, randn):
    p = gaussian(beta_schedule=beta, objective=objective)
    t = torch.arange(1, 1001) / 1000
    x0, noise = randn(1000, 2, 3, dtype=torch.float64), randn(1000, 2, 3, seed=1, dtype=torch.float64)
    xt = p.corrupt(x0, t, noise=noise)
    torch.testing.assert_close(p.denoised(p.target(x0, xt, t), xt, t), x0, rtol=1e-9, atol=1e-9)


def test_targets_are_x0_noise_and_velocity(gaussian, randn):
    t = torch.arange(1, 1001) / 1000
    x0, noise = randn(1000, 2, 3, dtype=torch.float64), randn(1000, 2, 3, seed=1, dtype=torch.float64)
    for objective in OBJECTIVES:
        p = gaussian(objective=objective)
        xt, bar = p.corrupt(x0, t, noise=noise), p.alpha_bar(t)[:, None, None]
        expected = {"pred_x0": x0, "pred_noise": noise, "pred_v": bar.sqrt() * noise - (1 - bar).sqrt() * x0}[objective]
        torch.testing.assert_close(p.target(x0, xt, t), expected, rtol=1e-9, atol=1e-9)


def test_round_trip_in_single_precision_for_all_linear_times(gaussian, generator, randn, assert_close):
    p = gaussian(beta_schedule="linear")
    t, x0 = torch.arange(1, 1001) / 1000, randn(1000, 4, 8)
    xt = p.corrupt(x0, t, generator(1))
    for to_x0, from_x0 in ((p.x0_from_noise, p.noise_from_x0), (p.x0_from_v, p.v_from_x0)):
        assert_close(to_x0(from_x0(x0, xt, t), xt, t), x0, 1e-4)


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
def test_everything_is_finite_in_single_precision_at_both_ends(beta, gaussian, generator, randn):
    t, s = torch.tensor([1.0, 1.0, 0.001]), torch.tensor([0.999, 0.0, 0.0])
    x0 = randn(3, 4, 8)
    for objective, loss_space in product(OBJECTIVES, ("output", "x0")):
        p = gaussian(beta_schedule=beta, objective=objective, loss_space=loss_space, p2_loss_weight_gamma=1)
        xt, output = p.corrupt(x0, t, generator(1)), randn(3, 4, 8, seed=2).requires_grad_()
        x0_hat, loss = p.denoised(output, xt, t), p.loss(output, x0, xt, t)
        loss.sum().backward()
        for tensor in (x0_hat, p.target(x0, xt, t), p.step(x0_hat, xt, t, s, generator()), loss, output.grad):
            assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()


# Reverse step

PAIRS = [(1000, 999), (1000, 996), (500, 499), (500, 100), (2, 1), (1000, 1)]


@pytest.mark.parametrize("beta", BETA_SCHEDULES)
@pytest.mark.parametrize(("i", "j"), PAIRS)
def test_posterior_is_bayes_rule_on_the_joint_of_xs_and_xt(beta, i, j, gaussian):
    """q(x_s, x_t | x_0) is a bivariate normal; conditioning it on x_t by the general formula must give `posterior`."""
    p = gaussian(beta_schedule=beta)
    t, s = torch.tensor([i / 1000]), torch.tensor([j / 1000])
    bar_t, bar_s = p.alpha_bar(t).item(), p.alpha_bar(s).item()
    kept = math.sqrt(bar_t / bar_s)
    var_s, cov, var_t = 1 - bar_s, kept * (1 - bar_s), 1 - bar_t
    for x0, xt in ((1.3, -0.4), (-2.0, 0.0), (0.0, 1.0)):
        mean, std = p.posterior(*(torch.full((1, 1, 1), x, dtype=torch.float64) for x in (x0, xt)), t, s)
        gain = cov / var_t
        assert mean.item() == pytest.approx(math.sqrt(bar_s) * x0 + gain * (xt - math.sqrt(bar_t) * x0), abs=1e-10)
        assert std.item() ** 2 == pytest.approx(var_s - gain * cov, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize(("i", "j"), PAIRS)
def test_stepping_from_a_corrupted_sample_gives_the_marginal_of_the_earlier_time(i, j, gaussian, generator):
    p, n = gaussian(beta_schedule="linear"), 100_000
    x0 = torch.full((n, 1, 1), 1.5, dtype=torch.float64)
    t, s = torch.full((n,), i / 1000), torch.full((n,), j / 1000)
    g = generator()
    xt = p.corrupt(x0, t, g)
    xs = p.step(x0, xt, t, s, g)
    bar_t, bar_s = p.alpha_bar(t)[0].item(), p.alpha_bar(s)[0].item()
    assert xs.mean().item() == pytest.approx(1.5 * bar_s**0.5, abs=5 * (1 - bar_s) ** 0.5 / n**0.5)
    assert xs.var().item() == pytest.approx(1 - bar_s, rel=0.02)
    joint = ((xs - xs.mean()) * (xt - xt.mean())).mean().item()
    assert joint == pytest.approx((bar_t / bar_s) ** 0.5 * (1 - bar_s), abs=5 * ((1 - bar_s) * (1 - bar_t) / n) ** 0.5)


def test_the_step_to_time_zero_is_x0_hat_itself(gaussian, generator, randn):
    x0_hat, xt = randn(4, 3, 2), randn(4, 3, 2, seed=1)
    t = torch.tensor([0.001, 0.02, 0.5, 1.0])
    for beta in BETA_SCHEDULES:
        assert torch.equal(gaussian(beta_schedule=beta).step(x0_hat, xt, t, torch.zeros(4), generator()), x0_hat)


# Loss


@pytest.mark.parametrize(("objective", "loss_type"), list(product(OBJECTIVES, LOSSES)))
def test_loss_in_output_space_compares_the_output_with_the_target(objective, loss_type, gaussian, generator, randn):
    p = gaussian(objective=objective, loss_type=loss_type)
    x0, t = randn(3, 4, 8), torch.tensor([0.1, 0.5, 1.0])
    xt, output = p.corrupt(x0, t, generator(1)), 3 * randn(3, 4, 8, seed=2)
    gap = (output - p.target(x0, xt, t)).abs()
    expected = {"l1": gap, "l2": gap**2, "smooth_l1": torch.where(gap < 1, gap**2 / 2, gap - 0.5)}[loss_type]
    loss = p.loss(output, x0, xt, t)
    assert loss.shape == (3, 4)
    torch.testing.assert_close(loss, expected.mean(-1))
    assert p.loss(p.target(x0, xt, t), x0, xt, t).max() == 0


def test_loss_in_x0_space_weighs_the_squared_noise_error_by_inverse_snr(gaussian, randn):
    x0, t, noise, output = (randn(3, 4, 8, seed=i, dtype=torch.float64) for i in range(4))
    t = torch.tensor([0.1, 0.5, 1.0])
    on_noise, on_x0 = (gaussian(objective="pred_noise", loss_space=space) for space in ("output", "x0"))
    xt, bar = on_x0.corrupt(x0, t, noise=noise), on_x0.alpha_bar(t)[:, None]
    expected = (1 - bar) / bar * on_noise.loss(output, x0, xt, t)
    torch.testing.assert_close(on_x0.loss(output, x0, xt, t), expected, rtol=1e-6, atol=0)
    assert ((1 - bar) / bar).max().item() == pytest.approx(4.1e8, rel=0.01)


@pytest.mark.parametrize(("gamma", "k"), [(0.5, 1.0), (1.0, 1.0), (2.0, 0.1), (1.0, 0.0)])
def test_p2_weight_scales_the_loss_by_its_formula(gamma, k, gaussian, generator, randn):
    x0, output, t = randn(3, 4, 8), randn(3, 4, 8, seed=1), torch.tensor([0.001, 0.3, 1.0])
    plain, weighted = gaussian(), gaussian(p2_loss_weight_gamma=gamma, p2_loss_weight_k=k)
    xt, bar = plain.corrupt(x0, t, generator(2)), plain.alpha_bar(t)
    ratio = weighted.loss(output, x0, xt, t).double() / plain.loss(output, x0, xt, t).double()
    expected = (k + bar / (1 - bar)) ** -gamma
    torch.testing.assert_close(ratio, expected[:, None].expand(3, 4), rtol=1e-5, atol=0)
    assert expected.max() / expected.min() > 10


def test_loss_takes_a_half_precision_output(gaussian, generator, randn):
    p, x0, t = gaussian(objective="pred_noise"), randn(2, 3, 4), torch.tensor([0.1, 0.9])
    xt = p.corrupt(x0, t, generator())
    loss = p.loss(randn(2, 3, 4, seed=1).bfloat16(), x0, xt, t)
    assert loss.dtype == torch.float32


def test_zero_output_has_the_l1_loss_of_the_data(gaussian, randn):
    p, x0 = gaussian(loss_type="l1"), randn(50, 40, 20)
    loss = p.loss(torch.zeros_like(x0), x0, randn(50, 40, 20, seed=1), torch.full((50,), 0.5))
    assert loss.mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)


def test_short_and_long_samples_weigh_the_same_and_padding_does_not_count():
    loss = torch.full((2, 64), math.nan)
    valid = torch.arange(64) < torch.tensor([[5], [64]])
    loss[0, :5], loss[1] = 1.0, 3.0
    per_sample = mean_over_valid(loss, valid)
    assert per_sample.tolist() == [1.0, 3.0] and per_sample.mean() == 2
    assert mean_over_valid(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).item() == 0


# Options


def test_command_line_defaults_and_values():
    parser = HfArgumentParser(GaussianOptions)
    (options,) = parser.parse_args_into_dataclasses([])
    assert options == GaussianOptions(
        objective="pred_x0", loss_type="l2", loss_space="output", beta_schedule="cosine", tan_d=9.0, noise_shift=1.0,
        time_density="uniform", window=None, p2_loss_weight_gamma=0.0, p2_loss_weight_k=1.0, timesteps=1000,
    )  # fmt: skip
    (options,) = parser.parse_args_into_dataclasses(
        "--objective pred_v --loss_type l1 --loss_space x0 --beta_schedule tan --tan_d 5 --timesteps 200".split()
    )
    p = GaussianProcess.from_options(options)
    assert p.schedule.timesteps == 200
    (shifted,) = parser.parse_args_into_dataclasses("--beta_schedule tan --tan_d 5 --noise_shift 2".split())
    assert shifted.noise_schedule().alpha_bar(torch.tensor([0.5])).item() == pytest.approx(1 / 101, rel=1e-9)
    assert p.alpha_bar(torch.tensor([0.5])).item() == pytest.approx(1 / 26, rel=1e-9)
    assert "Gaussian process" in parser.format_help() and "4e8" in parser.format_help()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"objective": "pred_eps"}, "pred_x0, pred_noise, pred_v"),
        ({"loss_type": "huber"}, "l1, l2, smooth_l1"),
        ({"loss_space": "noise"}, "output, x0"),
        ({"beta_schedule": "sqrt"}, "linear, cosine, tan"),
        ({"tan_d": 0.0}, "--tan_d 0.0"),
        ({"tan_d": math.nan}, "--tan_d nan"),
        ({"time_density": "loss"}, "--time_density loss needs a --window"),
        ({"window": "window.json"}, "--time_density uniform does not read a --window"),
        ({"noise_shift": 0.0}, "--noise_shift 0.0"),
        ({"noise_shift": math.nan}, "--noise_shift nan"),
        ({"noise_shift": 1e-12}, "noise schedule"),
        ({"tan_d": 1e-12, "beta_schedule": "tan"}, "noise schedule"),
        ({"p2_loss_weight_gamma": -1.0}, "--p2_loss_weight_gamma -1.0"),
        ({"p2_loss_weight_k": math.inf}, "--p2_loss_weight_k inf"),
        ({"timesteps": 0}, "--timesteps 0"),
        ({"timesteps": 1_000_000}, "--timesteps 1000000"),
        ({"timesteps": 20, "beta_schedule": "linear"}, "at least 21"),
    ],
)
def test_bad_options_are_refused_in_one_line(bad, told):
    with pytest.raises(DiffusionError) as error:
        GaussianOptions(**bad)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_choices_are_the_registries():
    hints = get_type_hints(GaussianOptions)
    assert get_args(hints["beta_schedule"]) == tuple(BETA_SCHEDULES) and get_args(hints["loss_type"]) == tuple(LOSSES)
    check_choices(GaussianOptions())


def test_is_a_process(gaussian):
    assert isinstance(gaussian(), Process)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpu_result(gaussian, randn):
    results = []
    for device in ("cpu", "cuda"):
        p, x0, t = gaussian(objective="pred_v"), randn(3, 5, 4).to(device), torch.tensor([0.1, 0.5, 1.0], device=device)
        g = SampleGenerators(sample_seeds(0, 0, 3), [5, 2, 4])
        xt = p.corrupt(x0, t, g)
        xs = p.step(p.denoised(0.1 * xt, xt, t), xt, t, t / 2, g)
        assert xs.device.type == device
        results.append(torch.cat([xs.cpu().flatten(), p.loss(0.1 * xt, x0, xt, t).cpu().flatten()]))
    torch.testing.assert_close(*results)
