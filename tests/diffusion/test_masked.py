"""MDLM and D3PM against figures from running the public reference code, and against an enumerable distribution.

Legend: X texts, B batch, L positions, V vocabulary with the mask, N reverse steps.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import HfArgumentParser

from diffusion.masked import (
    EARLIEST,
    D3PMOptions,
    D3PMProcess,
    MaskedOptions,
    MaskedProcess,
    mask_some,
)
from diffusion.process import DiffusionError, TokenProcess, mean_over_valid
from diffusion.randomness import SampleGenerators
from diffusion.samplers import sample_ancestral
from diffusion.survival import SURVIVALS, geometric, loglinear

MASK = 3  # of the toy; the golden figures have 7
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SCHEDULES = SURVIVALS | {"geometric_class_default": lambda: geometric(1e-3, 1)}


def mdlm(schedule: str = "loglinear", mask_id: int = MASK, **options) -> MaskedProcess:
    return MaskedProcess(mask_id + 1, mask_id, SCHEDULES[schedule](), **options)


def d3pm(T: int = 1000, mask_id: int = MASK, **options) -> D3PMProcess:
    return D3PMProcess(mask_id + 1, mask_id, timesteps=T, **options)


@pytest.fixture(params=["mdlm", "d3pm", "d3pm_zero_mask_prob"])
def process(request) -> TokenProcess:
    """Each process, of the toy's tokens."""
    return {"mdlm": mdlm(), "d3pm": d3pm(50), "d3pm_zero_mask_prob": d3pm(50, zero_mask_prob=True)}[request.param]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def full(count: int, value: float) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Figures from running the reference code


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def losses(request, discrete_golden):
    """(figures, inputs in the precision under test, tolerances)."""
    golden = discrete_golden("mdlm_losses")
    inputs = golden["inputs"]
    close = EXACT if request.param == torch.float64 else {"rtol": 1e-4, "atol": 0}
    logits = torch.tensor(inputs["logits"], dtype=request.param)
    return golden, logits, torch.tensor(inputs["x0"]), torch.tensor(inputs["xt"]), f64(inputs["t"]), close


def test_log_probabilities_match_figures_from_running_the_reference_code(losses):
    golden, logits, _, xt, t, close = losses
    is_masked = xt == 7  # elsewhere theirs copies x_t, which is here for `reverse` to do
    for process, name, where in (
        (mdlm(mask_id=7), "subs_log_probs", is_masked),
        (d3pm(mask_id=7), "d3pm_log_probs", ...),
    ):
        log_p = process.denoised(logits, xt, t)
        assert log_p.dtype == logits.dtype
        torch.testing.assert_close(log_p.double().exp()[where], f64(golden[name]).exp()[where], **close)


