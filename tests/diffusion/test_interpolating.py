"""GIDD: figures, and the properties that make them right.

golden/discrete/gidd_*.json holds figures from running the public reference code (`_upstream`) and from independent
float64 formulas where that code is wrong or inexact (`_exact`, `_published`).
"""

import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd.functional import jacobian
from transformers import HfArgumentParser

from diffusion.interpolating import InterpolatingOptions, InterpolatingProcess
from diffusion.process import DiffusionError, TokenProcess
from diffusion.randomness import SampleGenerators
from diffusion.samplers import sample_ancestral

SHARES = (0.0, 0.1, 0.5)
V, MASK = 8, 7


def process(p_uniform=0.1, vocab_size=V, mask_id=MASK, **options) -> InterpolatingProcess:
    return InterpolatingProcess(vocab_size, mask_id, p_uniform=p_uniform, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(figures) -> torch.Tensor:
    """Golden figures in float64, nan where they are undefined."""
    if isinstance(figures, list) and figures and not isinstance(figures[0], (int, float, type(None))):
        return torch.stack([tensor(row) for row in figures])
    return torch.tensor([math.nan if x is None else x for x in figures], dtype=torch.float64)


def close(ours, figures, rtol=1e-9, atol=1e-9):
    figures = tensor(figures)
    known = figures.isfinite()
    assert known.any()
    torch.testing.assert_close(ours[known], figures[known], rtol=rtol, atol=atol)


def distribution(p: InterpolatingProcess, t: torch.Tensor) -> torch.Tensor:
    """q_t(z | x) [B, V, V] for x the rows and z the columns, t [B]; the row of the mask is that of absorption."""
    alpha, masked, replaced = (m[:, None, None] for m in p.marginal(t))
    ids = torch.arange(p.vocab_size)
    noise = torch.where(ids == p.mask_id, masked, replaced / (p.vocab_size - 1))
    return alpha * torch.eye(p.vocab_size, dtype=torch.float64) + noise


def transition(p: InterpolatingProcess, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """q(x_t | x_s) [B, V, V] by its definition: what the marginals leave to do between s and t."""
    eye = torch.eye(p.vocab_size, dtype=torch.float64)
    kept = (p.marginal(t)[0] / p.marginal(s)[0])[:, None, None]
    noise_s, noise_t = (distribution(p, r) - p.marginal(r)[0][:, None, None] * eye for r in (s, t))
    return kept * eye + noise_t - kept * noise_s


def random_case(p, B=5, L=6, seed=0, scale=1.5):
    """x0, xt, t and a prediction in float64, with masks, right and (where there are any) wrong tokens."""
    clean = torch.tensor([i for i in range(p.vocab_size) if i != p.mask_id])
    x0 = clean[torch.randint(0, len(clean), (B, L), generator=generator(seed))]
    t = torch.linspace(0.05, 0.95, B, dtype=torch.float64)
    xt = p.corrupt(x0, t, generator(seed + 1))
    output = scale * torch.randn(B, L, p.vocab_size, generator=generator(seed + 2), dtype=torch.float64)
    return x0, xt, t, output


# Figures


@pytest.mark.parametrize("share", ["0.0", "0.1", "0.2"])
def test_marginals_rates_and_transitions_match_the_figures(discrete_golden, share):
    golden = discrete_golden("gidd_schedule")
    figures, t, p = golden["p_u"][share], tensor(golden["t"]), process(float(share))
    alpha, masked, replaced = p.marginal(t)
    close(alpha, figures["alpha_exact"])
    close(replaced, figures["uniform_mass_total"])
    q = distribution(p, t)
    close(q[:, 0] - alpha[:, None] * torch.eye(V, dtype=torch.float64)[0], figures["beta_pi_exact"])
    # weights times q are the rates into a state
    x0, mask, wrong = torch.zeros(len(t), 1, dtype=torch.long), torch.full((len(t), 1), MASK), torch.ones(len(t), 1)
    close(p.weights(x0, mask, t)[:, 0] * q[:, 0, MASK], figures["rate_into_mask_exact"])
    for xt in (x0, wrong.long()):
        rate = p.weights(x0, xt, t)[:, 0] * q[:, 0].gather(1, xt)[:, 0]
        close(rate, figures["rate_into_each_clean_token_exact"])
    everywhere = p.weights(x0.expand(-1, V), torch.arange(V).expand(len(t), V), t)
    close(-(everywhere * q[:, 0]).sum(1), figures["alpha_ratio_exact"])
    for case in figures["transitions_exact"]:
        s, u = (torch.tensor([case[name]], dtype=torch.float64) for name in ("s", "t"))
        kept = (p.marginal(u)[0] / p.marginal(s)[0]).item()
        assert kept == pytest.approx(case["alpha_t_given_s"], rel=1e-9)
        close(transition(p, s, u)[0, 0] - kept * torch.eye(V, dtype=torch.float64)[0], case["beta_pi_t_given_s"])


def test_training_times_match_the_figures(discrete_golden):
    figures = discrete_golden("gidd_schedule")["time_sampling"]
    u = (torch.arange(8, dtype=torch.float64) / 8 + figures["shared_uniform"]) % 1
    close(process().times(u, range(1000)), figures["low_discrepancy_t"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", ["0.0", "0.1", "0.2"])
def test_losses_match_the_figures(discrete_golden, share):
    golden = discrete_golden("gidd_losses")
    figures, inputs = golden["p_u"][share], golden["inputs"]
    x0, xt = (torch.tensor(inputs[name]) for name in ("x", "z"))
    t, output = tensor(inputs["t"]), tensor(inputs["logits"])
    possible = torch.tensor([[kind != "u" or share != "0.0" for kind in row] for row in inputs["kind"]])

    def check(ours, name_or_figures):
        figure = figures[name_or_figures] if isinstance(name_or_figures, str) else name_or_figures
        close(ours[possible], tensor(figure)[possible].tolist())

    raw = process(float(share), weights="raw")
    x0_hat = raw.denoised(output, xt, t)
    check(raw.weights(x0, xt, t), "elbo_weights_exact")
    check(raw.integrand(x0_hat, x0, xt, t), "elbo_per_token_exact")
    check(raw.loss(output, x0, xt, t), "elbo_per_token_exact")
    weighed = raw.weights(x0, xt, t) > 0
    divergence = tensor(figures["kl_exact"]) + tensor(figures["is_divergence_exact"])
    torch.testing.assert_close(raw.divergence(x0_hat, x0, xt, t)[weighed], divergence[weighed], rtol=1e-9, atol=1e-9)

    dynamic = process(float(share), weights="dynamic", max_weight=1.0)
    check(dynamic.loss(output, x0, xt, t), figures["dynamic_published"]["loss_per_token_vocab_is_clean_count"])
    for scale in (1, 2):
        clipped = process(float(share), weights="clip", max_weight=scale).loss(output, x0, xt, t)
        if share == "0.0":  # the public code has a little uniform noise even then; the exact weights, cut
            theirs = tensor(figures["elbo_weights_exact"]).clamp(max=scale) * divergence
            torch.testing.assert_close(clipped[weighed], theirs[weighed], rtol=1e-9, atol=1e-9)
            close(clipped[possible], tensor(figures[f"clip_max{scale}_upstream"]["loss_per_token"])[possible].tolist(),
                  rtol=2e-6, atol=2e-6)  # fmt: skip
        else:
            check(clipped, figures[f"clip_max{scale}_upstream"]["loss_per_token"])


def test_reverse_steps_match_the_figures(discrete_golden):
    golden = discrete_golden("gidd_reverse")
    output = tensor(golden["inputs"]["logits"])
    cases = [case for case in golden["cases"] if case["min_p"] == 0]
    assert {case["p_u"] for case in cases} == {0.0, 0.1, 0.2}
    for case in cases:
        p, xt = process(case["p_u"]), torch.tensor(case["z_t"])
        t, s = (torch.full((len(xt),), case[name], dtype=torch.float64) for name in ("t", "s"))
        tolerance = 2e-6 if case["p_u"] == 0 else 1e-9  # the public code has a little uniform noise even at p_u = 0
        ours = p.reverse(p.denoised(output, xt, t), xt, t, s)
        close(ours, case["probs_upstream"], rtol=tolerance, atol=tolerance)


def test_the_sampling_grid_has_the_corrected_steps_of_the_figures(discrete_golden):
    """But for their margin at both ends, which nothing here needs; the public code skips the first step."""
    figures = discrete_golden("gidd_reverse")["time_grid"]
    margin, grid = figures["t_eps"], tensor(process().grid(figures["steps"]))
    close(margin + (1 - 2 * margin) * torch.stack([grid[:-1], grid[1:]], dim=1), figures["corrected_pairs"])


# The process


def test_without_uniform_noise_it_is_mdlm():
    p = process(0.0, weights="raw")
    x0, xt, t, output = random_case(p, B=40)
    alpha, masked, replaced = p.marginal(t)
    assert torch.equal(alpha, 1 - t) and torch.equal(masked, t) and (replaced == 0).all()
    log_p = p.denoised(output, xt, t).gather(-1, x0[..., None]).squeeze(-1)
    expected = torch.where(xt == MASK, -log_p / t[:, None], 0.0)
    assert ((xt == MASK) | (xt == x0)).all() and (xt == MASK).any() and (xt == x0).any()
    for ours in (p.loss(output, x0, xt, t), p.integrand(p.denoised(output, xt, t), x0, xt, t)):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    dynamic = process(0.0, weights="dynamic", max_weight=0.5).loss(output, x0, xt, t)
    torch.testing.assert_close(dynamic, (t * (1 - t))[:, None] * expected, rtol=1e-10, atol=0)


def test_a_small_share_of_noise_is_near_none():
    """The formulas for p_u = 0 are the limit of the others."""
    none, little = process(0.0, weights="raw"), process(1e-13, weights="raw")
    x0, xt, t, output = random_case(none)
    torch.testing.assert_close(little.loss(output, x0, xt, t), none.loss(output, x0, xt, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_the_share_of_uniform_noise_is_p_u_at_half_time_and_none_at_the_ends(share):
    alpha, masked, replaced = process(share).marginal(torch.tensor([0.0, 0.5, 1.0]))
    assert alpha.tolist() == pytest.approx([1, (1 - share) / 2, 0], abs=1e-15)
    assert masked.tolist() == pytest.approx([0, (1 - share) / 2, 1], abs=1e-15)
    assert replaced.tolist() == pytest.approx([0, share, 0], abs=1e-15)


@pytest.mark.parametrize("share", SHARES)
def test_transitions_are_distributions_that_compose(share):
    p = process(share)
    times = torch.tensor([0, 0.01, 0.3, 0.5, 0.500001, 0.9, 1.0], dtype=torch.float64)
    r, s, t = torch.combinations(times, 3).T
    one, two, both = transition(p, r, s), transition(p, s, t), transition(p, r, t)
    assert min(one.min(), two.min()) >= -1e-15
    torch.testing.assert_close(both.sum(-1), torch.ones(len(r), V, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(one @ two, both, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_weights_are_the_rates_of_the_marginals(share):
    """omega(z) = (beta pi)'(z) - alpha' / alpha (beta pi)(z), differentiated; the weights times q."""
    p, t = process(share), torch.linspace(0.03, 0.97, 9, dtype=torch.float64)
    alpha, *noise = p.marginal(t)
    d_alpha, *d_noise = (d.diagonal() for d in jacobian(lambda t: p.marginal(t), t))
    into_mask, into_clean = (d - d_alpha / alpha * m for d, m in zip(d_noise, noise, strict=True))
    q = distribution(p, t)[:, 0]
    x0 = torch.zeros(len(t), V, dtype=torch.long)
    rates = p.weights(x0, torch.arange(V).expand(len(t), V), t) * q
    torch.testing.assert_close(rates[:, MASK], into_mask, rtol=1e-9, atol=1e-12)
    for z in (0, 3):
        torch.testing.assert_close(rates[:, z], into_clean / (V - 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rates.sum(1), -d_alpha / alpha, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("share", "mask_id"), [(0.0, 3), (0.5, 3), (0.5, 0)])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.6, 1.0])
def test_corruption_has_the_marginal_distribution(share, mask_id, t):
    p, n = process(share, 4, mask_id), 20_000
    x0 = 1 if mask_id else 2
    xt = p.corrupt(torch.full((n, 2), x0), torch.full((n,), t), generator())
    q = distribution(p, torch.tensor([t]))[0, x0]
    counts = torch.bincount(xt.flatten(), minlength=4)
    assert (counts[q == 0] == 0).all()
    assert stats.chisquare(counts[q > 0].numpy(), (2 * n * q[q > 0]).numpy()).pvalue > 1e-3 or (q > 0).sum() == 1


def test_both_ends_are_exact():
    p, x0 = process(0.5), torch.randint(0, MASK, (50, 40), generator=generator())
    assert torch.equal(p.corrupt(x0, torch.zeros(50), generator()), x0)
    assert (p.corrupt(x0, torch.ones(50), generator()) == MASK).all()
    assert torch.equal(p.prior((50, 40), generator()), torch.full((50, 40), MASK))


def test_the_grid_is_even_and_reaches_both_ends():
    assert process().grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    grid = process().grid(1000)
    assert len(grid) == 1001 and grid[0] == 1 and grid[-1] == 0 and sorted(set(grid), reverse=True) == grid


def test_training_times_fill_the_range_and_avoid_the_ends():
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert process().times(u, range(1000)).tolist() == pytest.approx([1e-4, 0.5, 1 - 1e-4], abs=1e-12)
    assert process().times(u, range(200)).tolist() == pytest.approx([1e-4, 0.10005, 0.2], abs=1e-12)


# Prediction, loss, bound


@pytest.mark.parametrize("mask_id", [0, 3, 7])
def test_denoised_excludes_the_mask_and_copies_nothing(mask_id):
    p = process(mask_id=mask_id)
    x0, xt, t, output = random_case(p)
    output[..., mask_id] = 1e4
    log_p = p.denoised(output.float(), xt, t)
    assert (log_p[..., mask_id] == -torch.inf).all() and log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, 6), rtol=1e-5, atol=0)
    assert log_p.exp().max() < 1  # visible tokens are not known for certain
    assert p.denoised(output.bfloat16(), xt, t).dtype == torch.float32
    assert p.denoised(output, xt, t).dtype == torch.float64


@pytest.mark.parametrize("share", SHARES)
def test_the_divergence_is_that_of_full_distributions(share):
    """Brute force over all ids."""
    p = process(share)
    x0, xt, t, output = random_case(p, B=30)
    x0_hat = p.denoised(output, xt, t)
    q = distribution(p, t)
    given_x = q[torch.arange(30)[:, None], x0]
    alpha = p.marginal(t)[0][:, None, None]
    given_model = alpha * x0_hat.exp() + (given_x - alpha * torch.nn.functional.one_hot(x0, V))
    kl = torch.where(given_x > 0, given_x * (given_x / given_model).log(), 0.0).sum(-1)
    ratio = (given_x / given_model).gather(-1, xt[..., None]).squeeze(-1)
    weighed = p.weights(x0, xt, t) > 0
    ours = p.divergence(x0_hat, x0, xt, t)
    torch.testing.assert_close(ours[weighed], (kl + ratio - ratio.log() - 1)[weighed], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_the_integrand_is_positive_and_0_only_for_certainty_about_x0(share):
    p = process(share)
    x0, xt, t, output = random_case(p, B=200)
    counted = p.weights(x0, xt, t) > 0
    nats = p.integrand(p.denoised(output, xt, t), x0, xt, t)
    assert (nats[counted] > 0).all() and (nats >= 0).all()
    assert (p.integrand(p.denoised(20 * output, xt, t), x0, xt, t) >= -1e-12).all()
    certain = torch.nn.functional.one_hot(x0, V).double().log()
    torch.testing.assert_close(p.integrand(certain, x0, xt, t), torch.zeros_like(nats), rtol=0, atol=1e-12)


def test_the_divergence_is_flat_at_certainty_about_x0():
    """With uniform noise it vanishes to second order; a cross-entropy would not."""
    p = process(0.5)
    x0, xt, _, _ = random_case(p, B=200)
    t = torch.full((200,), 0.5, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(x0, V).double()
    clean = (torch.arange(V) != MASK).double() / (V - 1)
    slopes = []
    for mixed in (1e-3, 1e-4):
        x0_hat = ((1 - mixed) * one_hot + mixed * clean).log()
        slopes.append(p.divergence(x0_hat, x0, xt, t).max().item() / mixed)
    assert slopes[0] < 0.1 and slopes[1] == pytest.approx(slopes[0] / 10, rel=0.05)


def test_weights_are_nearly_the_dynamic_ones_over_time():
    """Dynamic over bound weights: 2 t (1 - t) w_max for masks and wrong tokens, sqrt(1 + c_t / t) more for right ones,
    to 1 / V; the weight of right tokens grows with time."""
    p = process(0.1, 30_001, 30_000, weights="dynamic", max_weight=3.0)
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    x0, xt = torch.zeros(25, 3, dtype=torch.long), torch.tensor([[30_000, 1, 0]]).expand(25, 3)
    x0_hat = torch.full((25, 3, 30_001), math.log(1 / 30_000), dtype=torch.float64)
    x0_hat[..., -1] = -torch.inf
    ratio = p.loss(x0_hat, x0, xt, t) / p.integrand(x0_hat, x0, xt, t)
    expected = (2 * t * (1 - t) * 3)[:, None].repeat(1, 3)
    torch.testing.assert_close(ratio[:, :2], expected[:, :2], rtol=1e-9, atol=0)
    c = 2 / 9 * (t * (1 - t)).sqrt()
    torch.testing.assert_close(ratio[:, 2], expected[:, 2] * (1 + c / t).sqrt(), rtol=1e-3, atol=0)
    right = ratio[:, 2] * p.weights(x0, xt, t)[:, 2]
    assert (right.diff() > 0).all()


@pytest.mark.parametrize(("share", "weights"), list(product(SHARES, ["dynamic", "clip", "raw"])))
def test_loss_and_gradient_are_finite_in_single_precision_for_any_logits(share, weights):
    p = process(share, weights=weights)
    x0 = torch.randint(0, MASK, (4, 60), generator=generator())
    t = p.times(torch.tensor([0.0, 0.01, 0.5, 1.0]), range(1000))
    xt = p.corrupt(x0, t, generator(1))
    for scale in (1, 1000):
        output = (scale * torch.randn(4, 60, V, generator=generator(2))).requires_grad_()
        loss = p.loss(output, x0, xt, t)
        exact = p.loss(output.detach().double(), x0, xt, t)
        torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-4)
        (grad,) = torch.autograd.grad(loss.sum(), output)
        assert torch.isfinite(loss).all() and (loss >= -1e-4).all() and torch.isfinite(grad).all()
    assert p.loss(output.detach().bfloat16(), x0, xt, t).isfinite().all()


def test_half_precision_logits_lose_nothing_in_the_loss():
    p = process(0.2, weights="raw")
    x0, xt, t, output = random_case(p)
    output = output.bfloat16()
    torch.testing.assert_close(p.loss(output, x0, xt, t), p.loss(output.double(), x0, xt, t), rtol=1e-4, atol=1e-4)


def seen_by(p, xt, t):
    """q_t(x_t | x_0 = v) [B, L, N]: what each position tells of its own clean token."""
    q = distribution(p, t)[:, : p.mask_id]  # [B, N, V]
    return q.gather(2, xt[:, None].expand(-1, p.mask_id, -1)).transpose(1, 2)


def exact(toy, p, kind):
    """The exact denoiser `cavity` or `posterior` of the toy, as log-probabilities with a column for the mask."""

    def predict(xt, t, at=None):
        x0_hat = torch.nn.functional.pad(getattr(toy, kind)(seen_by(p, xt, t)), (0, 1)).log()
        return x0_hat if at is None else at.of(x0_hat)

    return predict


def integral(toy, p, predict, points=600):
    """The bound of each text [X]: an exact sum over x_t, and quadrature over t, dense at both ends."""
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(points))
    u = (1 + nodes) / 2
    t, dt = u**3 * (10 - 15 * u + 6 * u**2), 15 * (u * (1 - u)) ** 2 * weights
    total = torch.zeros(9, dtype=torch.float64)
    for xt in product(range(4), repeat=2):
        z = torch.tensor(xt).expand(points, 2)
        x0_hat = predict(z, t)
        q = distribution(p, t)
        for i, text in enumerate(toy.texts):
            likely = q[:, text[0], xt[0]] * q[:, text[1], xt[1]]
            nats = p.integrand(x0_hat, text.expand(points, 2), z, t).sum(1)
            total[i] += torch.where(likely > 0, likely * nats * dt, 0.0).sum()
    return total


@pytest.mark.parametrize("share", SHARES)
def test_the_cavity_gives_the_likelihood_and_the_posterior_does_not(toy, share):
    p = process(share, 4, 3)
    figures = toy.golden["gidd_continuous"]["quadrature"][str(share)]
    ours = integral(toy, p, exact(toy, p, "cavity"))
    torch.testing.assert_close(ours, toy.nll, rtol=0, atol=1e-6)
    close(ours, [x for row in figures["leave_one_out"] for x in row], rtol=0, atol=1e-6)
    wrong = integral(toy, p, exact(toy, p, "posterior"))
    close(wrong, [x for row in figures["plain_posterior_wrong"] for x in row], rtol=0, atol=1e-6)
    assert share == 0 or (wrong - toy.nll).abs().max() > 0.2


def test_the_denoisers_of_the_toy_are_those_of_the_figures(toy):
    tables = toy.golden["gidd_continuous"]["denoiser_tables"]
    p = process(tables["p_u"], 4, 3)
    for row in tables["rows"]:
        seen = seen_by(p, torch.tensor([row["z"]]), torch.tensor([tables["t"]], dtype=torch.float64))
        close(toy.cavity(seen)[0], row["leave_one_out"])
        close(toy.posterior(seen)[0], row["plain_posterior"])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_mean_of_the_bound_is_the_likelihood(toy, share):
    p, n = process(share, 4, 3), 40_000
    u = (torch.arange(n) + torch.rand(n, generator=generator(5))) / n
    for text, nll in zip(toy.texts[[0, 5]], toy.nll[[0, 5]], strict=True):
        x0 = text.expand(n, 2)
        draws = p.bound(exact(toy, p, "cavity"), x0, torch.ones(n, 2, dtype=torch.bool), u, generator()).sum(1)
        assert (draws >= -1e-9).all() and draws.isfinite().all()
        assert draws.mean().item() == pytest.approx(nll.item(), abs=4 * draws.std().item() / n**0.5)
        assert draws.std().item() / n**0.5 < 0.05


def test_the_bound_counts_free_positions_only_and_shows_the_others_as_they_are(toy):
    p, n = process(0.3, 4, 3), 2000
    x0, free = torch.tensor([[1, 2]]).expand(n, 2), torch.tensor([[True, False]]).expand(n, 2)
    seen = []

    def predict(xt, t, at):
        seen.append(xt)
        return exact(toy, p, "cavity")(xt, t, at)

    u = torch.linspace(0, 1 - 2**-53, n, dtype=torch.float64)  # both ends included
    nats = p.bound(predict, x0, free, u, generator())
    assert nats.dtype == torch.float64 and nats.isfinite().all()
    assert (nats[:, 1] == 0).all() and (seen[0][:, 1] == 2).all() and (seen[0][:, 0] != 1).any()


def test_more_padding_changes_nothing():
    p = process(0.2)
    x0, _, t, output = random_case(p, B=3)
    padded = torch.nn.functional.pad(x0, (0, 4), value=2)
    lengths, u = [6, 4, 5], torch.tensor([0.2, 0.5, 0.8])
    results = []
    for x, extra in ((x0, 0), (padded, 4)):
        free = torch.arange(6 + extra) < torch.tensor(lengths)[:, None]
        wide = torch.nn.functional.pad(output, (0, 0, 0, extra))
        predict = lambda xt, t, at, wide=wide: at.of(p.denoised(wide, xt, t))  # noqa: E731
        results.append(p.bound(predict, x, free, u, SampleGenerators([1, 2, 3], lengths)))
    assert torch.equal(results[0], results[1][:, :6]) and (results[1][:, 6:] == 0).all()


# Reverse step

PAIRS = [(1.0, 0.7), (1.0, 0.0), (0.6, 0.599), (0.6, 0.2), (0.3, 0.0), (1e-3, 0.0), (1.0, 0.999)]


def pair(t, s, B):
    return (torch.full((B,), x, dtype=torch.float64) for x in (t, s))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("t", "s"), PAIRS)
@pytest.mark.parametrize("mask_id", [7, 2])
def test_the_reverse_step_is_bayes_rule(share, t, s, mask_id):
    p = process(share, mask_id=mask_id)
    t, s = pair(t, s, 5)
    x0, _, _, output = random_case(p)
    xt = p.corrupt(x0, t, generator(4))
    x0_hat = p.denoised(output, xt, t)
    ours = p.reverse(x0_hat, xt, t, s)
    torch.testing.assert_close(ours.sum(-1), torch.ones(5, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (ours >= 0).all()
    arrival = transition(p, s, t).clamp(min=0)[torch.arange(5)[:, None], :, xt]  # q(x_t | x_s) [B, L, V]
    joint = arrival * (x0_hat.exp() @ distribution(p, s))
    torch.testing.assert_close(ours, joint / joint.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)
    if s[0] == 0:
        assert (ours[..., mask_id] == 0).all()
    if share == 0:
        assert (ours.gather(-1, xt[..., None]).squeeze(-1)[xt != mask_id] == 1).all()


@pytest.mark.parametrize(("share", "mask_id"), [(0.0, 3), (0.5, 3), (0.5, 1)])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.4), (0.8, 0.3), (0.5, 0.0), (1.0, 0.0)])
def test_steps_follow_the_reverse_distribution(share, mask_id, t, s):
    p, n = process(share, 4, mask_id), 20_000
    for token in range(4):
        if token != mask_id and t == 1:
            continue  # only masks there
        xt = torch.full((n, 1), token)
        output = torch.tensor([0.3, -0.5, 1.0, 0.1], dtype=torch.float64).expand(n, 1, 4)
        times = tuple(pair(t, s, n))
        x0_hat = p.denoised(output, xt, times[0])
        expected = p.reverse(x0_hat[:1], xt[:1], *(time[:1] for time in times))[0, 0]
        counts = torch.bincount(p.step(x0_hat, xt, *times, generator(token)).flatten(), minlength=4)
        possible = expected > 0
        assert (counts[~possible] == 0).all()
        if possible.sum() > 1:
            assert stats.chisquare(counts[possible].numpy(), (n * expected[possible]).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_chain_with_the_exact_estimate_ends_in_p_at_any_number_of_steps(share, steps):
    """L = 1: the estimate without the only position is p(x) itself; the chain's distribution, multiplied out."""
    p = process(share, 4, 3)
    prior = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    state = torch.nn.functional.one_hot(torch.tensor(3), 4).double()
    every, grid = torch.arange(4)[:, None], p.grid(steps)
    for t, s in zip(grid, grid[1:], strict=False):
        state = state @ p.reverse(prior.log().expand(4, 1, 4), every, *pair(t, s, 4))[:, 0]
    torch.testing.assert_close(state, prior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_samples_of_the_exact_cavity_are_texts(toy, share):
    p, n, asked = process(share, 4, 3), 3000, []

    def predict(xt, t, at=None):
        asked.append(t[0].item())
        return exact(toy, p, "cavity")(xt, t, at)

    g = generator(11)
    samples = sample_ancestral(p, predict, p.prior((n, 2), g), p.grid(200), generator=g)
    assert len(asked) == len(set(asked)) == 200 and asked[0] == 1
    assert toy.p_value(samples) > 1e-3


def test_tokens_that_cannot_be_there_stay():
    """Clamped tokens at t = 1, where the process knows masks only, and tokens that a sharpened estimate rules out."""
    xt = torch.tensor([[0, 1, MASK]])
    for share, (t, s) in product(SHARES, [(1.0, 0.5), (1.0, 0.0)]):
        p = process(share)
        x0_hat = p.denoised(torch.zeros(1, 3, V), xt, torch.ones(1))
        assert torch.equal(p.step(x0_hat, xt, *pair(t, s, 1), generator())[:, :2], xt[:, :2])
    sharp = torch.nn.functional.one_hot(torch.tensor([[4, 4, 4]]), V).double().log()
    assert process(0.0).step(sharp, xt, *pair(0.5, 0.0, 1), generator()).tolist() == [[0, 1, 4]]
    assert process(0.2).step(sharp, xt, *pair(0.5, 0.0, 1), generator()).tolist() == [[4, 4, 4]]


def test_samples_do_not_depend_on_their_batch():
    p, seeds, lengths = process(0.3), [5, 6, 7], [6, 3, 4]

    def sample(rows, L):
        g = SampleGenerators([seeds[i] for i in rows], [lengths[i] for i in rows])

        def predict(xt, t):
            logits = torch.cos(torch.arange(V) * (1 + torch.arange(L)[:, None]) + xt[..., None])
            return p.denoised(3 * logits, xt, t)

        return sample_ancestral(p, predict, p.prior((len(rows), L), g), p.grid(20), generator=g)

    together = sample([0, 1, 2], 6)
    assert len(set(together[0].tolist())) > 1
    for i in range(3):
        assert torch.equal(sample([i], lengths[i])[0], together[i, : lengths[i]])


@pytest.mark.parametrize("share", SHARES)
def test_the_place_of_the_mask_id_does_not_matter(share):
    """Renaming the ids renames every result: the clean ids keep their order."""
    last, second = process(share), process(share, mask_id=1)
    names = torch.tensor([0, 2, 3, 4, 5, 6, 7, 1])  # the new name of each old id
    x0, xt, t, output = random_case(last, B=40)
    renamed = torch.empty_like(output)
    renamed[..., names] = output
    assert torch.equal(second.corrupt(names[x0], t, generator(3)), names[last.corrupt(x0, t, generator(3))])
    torch.testing.assert_close(
        second.loss(renamed, names[x0], names[xt], t), last.loss(output, x0, xt, t), rtol=1e-12, atol=1e-12
    )
    ours = last.reverse(last.denoised(output, xt, t), xt, t, t / 2)
    theirs = second.reverse(second.denoised(renamed, names[xt], t), names[xt], t, t / 2)
    torch.testing.assert_close(theirs[..., names], ours, rtol=1e-12, atol=1e-15)


# Options


def test_command_line_defaults():
    (options,) = HfArgumentParser(InterpolatingOptions).parse_args_into_dataclasses([])
    assert asdict(options) == {"p_uniform": 0.1, "gidd_weights": "dynamic", "gidd_max_weight": 1.0}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"p_uniform": 1.0}, "--p_uniform 1.0"),
        ({"p_uniform": -0.1}, "--p_uniform -0.1"),
        ({"p_uniform": math.nan}, "--p_uniform nan"),
        ({"gidd_weights": "elbo"}, "dynamic, clip, raw"),
        ({"gidd_max_weight": 0.0}, "--gidd_max_weight 0.0"),
        ({"gidd_max_weight": math.inf}, "--gidd_max_weight inf"),
    ],
)
def test_bad_options_are_refused_in_one_line(bad, told):
    with pytest.raises(DiffusionError) as error:
        InterpolatingOptions(**bad)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_is_a_token_process():
    assert isinstance(process(), TokenProcess)