@pytest.mark.parametrize("name", SCHEDULES)
def test_continuous_losses_match_figures_from_running_the_reference_code(losses, name):
    golden, logits, x0, xt, t, close = losses
    theirs = golden["continuous_subs"][name]
    loss = mdlm(name, mask_id=7).loss(logits, x0, xt, t)
    torch.testing.assert_close(loss, f64(theirs["loss_per_token"]), **close)
    valid = torch.tensor(golden["inputs"]["attention_mask"]).bool()
    assert loss[valid].mean().item() == pytest.approx(theirs["loss_masked_mean"], rel=close["rtol"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_match_figures_from_running_the_reference_code(name, discrete_golden):
    golden = discrete_golden("mdlm_schedules")
    theirs = golden["schedules"][name]["weight_dsigma_over_expm1_sigma"]
    t, theirs = f64(golden["t"])[1:], f64(theirs[1:])
    one_nat = torch.full((len(t), 1, 4), -1.0).double()
    weight = mdlm(name).integrand(one_nat, torch.zeros(len(t), 1).long(), torch.full((len(t), 1), MASK), t).squeeze(1)
    torch.testing.assert_close(weight, theirs, **EXACT)
    if name == "loglinear":
        torch.testing.assert_close(weight, 1 / t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("T", [10, 1000])
@pytest.mark.parametrize("variant", ["d3pm", "d3pm_zero_mask_prob", "subs"])
def test_discrete_divergences_match_corrected_figures(losses, T, variant):
    golden, logits, x0, xt, _, close = losses
    figures = golden["discrete"][f"T{T}"]
    k, theirs = f64(figures["k"]), f64(figures[variant]["diffusion_corrected"])
    process = d3pm(T, mask_id=7, zero_mask_prob=variant == "d3pm_zero_mask_prob")
    log_p = (mdlm(mask_id=7) if variant == "subs" else process).denoised(logits, xt, k / T)
    ours = T * process.divergence(log_p, x0, xt, k / T, (k - 1) / T)
    torch.testing.assert_close(ours, theirs, **close)
    # The bound differs at k = 1 only: there the last step gives the mask's share to the tokens.
    theta_m, alpha = log_p[..., 7].double().exp(), (1 - k / T)[:, None]
    given = T * (torch.log1p(-theta_m) - torch.log1p(alpha * theta_m / (1 - alpha)))
    last = (k == 1)[:, None] & (xt == 7)
    expected = torch.where(last, theirs + given, theirs)
    torch.testing.assert_close(process.integrand(log_p, x0, xt, k / T), expected, **close)


def test_reverse_steps_match_figures_from_running_the_reference_code(discrete_golden):
    golden = discrete_golden("mdlm_steps")
    x, logits = torch.tensor(golden["inputs"]["x"]), f64(golden["inputs"]["logits"])
    masked, absorbing = mdlm(mask_id=7), d3pm(mask_id=7)
    for case in golden["cases"]:
        t, s = f64(case["t"]), f64(case["s"])
        log_p = masked.denoised(logits, x, t)
        theirs = case["subs"]
        torch.testing.assert_close(masked.reverse(log_p, x, t, s), f64(theirs["ddpm_transition"]), **EXACT)
        last = masked.reverse(log_p, x, t, torch.zeros_like(s))
        torch.testing.assert_close(last, f64(theirs["analytic_denoise_transition"]), **EXACT)
        assert last.argmax(-1).tolist() == theirs["final_argmax_upstream"]
        # Their alpha is 1 - (1 - eps) t where D3PM's is 1 - t.
        kept = 1 - golden["eps"]
        ours = absorbing.reverse(absorbing.denoised(logits, x, t), x, kept * t, kept * s)
        torch.testing.assert_close(ours, f64(case["d3pm"]["ddpm_transition_corrected"]), **EXACT)
        last = absorbing.reverse(absorbing.denoised(logits, x, t), x, kept * t, torch.zeros_like(s))
        assert last.argmax(-1).tolist() == case["d3pm"]["final_argmax_corrected"]


@pytest.mark.parametrize("name", ["loglinear", "linear"])
def test_importance_sampled_times_match_figures_from_running_the_reference_code(name, discrete_golden):
    golden = discrete_golden("mdlm_schedules")["importance_sampling_map"]
    t = mdlm(name, importance_sampling=True).times(f64(golden["tau"]), range(1000))
    torch.testing.assert_close(t, f64(golden[name]), **EXACT)


def test_even_times_match_figures_from_running_the_reference_code(discrete_golden):
    golden = discrete_golden("mdlm_schedules")["time_sampling"]
    u = f64(golden["uniforms"])
    torch.testing.assert_close(mdlm().times(u, range(1000)), f64(golden["iid_t"]), **EXACT)
    spread = (u + torch.arange(len(u))) / len(u)
    torch.testing.assert_close(mdlm().times(spread, range(1000)), f64(golden["stratified_t"]), **EXACT)


# Bounds of the toy: every text, every set of masks


def hidden_texts(toy) -> tuple[Tensor, Tensor]:
    """x0 and xt [X * 4, L]: each text with each set of its positions masked."""
    sets = torch.cartesian_prod(torch.tensor([False, True]), torch.tensor([False, True]))
    x0 = toy.texts.repeat_interleave(4, 0)
    return x0, torch.where(sets.repeat(len(toy.texts), 1), MASK, x0)


def expected_nats(process, value, toy, t: Tensor, move: Tensor) -> Tensor:
    """E over x_t of the sum over L of value(x0, xt, t) [B, L], for each time and text: [times, X]."""
    x0, xt = hidden_texts(toy)
    chance = torch.where(xt == MASK, move[:, None, None], 1 - move[:, None, None]).prod(-1)  # [times, X * 4]
    many = [x.repeat(len(t), 1) for x in (x0, xt)]
    each = value(*many, t.repeat_interleave(len(x0))).sum(1).view(len(t), -1)
    return (chance * each).view(len(t), -1, 4).sum(-1)


def gauss(low: float, high: float, count: int = 100) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a quadrature over [low, high]."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("loglinear", "loglinear_eps_1e-3"),
        ("cosine", "cosine_eps_1e-3"),
        ("cosine_squared", "cosine_eps_1e-3"),  # only the ends of a schedule matter
        ("geometric", "geometric_1e-4_20"),
        ("linear", "linear_1e-3_7"),
        ("loglinear_0", "limit_0_to_1"),
    ],
)
def test_with_the_exact_denoiser_the_integral_over_time_is_the_likelihood(toy, name, figures):
    process = mdlm(name) if name in SCHEDULES else MaskedProcess(4, MASK, loglinear(epsilon=0))
    t, weights = gauss(0, 1)
    integrand = expected_nats(
        process,
        lambda x0, xt, t: process.integrand(toy.log_masked_posterior(xt), x0, xt, t),
        toy, t, process.survival.move_chance(t),
    )  # fmt: skip
    theirs = f64(toy.golden["mdlm_continuous"][figures]["per_x"]).flatten()
    torch.testing.assert_close(weights @ integrand, theirs, rtol=0, atol=1e-8)


def marginals(toy, xt: Tensor) -> Tensor:
    """log of the marginals of both positions as a network output [B, L, V]: a denoiser that sees nothing."""
    log_p = torch.stack([toy.p.sum(1), toy.p.sum(0)]).log()
    return torch.nn.functional.pad(log_p, (0, 1)).expand(len(xt), -1, -1)


@pytest.mark.parametrize("name", ["loglinear", "linear"])
@pytest.mark.parametrize("denoiser", ["exact", "marginals", "uniform"])
def test_the_mean_of_the_bound_over_numbers_and_sets_of_masks_is_exact(toy, name, denoiser, predictor):
    process, copies = mdlm(name), 64
    output, truth = {
        "exact": (toy.log_masked_posterior, toy.nll),
        "marginals": (lambda xt: marginals(toy, xt), f64(toy.golden["mdlm_marginal_denoiser_limit"]).flatten()),
        "uniform": (lambda xt: torch.zeros(*xt.shape, 4).double(), f64(toy.golden["mdlm_uniform_denoiser_limit"])),
    }[denoiser]

    def draws(u: float) -> Tensor:
        x0 = toy.texts.repeat_interleave(copies, 0)
        free, u = torch.ones(x0.shape, dtype=torch.bool), full(len(x0), u)
        predict = predictor(lambda xt, t: process.denoised(output(xt), xt, t))
        nats = process.bound(predict, x0, free, u, generator())
        return nats.view(-1, copies, 2)

    one, both = draws(0.49), draws(0.5)
    sets = []  # of the draws with one mask: those that have it at position 0, and at position 1
    for position in range(2):
        at = one[..., position] > 0
        sums = torch.where(at, one.sum(-1), 0.0)
        sets.append(sums.max(1).values)
        assert (at.sum(1) > 0).all() and torch.equal(sums[at], sets[-1][:, None].expand_as(sums)[at])
    assert torch.equal(one[..., 0] > 0, one[..., 1] == 0)
    mean = (sum(sets) / 2 + both.sum(-1)[:, 0]) / 2
    torch.testing.assert_close(mean, truth.expand_as(mean), rtol=0, atol=1e-12)


def test_a_bound_with_uniform_predictions_is_the_same_at_every_draw(predictor):
    process, x0 = mdlm("geometric", mask_id=5), torch.randint(5, (40, 9), generator=generator())
    free = torch.arange(9) < (torch.arange(40) % 10)[:, None]
    u = torch.rand(40, generator=generator(), dtype=torch.float64)
    output = torch.zeros(40, 9, 6).double()
    predict = predictor(lambda xt, t: process.denoised(output, xt, t))
    nats = process.bound(predict, x0, free, u, generator())
    torch.testing.assert_close(nats.sum(1), free.sum(1) * f64(5).log(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["loglinear", "cosine"])
def test_the_bound_of_a_network_that_is_told_the_time_is_the_integral_over_it(toy, name, predictor):
    process, count = mdlm(name), 100_000
    x = torch.tensor([0, 2])

    def log_p(xt: Tensor, t: Tensor) -> Tensor:  # worse and worse
        return process.denoised(toy.log_masked_posterior(xt) * (1 - 0.9 * t)[:, None, None].nan_to_num(), xt, t)

    def value(x0: Tensor, xt: Tensor, move: Tensor) -> Tensor:
        hats = log_p(xt, process.survival.time_of_move_chance(move))
        nll = -hats.gather(-1, x0[..., None]).squeeze(-1)
        return torch.where(xt == MASK, nll, 0.0) / move[:, None]

    moves, weights = gauss(0, 1)
    integral = (weights @ expected_nats(process, value, toy, moves, moves))[2]  # the text x
    assert integral > toy.nll[2] + 0.05
    x0, free = x.expand(count, 2), torch.ones(count, 2, dtype=torch.bool)
    u = (torch.arange(count) + 0.5) / count
    draws = process.bound(predictor(log_p), x0, free, u, generator()).sum(1)
    assert abs(draws.mean() - integral) < 4 * draws.std() / math.sqrt(count)


@pytest.mark.parametrize("importance_sampling", [False, True])
@pytest.mark.parametrize("name", SURVIVALS)
def test_training_losses_are_the_integral_over_the_times_they_draw(toy, name, importance_sampling):
    process = mdlm(name, importance_sampling=importance_sampling)
    u, even = gauss(0, 1)
    t = process.times(u, range(1000))
    first = process.times(full(1, 0), range(1000)).item()
    loss = expected_nats(
        process,
        lambda x0, xt, t: process.loss(marginals(toy, xt), x0, xt, t),
        toy, t, process.survival.move_chance(t),
    )  # fmt: skip
    t, weights = gauss(first, 1)
    integrand = expected_nats(
        process,
        lambda x0, xt, t: process.integrand(process.denoised(marginals(toy, xt), xt, t), x0, xt, t),
        toy, t, process.survival.move_chance(t),
    )  # fmt: skip
    covered = 1 if importance_sampling else 1 - EARLIEST
    torch.testing.assert_close(even @ loss, weights @ integrand / covered, rtol=1e-8, atol=0)
    assert process.times(full(1, 1), range(1000)).item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("T", [1, 2, 8, 64, 1000])
def test_with_the_exact_denoiser_the_bound_of_T_steps_is_exact(toy, T):
    process, k = d3pm(T), torch.arange(1, T + 1)
    t = process.times((k - 0.5) / T, range(T))
    assert torch.equal(t, k.double() / T)
    steps = expected_nats(
        process, lambda x0, xt, t: process.integrand(toy.log_masked_posterior(xt), x0, xt, t), toy, t, t
    )
    theirs = toy.golden["d3pm_absorbing_T_step_elbo"][f"T{T}"]
    torch.testing.assert_close(steps.mean(0), f64(theirs["per_x"]).flatten(), rtol=0, atol=1e-9)
    assert toy.p.flatten() @ steps.mean(0) == pytest.approx(theirs["expected"], abs=1e-9)
    for text, each in theirs.get("per_step_k_1_to_T", {}).items():
        torch.testing.assert_close(steps[:, 3 * int(text[0]) + int(text[1])] / T, f64(each), rtol=0, atol=1e-9)


def test_more_steps_give_a_tighter_bound_from_the_marginals_to_the_entropy(toy):
    means = []
    for T in (1, 2, 3, 5, 8, 20, 64, 300):
        process, t = d3pm(T), torch.arange(1, T + 1).double() / T
        steps = expected_nats(
            process,
            lambda x0, xt, t, process=process: process.integrand(toy.log_masked_posterior(xt), x0, xt, t),
            toy, t, t,
        )  # fmt: skip
        means.append((toy.p.flatten() @ steps.mean(0)).item())
    cross_entropies = -sum((p * p.log()).sum() for p in (toy.p.sum(0), toy.p.sum(1))).item()
    assert means[0] == pytest.approx(cross_entropies, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(means))
    assert toy.golden["entropy"] < means[-1] < toy.golden["entropy"] + 3e-4


# The sampler's own law, by transition matrices over all states


def states() -> Tensor:
    """All x [16, L] of the toy with masks in them, in the order of 4 x1 + x2."""
    return torch.cartesian_prod(torch.arange(4), torch.arange(4))


def law(process, log_p, times) -> Tensor:
    """Distribution [16] over states of the chain that starts from masks and takes `reverse` steps along the times."""
    now = torch.nn.functional.one_hot(torch.tensor(15), 16).double()
    for t, s in pairwise(times):
        t, s = full(16, t), full(16, s)
        one = process.reverse(log_p(states(), t), states(), t, s)  # [16, L, V]
        now = now @ (one[:, 0, :, None] * one[:, 1, None, :]).flatten(1)
    return now


def of_texts(distribution: Tensor) -> Tensor:
    """The part [X] of a distribution [16] that lies on texts; the rest must be empty."""
    table = distribution.view(4, 4)
    assert table[3].abs().sum() + table[:, 3].abs().sum() == 0, "a mask is left"
    return table[:3, :3].flatten()


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("zero_mask_prob", [False, True])
def test_the_discrete_bound_bounds_the_likelihood_of_the_sampler(toy, T, zero_mask_prob):
    process = d3pm(T, zero_mask_prob=zero_mask_prob)
    logits = 1.5 * randn(T, 16, 2, 4, seed=T)  # a network of its own at every step; it predicts masks too

    def log_p(xt: Tensor, t: Tensor) -> Tensor:
        k = (t * T).round().long() - 1
        return process.denoised(logits[k, 4 * xt[:, 0] + xt[:, 1]], xt, t)

    t = torch.arange(1, T + 1).double() / T
    steps = expected_nats(process, lambda x0, xt, t: process.integrand(log_p(xt, t), x0, xt, t), toy, t, t)
    nll = -of_texts(law(process, log_p, process.grid(T))).log()
    assert (steps.mean(0) >= nll - 1e-12).all()
    if T == 1:  # one step from masks to a text: nothing is left to bound
        torch.testing.assert_close(steps.mean(0), nll)


@pytest.mark.parametrize("process", [mdlm(), mdlm("linear"), d3pm(10)], ids=["mdlm", "mdlm_linear", "d3pm"])
def test_one_position_is_sampled_exactly_in_any_number_of_steps(toy, process):
    p = toy.p.sum(1)
    log_p = torch.nn.functional.pad(p, (0, 1)).log()
    for N in (1, 3, 10):
        chain = law(process, lambda xt, t: process.denoised(log_p.expand(16, 2, 4), xt, t), process.grid(N))
        torch.testing.assert_close(chain.view(4, 4).sum(1)[:3], p, rtol=0, atol=1e-14)


@pytest.mark.parametrize("process", [mdlm(), d3pm(256)], ids=["mdlm", "d3pm"])
def test_the_law_of_the_sampler_nears_the_truth_as_steps_grow(toy, process):
    p = toy.p.flatten()
    laws = [of_texts(law(process, lambda xt, t: toy.log_masked_posterior(xt), process.grid(N))) for N in (4, 32, 256)]
    off = [(p - one).abs().sum().item() for one in laws]
    # Two masks that go in the same step are drawn independently; the chance of that is 1 / N.
    torch.testing.assert_close(laws[0], 3 / 4 * p + torch.outer(toy.p.sum(1), toy.p.sum(0)).flatten() / 4)
    assert off[1] == pytest.approx(off[0] / 8) and off[2] == pytest.approx(off[0] / 64)


@pytest.mark.parametrize("steps", [8, 32])
def test_samples_follow_the_law_of_their_steps(process, toy, steps, predictor):
    network = randn(16, 2, 4, seed=1) + toy.log_masked_posterior(states()).clamp(min=-1)

    def log_p(xt: Tensor, t: Tensor) -> Tensor:
        return process.denoised(network[4 * xt[:, 0] + xt[:, 1]], xt, t)

    count, times = 20_000, process.grid(steps)
    x = process.prior((count, 2), generator())
    x = sample_ancestral(process, predictor(log_p), x, times, generator=generator(7))
    expected = of_texts(law(process, log_p, times))
    counts = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9)
    assert x.max() < MASK and len(counts) == 9
    assert stats.chisquare(counts.numpy(), (expected * count).numpy()).pvalue > 1e-3


# Reverse steps


def bayes(theta: Tensor, t: float, s: float) -> Tensor:
    """p(x_s | x_t = mask) [V] by summing over x_0 ~ theta, for alpha = 1 - t."""
    V = len(theta)
    mask = torch.nn.functional.one_hot(torch.tensor(V - 1), V).double()
    q_s = (1 - s) * torch.eye(V).double() + s * mask  # [x0, xs]
    q_t_of_s = torch.where(mask > 0, mask, 1 - (1 - t) / (1 - s))  # q(x_t = mask | x_s)
    joint = theta @ q_s * q_t_of_s
    return joint / joint.sum()


@pytest.mark.parametrize(("t", "s"), [(0.7, 0.3), (1.0, 0.25), (0.02, 0.01)])
def test_reverse_steps_equal_bayes(t, s):
    tokens, masks, times = torch.eye(4).double()[:3], torch.full((1, 1), MASK), (full(1, t), full(1, s))
    for process, thetas in (
        (MaskedProcess(4, MASK, loglinear(epsilon=0)), tokens),
        (d3pm(100), [*tokens, randn(4).softmax(0), f64([0.0, 0.01, 0.0, 0.99])]),
    ):
        for theta in thetas:
            ours = process.reverse(theta.log().view(1, 1, 4), masks, *times)[0, 0]
            torch.testing.assert_close(ours, bayes(theta, t, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "T"), [(3, 10), (10, 10), (2, 1000), (1, 10)])
def test_closed_divergences_equal_the_sum_over_states(k, T):
    process, t, s = d3pm(T), full(1, k / T), full(1, (k - 1) / T)
    masks, x0 = torch.full((1, 1), MASK), torch.tensor([[1]])
    log_p = process.denoised(randn(1, 1, 4), masks, t)
    q = bayes(torch.eye(4).double()[1], k / T, (k - 1) / T)
    p = process.reverse(log_p, masks, t, s)[0, 0]
    brute = torch.where(q > 0, q * (q / p).log(), 0.0).sum()
    torch.testing.assert_close(process.integrand(log_p, x0, masks, t)[0, 0], T * brute, rtol=1e-9, atol=0)
    plain = bayes(log_p[0, 0].exp(), k / T, (k - 1) / T)  # at s = 0 this leaves masks
    brute = torch.where(q > 0, q * (q / plain).log(), 0.0).sum()
    torch.testing.assert_close(process.divergence(log_p, x0, masks, t, s)[0, 0], brute, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.98), (0.6, 0.2), (0.5, 0.0), (1.0, 0.0), (0.02, 0.0)])
def test_steps_are_distributed_as_reverse_says(process, t, s):
    count = 20_000
    xt = torch.tensor([[1, MASK, MASK]]).expand(count, 3)
    log_p = process.denoised(2 * randn(1, 3, 4).expand(count, 3, 4), xt, full(count, t))
    probs = process.reverse(log_p, xt, full(count, t), full(count, s))[0]
    torch.testing.assert_close(probs.sum(-1), torch.ones(3).double())
    xs = process.step(log_p, xt, full(count, t), full(count, s), generator())
    assert (xs[:, 0] == 1).all() and probs[0, 1] == 1
    for i in (1, 2):
        possible = probs[i] > 0
        counts = torch.bincount(xs[:, i], minlength=4)
        assert counts[~possible].sum() == 0 and possible[MASK] == (s > 0)
        assert stats.chisquare(counts[possible].numpy(), count * probs[i][possible].numpy()).pvalue > 1e-3


def test_a_step_draws_as_much_whatever_it_changes(process):
    after = []
    for xt in (torch.zeros(3, 5).long(), torch.full((3, 5), MASK)):
        draws, t = generator(), full(3, 0.5)
        process.step(process.denoised(torch.zeros(3, 5, 4), xt, t), xt, t, t - 0.1, draws)
        after.append(torch.rand(1, generator=draws))
    assert after[0] == after[1]


@pytest.mark.parametrize("name", SURVIVALS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_mask_is_left_at_the_end(name, steps, predictor):
    process = mdlm(name)
    x = process.prior((50, 6), generator())
    assert (x == MASK).all()
    predict = predictor(lambda xt, t: process.denoised(torch.zeros(50, 6, 4), xt, t))
    x = sample_ancestral(process, predict, x, process.grid(steps), generator=generator())
    assert (x < MASK).all()


def test_a_sample_does_not_depend_on_its_batch_nor_on_padding(process, predictor):
    def sample(seeds: list[int], length: int) -> Tensor:
        x = process.prior((len(seeds), length), generator())
        network = randn(4, 4)  # sees its own position

        def log_p(xt: Tensor, t: Tensor) -> Tensor:
            return process.denoised(network[xt], xt, t)

        draws = SampleGenerators(seeds, lengths=[4] * len(seeds))
        return sample_ancestral(process, predictor(log_p), x, process.grid(10), generator=draws)[:, :4]

    assert torch.equal(sample([5], 4)[0], sample([3, 5, 8], 7)[1])


# Corruption, losses and their edges


def test_tokens_are_masked_at_the_chance_of_their_time(process):
    times = f64([0.0, 0.05, 0.5, 0.93, 1.0])
    x0 = torch.randint(3, (5, 40_000), generator=generator())
    xt = process.corrupt(x0, times, generator())
    chance = process.survival.move_chance(times) if isinstance(process, MaskedProcess) else times
    rate = (xt == MASK).double().mean(1)
    assert ((rate - chance).abs() <= 4 * (chance * (1 - chance) / 40_000).sqrt()).all()
    assert torch.equal(xt[xt != MASK], x0[xt != MASK]) and rate[0] == 0


def test_mdlm_never_predicts_the_mask():
    process, xt = mdlm(), torch.tensor([[MASK, 2, 0]])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        p = process.denoised((5 * randn(1, 3, 4)).to(dtype), xt, full(1, 0.5)).exp()
        assert p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (p.sum(-1) - 1).abs().max() < 1e-6 and (p[..., MASK] == 0).all()


def test_d3pm_predicts_the_mask_unless_told_not_to():
    xt, t, logits = torch.tensor([[MASK, 2]]), full(1, 0.5), randn(1, 2, 4)
    torch.testing.assert_close(d3pm().denoised(logits, xt, t), logits.log_softmax(-1))
    p = d3pm(zero_mask_prob=True).denoised(logits, xt, t).exp()
    assert (p[..., MASK] == 0).all()
    torch.testing.assert_close(p[..., :MASK], logits[..., :MASK].softmax(-1))


def test_without_mask_probability_the_discrete_loss_is_the_continuous_one():
    xt, x0, T = torch.full((5, 3), MASK), torch.randint(3, (5, 3), generator=generator()), 10
    logits, t = randn(5, 3, 4), torch.arange(1, 6).double() * 2 / T
    discrete = d3pm(T, zero_mask_prob=True).loss(logits, x0, xt, t)
    torch.testing.assert_close(discrete, mdlm().loss(logits, x0, xt, t), **EXACT)


def test_seen_positions_have_no_loss_and_no_gradient(process):
    x0 = torch.tensor([[0, 1, 2, 1]])
    xt = torch.tensor([[MASK, 1, 0, MASK]])  # position 2 shows another token, which the network holds for certain
    for t in (0.02, 0.5, 1.0):
        logits = randn(1, 4, 4)
        logits[0, 1] = f64([90.0, -90.0, 0.0, 90.0])
        logits.requires_grad_()
        loss = process.loss(logits, x0, xt, full(1, t))
        assert (loss[0, [1, 2]] == 0).all() and (loss[0, [0, 3]] > 0).all()
        loss.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad[0, [1, 2]] == 0).all()
        assert (logits.grad[0, [0, 3]] != 0).any(-1).all()


def test_clean_text_has_no_loss_even_at_time_zero():
    x0 = torch.tensor([[0, 1, 2]])
    for process in (mdlm(), mdlm("linear"), mdlm(importance_sampling=True)):
        assert (process.loss(randn(1, 3, 4), x0, x0, full(1, 0.0)) == 0).all()


@pytest.mark.parametrize("T", [1, 2, 10, 100, 1000])
@pytest.mark.parametrize("mask_logit", [0.0, 80.0, -80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discrete_losses_and_gradients_are_finite_at_both_ends(T, mask_logit, dtype):
    x0 = torch.tensor([[0, 1], [2, 0]])
    logits = randn(2, 2, 4).to(dtype)
    logits[..., MASK] = mask_logit
    logits.requires_grad_()
    loss = d3pm(T).loss(logits, x0, torch.full((2, 2), MASK), f64([1 / T, 1.0]))
    loss.sum().backward()
    assert loss.isfinite().all() and (loss > 0).all() and logits.grad.isfinite().all()


def test_losses_are_averaged_over_a_batch_as_over_its_samples(process):
    x0, t = torch.randint(3, (4, 5), generator=generator()), f64([0.1, 0.4, 0.7, 1.0])
    xt, valid = process.corrupt(x0, t, generator()), torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    logits = randn(4, 5, 4)
    together = mean_over_valid(process.loss(logits, x0, xt, t), valid)
    for i, n in enumerate((5, 2, 3, 1)):
        alone = process.loss(logits[i : i + 1, :n], x0[i : i + 1, :n], xt[i : i + 1, :n], t[i : i + 1])
        torch.testing.assert_close(together[i], alone.mean())


# One draw of the bound


def test_masks_are_as_many_as_u_says_anywhere_with_the_move_chance_that_made_them():
    count, n = 30_000, 4
    x0 = torch.zeros(count, 6).long()
    free = torch.tensor([True, False, True, True, False, True]).expand(count, 6)
    for k in range(1, n + 1):
        xt, move, weight = mask_some(x0, free, full(count, (k - 0.01) / n), generator(k), MASK)
        is_masked = xt == MASK
        assert (is_masked.sum(1) == k).all() and not is_masked[~free].any() and (weight == n / k).all()
        share = is_masked[:, [0, 2, 3, 5]].double().mean(0)
        assert (share - k / n).abs().max() < 0.015
        assert stats.kstest(move.numpy(), stats.beta(k, n - k + 1).cdf).pvalue > 1e-3


def test_the_ends_of_u_choose_one_mask_and_all():
    x0, free = torch.zeros(2, 3).long(), torch.ones(2, 3, dtype=torch.bool)
    xt, _, weight = mask_some(x0, free, f64([0.0, 1 - 2**-53]), generator(), MASK)
    assert (xt == MASK).sum(1).tolist() == [1, 3] and weight.tolist() == [3.0, 1.0]


def test_bounds_leave_alone_what_is_not_free(process, predictor):
    free = torch.tensor([[True, True, False], [False, True, True], [False, False, False]]).repeat(200, 1)
    x0 = torch.randint(3, free.shape, generator=generator())
    x0[~free] = torch.randint(4, free.shape, generator=generator())[~free]  # given masks are not to be filled
    seen = []

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        seen.append((xt, t))
        return process.denoised(torch.zeros(*xt.shape, 4), xt, t)

    u = (torch.arange(len(x0)) + 0.5) / len(x0)
    nats = process.bound(predictor(predict), x0, free, u, generator())
    ((xt, t),) = seen
    assert torch.equal(xt[~free], x0[~free]) and t.dtype == torch.float64 and ((t >= 0) & (t <= 1)).all()
    assert nats.dtype == torch.float64 and torch.equal(nats > 0, free & (xt == MASK)) and (nats >= 0).all()
    assert (nats > 0).any() and (x0[2::3] == MASK).any() and (nats[2::3] == 0).all()


def test_a_discrete_bound_is_the_divergence_of_the_step_that_u_chooses(toy, predictor):
    process, seen = d3pm(8), []

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        seen.append((xt, t))
        return toy.log_masked_posterior(xt)

    count = 40_000
    x0, u = toy.texts[[4]].expand(count, 2), (torch.arange(count) + 0.5) / count
    nats = process.bound(predictor(predict), x0, torch.ones(count, 2, dtype=torch.bool), u, generator())
    ((xt, t),) = seen
    assert torch.equal(t, ((8 * u).floor() + 1) / 8)
    torch.testing.assert_close(nats, process.integrand(toy.log_masked_posterior(xt), x0, xt, t))
    exact = toy.golden["d3pm_absorbing_T_step_elbo"]["T8"]["per_x"][1][1]
    draws = nats.sum(1)
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(count)


# Times, grids, options


def test_training_times_stay_in_their_part_of_the_range(process):
    u = f64([0.0, 0.3, 1 - 2**-53])
    for T_k in (process.timesteps // 5, process.timesteps):
        t = process.times(u, range(T_k))
        assert t.dtype == torch.float64 and (t > 0).all() and (t <= T_k / process.timesteps + 1e-15).all()
        assert t[-1].item() == pytest.approx(T_k / process.timesteps)
    even = mdlm("cosine", importance_sampling=True)
    t = even.times(f64([0.0, 0.5, 1.0]), range(200))
    move = even.survival.move_chance(t).log()
    assert t[-1].item() == pytest.approx(0.2) and move.diff()[0].item() == pytest.approx(move.diff()[1].item())


def test_grids_fall_from_one_to_zero():
    assert mdlm().grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert d3pm(10).grid(5) == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert len(mdlm().grid(5000)) == 5001


@pytest.mark.parametrize(("make", "steps"), [(mdlm, 0), (d3pm, 0), (d3pm, 1001)])
def test_impossible_numbers_of_steps_are_refused_in_one_line(make, steps):
    with pytest.raises(DiffusionError, match="--sampling_timesteps") as error:
        make().grid(steps)
    assert "\n" not in str(error.value)


def test_each_is_a_token_process(process):
    assert isinstance(process, TokenProcess) and process.vocab_size == 4


def test_options_are_flags():
    masked, discrete = HfArgumentParser([MaskedOptions, D3PMOptions]).parse_args_into_dataclasses(["--zero_mask_prob"])
    assert (masked.importance_sampling, discrete.zero_mask_prob) == (False, True)
