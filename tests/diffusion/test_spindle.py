"""DiffusionBERT: token frequencies in the schedule, its posteriors and divergences, and a bound that is the likelihood.

Golden figures come from running the public reference code and from independent evaluations of the corrected formulas;
see tests/golden.
"""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from diffusion.masked import D3PMProcess
from diffusion.process import DiffusionError, TokenProcess
from diffusion.samplers import sample_ancestral
from diffusion.spindle import (
    SentenceDeviation,
    SpindleOptions,
    SpindleProcess,
    TypeDeviation,
    _stays,
    frequency_deviation,
    frequency_scores,
    information,
    information_deviation,
    type_deviation,
)

SPINDLES = ["none", "type", "frequency", "information"]
V, MASK, PAD = 13, 12, 0
COUNTS = torch.tensor([0, 4000, 900, 300, 120, 60, 30, 12, 5, 2, 1, 0, 0])  # as uneven as those of words
# The first is one very frequent token among rare ones, which is where information breaks.
SENTENCES = torch.tensor([[1, 10, 9, 11, 8, 10], [2, 4, 8, 9, 3, 7], [10, 1, 7, 5, PAD, PAD], [6, 6, 6, 6, 6, 6]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(spindle: str = "type", spindle_lambda: float = 0.3, timesteps: int = 16, **options) -> SpindleProcess:
    return SpindleProcess.from_options(
        SpindleOptions(spindle=spindle, spindle_lambda=spindle_lambda, **options),
        vocab_size=V,
        mask_id=MASK,
        pad_id=PAD,
        token_counts=COUNTS,
        timesteps=timesteps,
    )


def at(t: float, rows: int = len(SENTENCES)) -> Tensor:
    return torch.full((rows,), t, dtype=torch.float64)


def alphas(process: SpindleProcess, x0: Tensor, steps: int) -> Tensor:
    """alpha [steps + 1, B, L] at t = 0 .. 1."""
    return torch.stack([process.alpha(x0, at(k / steps, len(x0))) for k in range(steps + 1)])


def log_p(seed: int = 0, rows: int = len(SENTENCES)) -> Tensor:
    """A random log p(x0) [B, 6, V] without the mask, float64."""
    logits = 3 * torch.randn(rows, 6, V, generator=generator(seed), dtype=torch.float64)
    logits[..., MASK] = -torch.inf
    return logits.log_softmax(-1)


def certain(x0: Tensor) -> Tensor:
    """log p of a network that knows x0."""
    return torch.nn.functional.one_hot(x0, V).double().log()


def float64(figures) -> Tensor:
    return torch.tensor(figures, dtype=torch.float64)


def nan_for_null(figures) -> Tensor:
    return float64([[math.nan if x is None else x for x in row] for row in figures])


# Frequencies


def test_scores_match_figures_from_running_the_reference_system(discrete_golden):
    golden = discrete_golden("dbert_schedule")
    counts = torch.tensor(golden["counts_upstream"])
    assert torch.bincount(torch.tensor(sum(golden["corpus"], [])), minlength=V).tolist() == counts.tolist()
    torch.testing.assert_close(frequency_scores(counts), float64(golden["frequency_score_upstream"]))
    torch.testing.assert_close(information(counts[:MASK]), float64(golden["entropy_H_add_one"]))
    expected = float64(discrete_golden("dbert_posterior")["inputs"]["type_level_deviation"])
    torch.testing.assert_close(type_deviation(counts, MASK)[:MASK], expected)


def test_deviations_match_figures_from_running_the_reference_system(discrete_golden):
    golden = discrete_golden("dbert_schedule")
    real = torch.tensor(golden["attention_mask"]).bool()
    x0 = torch.tensor(golden["sentences"])
    deviation = frequency_deviation(float64(golden["frequency_score_upstream"])[x0], real)
    torch.testing.assert_close(deviation, float64(golden["frequency_deviation_upstream"]), rtol=0, atol=1e-12)
    H = nan_for_null([golden["entropy_H"]])[0]
    deviation = information_deviation(H[x0], real)
    H_tilde = nan_for_null(golden["entropy_deviation_H_tilde"])
    torch.testing.assert_close(-deviation[real], H_tilde[real], rtol=0, atol=1e-12)
    assert (deviation[~real] == 0).all()


def test_an_unseen_token_has_finite_information_and_is_the_rarest():
    counts = torch.tensor([2, 1, 0])  # of "a a b"
    assert information(counts).tolist() == pytest.approx([math.log(6 / n) for n in (3, 2, 1)], abs=1e-15)
    assert frequency_scores(counts).tolist() == pytest.approx([1, math.log(2) / math.log(3), 0], abs=1e-15)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no token was counted"):
        frequency_scores(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="vocabulary of 14"):
        SpindleProcess.from_options(
            SpindleOptions(), vocab_size=14, mask_id=MASK, pad_id=PAD, token_counts=COUNTS, timesteps=16
        )


# Schedule


@pytest.mark.parametrize(("T", "spindle_lambda"), [("16", "0.1"), ("16", "0.3"), ("2048", "0.3")])
def test_alpha_matches_figures_from_running_the_reference_system(discrete_golden, T, spindle_lambda):
    golden = discrete_golden("dbert_schedule")
    figures = golden["T"][T][f"lambda_{spindle_lambda}"]
    x0, real = torch.tensor(golden["sentences"]), torch.tensor(golden["attention_mask"]).bool()
    t = float64(golden["T"][T]["t"]) / int(T)

    def alpha(scores, deviation):
        process = SpindleProcess(
            V, MASK, SentenceDeviation(scores, deviation, PAD), spindle_lambda=float(spindle_lambda), timesteps=int(T)
        )
        return torch.stack([process.alpha(x0, at(t_k.item())) for t_k in t])

    code = alpha(float64(golden["frequency_score_upstream"]), frequency_deviation)
    torch.testing.assert_close(code, float64(figures["code_unclipped"]), rtol=0, atol=1e-12)
    paper = alpha(nan_for_null([golden["entropy_H"]])[0], information_deviation)
    monotone = torch.tensor(figures["paper_is_monotone"])
    expected = torch.stack([nan_for_null(rows) for rows in figures["paper_unclipped"]])
    torch.testing.assert_close(paper[:, monotone & real], expected[:, monotone & real], rtol=0, atol=1e-12)
    assert monotone.all() == (spindle_lambda == "0.1")
    # The published formula leaves [0, 1] for the others; here they get the steepest bend that does not.
    steepest = (1 - t + torch.sin(math.pi * t) / math.pi)[:, None].expand(-1, int((~monotone).sum()))
    torch.testing.assert_close(paper[:, ~monotone], steepest, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("spindle", "spindle_lambda"), [("none", 0.3), *[(spindle, 0.0) for spindle in SPINDLES]])
def test_without_a_spindle_alpha_is_one_minus_t(spindle, spindle_lambda):
    process = make(spindle, spindle_lambda)
    for k in range(17):
        assert torch.equal(process.alpha(SENTENCES, at(k / 16)), (1 - at(k / 16))[:, None].expand(-1, 6))


@pytest.mark.parametrize("spindle", ["frequency", "information"])
def test_tokens_of_equal_frequency_follow_the_straight_line(spindle):
    t = at(0.3)
    torch.testing.assert_close(make(spindle).alpha(SENTENCES, t)[3], at(0.7, 6), rtol=0, atol=1e-12)


def test_each_schedule_conserves_what_it_promises():
    real, H = (SENTENCES != PAD).double(), information(COUNTS)[SENTENCES]
    published, released, by_type = make("information", 0.01), make("frequency"), make("type")  # 0.01: no clamp

    def mean(alpha: Tensor, weight: Tensor) -> Tensor:
        return (alpha * weight).sum(1) / weight.sum(1)

    for k in range(17):
        t, left = at(k / 16), at(1 - k / 16)
        torch.testing.assert_close(mean(published.alpha(SENTENCES, t), H * real), left, rtol=0, atol=1e-12)
        torch.testing.assert_close(mean(released.alpha(SENTENCES, t), real), left, rtol=0, atol=1e-12)
        of_corpus = by_type.alpha(torch.arange(V)[None], t[:1])
        torch.testing.assert_close(mean(of_corpus, COUNTS[None].double()), left[:1], rtol=0, atol=1e-12)
    # And neither what the other one does.
    assert (mean(published.alpha(SENTENCES, at(0.5)), real) - 0.5)[0].abs() > 1e-3
    assert (mean(released.alpha(SENTENCES, at(0.5)), H * real) - 0.5)[0].abs() > 1e-3


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize("spindle_lambda", [0.1, 0.3, 1 / math.pi])
def test_alpha_falls_from_one_to_zero_and_sooner_for_rare_tokens(spindle, spindle_lambda):
    alpha = alphas(make(spindle, spindle_lambda), SENTENCES, 2000)
    assert (alpha[0] == 1).all() and (alpha[-1] == 0).all()
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert (alpha.diff(dim=0) <= 1e-15).all()
    if spindle != "none":
        order = COUNTS[SENTENCES[0]].argsort()
        assert COUNTS[SENTENCES[0]][order].tolist() == [0, 1, 1, 2, 5, 4000]
        rising = alpha[1:-1, 0][:, order[[0, 1, 3, 4, 5]]].diff(dim=-1)
        assert (rising > 0).all()


def test_only_information_ever_needs_the_clamp():
    for spindle in ("type", "frequency"):
        process = make(spindle, 1 / math.pi)
        d = process.deviation(SENTENCES).expand(4, 6, V).gather(-1, SENTENCES[..., None]).squeeze(-1)
        assert d.abs().max() < 1
        expected = 1 - 0.25 + 1 / math.pi * math.sin(math.pi / 4) * d
        torch.testing.assert_close(process.alpha(SENTENCES, at(0.25)), expected, rtol=0, atol=1e-14)
    assert make("information").deviation(SENTENCES).max() > 1 / (0.3 * math.pi)


def test_padding_is_no_part_of_a_sentence():
    for spindle in ("frequency", "information"):
        process = make(spindle)
        short = process.alpha(SENTENCES[2:3, :4], at(0.4, 1))
        torch.testing.assert_close(process.alpha(SENTENCES[2:3], at(0.4, 1))[:, :4], short, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spindle": "words"}, "none, type, frequency, information"),
        ({"spindle_lambda": 0.32}, "spindle_lambda 0.32"),
        ({"spindle_lambda": -0.1}, "spindle_lambda -0.1"),
        ({"spindle_lambda": math.nan}, "spindle_lambda nan"),
        ({"hybrid_weight": -1.0}, "hybrid_weight"),
        ({"hybrid_weight": math.inf}, "hybrid_weight"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(DiffusionError, match=message) as error:
        SpindleOptions(**options)
    assert "\n" not in str(error.value)


# Corruption and reverse steps


@pytest.mark.parametrize("spindle", SPINDLES)
def test_tokens_survive_with_chance_alpha(spindle):
    process, n = make(spindle), 20_000
    x0 = SENTENCES[:1].expand(n, 6)
    alpha = process.alpha(SENTENCES[:1], at(0.5, 1))[0]
    xt = process.corrupt(x0, at(0.5, n), generator())
    assert ((xt == x0) | (xt == MASK)).all()
    error = ((xt == x0).double().mean(0) - alpha) / (alpha * (1 - alpha) / n).sqrt()
    assert error.abs().max() < 4
    assert torch.equal(process.corrupt(x0, at(0, n), generator()), x0)
    assert torch.equal(process.corrupt(x0, at(1, n), generator()), process.prior((n, 6), generator()))


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_true_posterior_links_the_marginals(spindle):
    """sum over x_t of q(x_t | x_0) q(x_s | x_t, x_0) = q(x_s | x_0): the released code's posterior fails this."""
    process, masked = make(spindle), torch.full_like(SENTENCES, MASK)
    for t, s in ((1 / 16, 0.0), (0.5, 7 / 16), (0.5, 1 / 16), (1.0, 15 / 16), (1.0, 0.0)):
        alpha_t, alpha_s = (process.alpha(SENTENCES, at(time)) for time in (t, s))
        from_mask, from_token = (process.reverse(certain(SENTENCES), xt, at(t), at(s)) for xt in (masked, SENTENCES))
        x_s = (1 - alpha_t)[..., None] * from_mask + alpha_t[..., None] * from_token
        expected = alpha_s[..., None] * certain(SENTENCES).exp()
        expected[..., MASK] = 1 - alpha_s
        torch.testing.assert_close(x_s, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_one_long_step_is_many_short_ones(spindle):
    process, masked = make(spindle), torch.full_like(SENTENCES, MASK)
    stays = 1.0
    for k in range(11, 5, -1):
        stays = stays * process.reverse(certain(SENTENCES), masked, at(k / 16), at((k - 1) / 16))[..., MASK]
    long = process.reverse(certain(SENTENCES), masked, at(11 / 16), at(5 / 16))[..., MASK]
    torch.testing.assert_close(stays, long, rtol=0, atol=1e-14)


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.5, 7 / 16), (0.25, 0.0)])
def test_rows_sum_to_one_seen_tokens_stay_and_no_mask_is_left_at_zero(spindle, t, s):
    process = make(spindle)
    xt = process.corrupt(SENTENCES, at(0.5), generator())
    is_masked = xt == MASK
    probs = process.reverse(log_p(), xt, at(t), at(s))
    torch.testing.assert_close(probs.sum(-1), torch.ones(4, 6, dtype=torch.float64), rtol=0, atol=1e-14)
    assert probs.min() >= 0
    assert torch.equal(probs[~is_masked].argmax(-1), xt[~is_masked]) and (probs[~is_masked].max(-1).values == 1).all()
    assert (probs[is_masked][:, MASK] == 0).all() == (s == 0)
    xs = process.step(log_p(), xt, at(t), at(s), generator())
    assert torch.equal(xs[~is_masked], xt[~is_masked])
    assert s > 0 or not (xs == MASK).any()


@pytest.mark.parametrize("spindle", SPINDLES)
def test_steps_are_drawn_from_the_reverse_probabilities(spindle):
    process, n = make(spindle), 20_000
    xt = torch.tensor([[MASK, 3, MASK, MASK, 1, MASK]])
    x0_hat = log_p(rows=1)
    probs = process.reverse(x0_hat, xt, at(0.75, 1), at(0.25, 1))[0]
    xs = process.step(x0_hat.expand(n, 6, V), xt.expand(n, 6), at(0.75, n), at(0.25, n), generator())
    counts = torch.nn.functional.one_hot(xs, V).double().mean(0)
    error = (counts - probs) / (probs * (1 - probs) / n).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 4.5
    assert torch.equal(counts[probs == 0], probs[probs == 0])


@pytest.mark.parametrize("spindle", ["frequency", "information"])
def test_sentences_are_guessed_where_they_are_masked(spindle):
    process = make(spindle)
    xt = torch.where(torch.arange(6) % 2 == 0, MASK, SENTENCES)
    guess = torch.where(xt == MASK, log_p().argmax(-1), xt)
    stays = (1 - process.alpha(guess, at(7 / 16))) / (1 - process.alpha(guess, at(0.5)))
    found = process.reverse(log_p(), xt, at(0.5), at(7 / 16))[..., MASK]
    torch.testing.assert_close(found[xt == MASK], stays[xt == MASK], rtol=0, atol=1e-14)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_logit_of_the_mask_changes_nothing(spindle):
    process = make(spindle)
    xt, t, s = process.corrupt(SENTENCES, at(0.5), generator()), at(0.5), at(0.25)
    logits = log_p().float().index_fill(-1, torch.tensor(MASK), 0.0)
    loud = logits.index_fill(-1, torch.tensor(MASK), 20.0)
    quiet, loud = process.denoised(logits, xt, t), process.denoised(loud, xt, t)
    assert torch.equal(quiet, loud) and (loud[..., MASK] == -torch.inf).all()
    torch.testing.assert_close(loud.exp().sum(-1), torch.ones(4, 6))
    assert process.denoised(logits.bfloat16(), xt, t).dtype == torch.float32
    for x in (process.reverse(loud, xt, t, s), process.step(loud, xt, t, s, generator())):
        assert x.isfinite().all()


def test_without_a_spindle_it_is_d3pm_that_never_predicts_the_mask():
    process, d3pm = make("none"), D3PMProcess(V, MASK, timesteps=16, zero_mask_prob=True)
    assert isinstance(process, TokenProcess)
    x0_hat = log_p()
    for k in range(1, 17):
        t, s = at(k / 16), at((k - 1) / 16)
        xt = process.corrupt(SENTENCES, t, generator(k))
        ours, theirs = (p.integrand(x0_hat, SENTENCES, xt, t) for p in (process, d3pm))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        ours, theirs = (p.step(x0_hat, xt, t, s, generator(k)) for p in (process, d3pm))
        assert torch.equal(ours, theirs)
    assert process.grid(5) == d3pm.grid(5)
    u = torch.rand(8, generator=generator(), dtype=torch.float64)
    assert torch.equal(process.times(u, range(7)), d3pm.times(u, range(7)))


# Divergence and loss


def golden_cases(discrete_golden):
    golden = discrete_golden("dbert_posterior")
    given = golden["inputs"]
    x0, logits = torch.tensor(given["x0"]), float64(given["logits"])
    scores = float64(discrete_golden("dbert_schedule")["frequency_score_upstream"])
    table = float64([*given["type_level_deviation"], 0.0])
    for case in golden["cases"]:
        xt = torch.full_like(x0, MASK) if case["x_t"] == "all mask" else torch.tensor(given["x_t"])
        options = {"spindle_lambda": case["lambda"], "timesteps": case["T"]}
        by_sentence = SpindleProcess(V, MASK, SentenceDeviation(scores, frequency_deviation, PAD), **options)
        by_type = SpindleProcess(V, MASK, TypeDeviation(table), **options)
        yield case, by_sentence, by_type, logits, x0, xt, at(case["t"] / case["T"]), at(case["s"] / case["T"])


def test_divergences_match_independent_figures(discrete_golden):
    for case, by_sentence, by_type, logits, x0, xt, t, s in golden_cases(discrete_golden):
        x0_hat = by_type.denoised(logits, xt, t)
        for process, figures in ((by_sentence, case), (by_type, case["type_level"])):
            expected = float64(figures.get("kl_per_token_corrected", figures.get("kl_per_token")))
            found = process.divergence(x0_hat, x0, xt, t, s)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            if case["t"] - case["s"] == 1:
                integrand = process.integrand(x0_hat, x0, xt, t)
                torch.testing.assert_close(integrand, 16 * expected, rtol=1e-9, atol=1e-9)


def test_posteriors_match_independent_figures(discrete_golden):
    seen = 0
    for case, by_sentence, by_type, logits, x0, xt, t, s in golden_cases(discrete_golden):
        if "posterior_q_corrected" in case:
            seen += 1
            of_type = case["type_level"]
            for process, x0_hat, figures in (
                (by_sentence, certain(x0), case["posterior_q_corrected"]),
                (by_type, certain(x0), of_type["posterior_q"]),
                (by_type, by_type.denoised(logits, xt, t), of_type["model_posterior"]),
            ):
                found = process.reverse(x0_hat, xt, t, s)
                torch.testing.assert_close(found, float64(figures), rtol=1e-9, atol=1e-9)
    assert seen == 2


def test_the_loss_weighs_divergence_and_cross_entropy_as_the_reference_system(discrete_golden):
    cross_entropy = float64(discrete_golden("dbert_posterior")["hybrid_term_0.01_per_token"])
    for case, by_sentence, _, logits, x0, xt, t, _ in golden_cases(discrete_golden):
        if case["t"] - case["s"] == 1:
            expected = float64(case["kl_per_token_corrected"]) + cross_entropy
            found = by_sentence.loss(logits, x0, xt, t) * (1 + 0.01 * 16) / 16
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize(("t", "s"), [(1 / 16, 0.0), (0.5, 7 / 16), (1.0, 15 / 16), (0.75, 0.25), (1.0, 0.0)])
def test_the_divergence_is_that_of_the_posteriors(spindle, t, s):
    process, t, s = make(spindle), at(t), at(s)
    x0_hat = log_p()
    if spindle in ("frequency", "information"):  # the true sentence is also the guess
        x0_hat = x0_hat.scatter(-1, SENTENCES[..., None], 0.1 + x0_hat.amax(-1, keepdim=True)).log_softmax(-1)
    for xt in (torch.full_like(SENTENCES, MASK), SENTENCES):
        q, p = process.reverse(certain(SENTENCES), xt, t, s), process.reverse(x0_hat, xt, t, s)
        expected = (torch.xlogy(q, q) - torch.where(q > 0, q * p.log(), 0.0)).sum(-1)
        found = process.divergence(x0_hat, SENTENCES, xt, t, s)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_single_precision_does_not_spoil_the_small_divergence_of_short_steps(spindle):
    process, masked = make(spindle, timesteps=4000), torch.full_like(SENTENCES, MASK)
    for k in (1, 2, 40, 4000):
        t = at(k / 4000)
        double, single = (
            process.integrand(process.denoised(logits, masked, t), SENTENCES, masked, t)
            for logits in (log_p(), log_p().float())
        )
        torch.testing.assert_close(single, double, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_loss_has_finite_gradients_at_every_step(spindle):
    process = make(spindle)
    for k in (1, 2, 16):
        logits = torch.randn(4, 6, V, generator=generator(k), requires_grad=True)
        xt = process.corrupt(SENTENCES, at(k / 16), generator(k))
        process.loss(logits, SENTENCES, xt, at(k / 16)).sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad[..., :MASK].abs().sum(-1) > 0).all()
        assert (logits.grad[..., MASK] == 0).all()


def test_without_the_hybrid_term_the_loss_is_the_integrand():
    process = make("type", hybrid_weight=0.0)
    xt, t = process.corrupt(SENTENCES, at(0.5), generator()), at(0.5)
    x0_hat = process.denoised(log_p(), xt, t)
    torch.testing.assert_close(process.loss(log_p(), SENTENCES, xt, t), process.integrand(x0_hat, SENTENCES, xt, t))


# The bound, against an enumerable distribution


def on_toy(toy, spindle_lambda: float, timesteps: int) -> SpindleProcess:
    deviation = float64([*toy.golden["diffusionbert_type_level_T_step_elbo"]["deviation_d"], 0.0])
    return SpindleProcess(4, toy.mask_id, TypeDeviation(deviation), spindle_lambda=spindle_lambda, timesteps=timesteps)


def exact_denoiser(toy, process: SpindleProcess):
    """predict(xt, t) that gives log p(x_i | x_t): a mask tells that the token may be one that is masked early."""

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        hidden = 1 - process.alpha(torch.arange(3).expand(len(xt), 3), t)  # [B, N]
        known = torch.nn.functional.one_hot(xt.clamp(max=2), 3).double()
        seen = torch.where((xt == toy.mask_id)[..., None], hidden[:, None], known)
        return torch.nn.functional.pad(toy.posterior(seen), (0, 1)).log()

    return predict


def exact_bound(toy, process: SpindleProcess, predict, free: Tensor) -> Tensor:
    """The bound [X] of every text, summed over all steps and all x_t with masks at `free` [L] positions only."""
    total = torch.zeros(len(toy.texts), dtype=torch.float64)
    T = process.timesteps
    t = torch.arange(1, T + 1, dtype=torch.float64).repeat_interleave(len(toy.texts)) / T
    x0 = toy.texts.repeat(T, 1)
    alpha = process.alpha(x0, t)
    for pattern in product([False, True], repeat=2):
        masked = torch.tensor(pattern)
        if (masked & ~free).any():
            continue
        chance = torch.where(free, torch.where(masked, 1 - alpha, alpha), 1.0).prod(1)
        xt = torch.where(masked, toy.mask_id, x0)
        total += (chance * process.integrand(predict(xt, t), x0, xt, t).sum(1)).view(T, -1).mean(0)
    return total


BOTH = torch.tensor([True, True])


@pytest.mark.parametrize("spindle_lambda", [0.0, 0.3])
@pytest.mark.parametrize("T", [2, 8, 64, 512])
def test_the_bound_of_each_text_matches_independent_figures(toy, spindle_lambda, T):
    process = on_toy(toy, spindle_lambda, T)
    figures = toy.golden["diffusionbert_type_level_T_step_elbo"][f"lambda_{spindle_lambda:g}"][f"T{T}"]
    bound = exact_bound(toy, process, exact_denoiser(toy, process), BOTH)
    torch.testing.assert_close(bound, float64(figures).flatten(), rtol=0, atol=1e-8)


def test_without_a_spindle_the_bound_is_that_of_d3pm(toy):
    for T, figures in toy.golden["d3pm_absorbing_T_step_elbo"].items():
        process = on_toy(toy, 0.0, int(T.removeprefix("T")))
        bound = exact_bound(toy, process, exact_denoiser(toy, process), BOTH)
        torch.testing.assert_close(bound, float64(figures["per_x"]).flatten(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("spindle_lambda", [0.0, 0.3])
def test_more_steps_close_the_gap_to_the_likelihood(toy, spindle_lambda):
    gaps = []
    for T in (1, 2, 4, 8, 16, 256):
        process = on_toy(toy, spindle_lambda, T)
        bound = exact_bound(toy, process, exact_denoiser(toy, process), BOTH)
        gaps.append((toy.p.flatten() * (bound - toy.nll)).sum().item())
    assert gaps == sorted(gaps, reverse=True) and 0 < gaps[-1] < gaps[0] / 100  # steps of each are steps of the next


@pytest.mark.parametrize("spindle_lambda", [0.0, 0.3])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_of_a_single_token_the_bound_is_the_likelihood_at_any_number_of_steps(toy, spindle_lambda, T):
    process = on_toy(toy, spindle_lambda, T)
    bound = exact_bound(toy, process, exact_denoiser(toy, process), torch.tensor([True, False]))
    given_second = -(toy.p / toy.p.sum(0)).log().flatten()
    torch.testing.assert_close(bound, given_second, rtol=0, atol=1e-12)


def test_a_denoiser_that_forgets_what_masks_tell_loses_nats(toy):
    process = on_toy(toy, 0.3, 64)
    exact = exact_bound(toy, process, exact_denoiser(toy, process), BOTH)
    forgetful = exact_bound(toy, process, lambda xt, t: toy.log_masked_posterior(xt), BOTH)
    assert (toy.p.flatten() * (forgetful - exact)).sum() > 1e-3


def test_draws_of_the_bound_are_unbiased_and_leave_alone_what_is_not_free(toy):
    process, n = on_toy(toy, 0.3, 8), 20_000
    predict = exact_denoiser(toy, process)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for text, exact in zip(toy.texts, exact_bound(toy, process, predict, BOTH), strict=True):
        free = torch.ones(n, 2, dtype=torch.bool)
        draws = process.bound(predict, text.expand(n, 2), free, u, generator()).sum(1)
        assert abs(draws.mean() - exact) < 4 * draws.std() / n**0.5
    first = torch.tensor([True, False]).expand(n, 2)

    def watched(xt, t):
        assert (xt[:, 1] == text[1]).all()
        return predict(xt, t)

    draws = process.bound(watched, text.expand(n, 2), first, u, generator())
    assert (draws[:, 1] == 0).all() and draws.dtype == torch.float64
    expected = -(toy.p / toy.p.sum(0)).log().flatten()[-1]
    assert abs(draws.sum(1).mean() - expected) < 4 * draws.sum(1).std() / n**0.5


@pytest.mark.parametrize("spindle", ["frequency", "information"])
def test_a_schedule_that_depends_on_the_text_bounds_no_likelihood(spindle):
    free = torch.ones_like(SENTENCES, dtype=torch.bool)
    with pytest.raises(DiffusionError, match="--spindle type") as error:
        make(spindle).bound(lambda xt, t: log_p(), SENTENCES, free, at(0.5), generator())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [64, 16])
def test_samples_follow_the_distribution(toy, steps, predictor):
    process, n = on_toy(toy, 0.3, 64), 20_000
    exact, forgetful = predictor(exact_denoiser(toy, process)), predictor(lambda xt, t: toy.log_masked_posterior(xt))
    start = process.prior((n, 2), generator())
    x = sample_ancestral(process, exact, start, process.grid(steps), generator=generator())
    assert toy.p_value(x) > 1e-3
    # A denoiser that forgets what masks tell would not pass.
    x = sample_ancestral(process, forgetful, start, process.grid(steps), generator=generator())
    assert toy.p_value(x) < 1e-3


@pytest.mark.parametrize("spindle", SPINDLES)
def test_a_step_asks_about_masks_alone_unless_it_guesses_the_sentence(spindle):
    process = make(spindle)
    assert process.step_reads == (None if spindle in ("frequency", "information") else MASK)
    assert process.loss_reads is None


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize("spindle_lambda", [0.3, 1 / math.pi])
def test_no_token_stays_hidden_less_than_that_of_the_largest_bend(spindle, spindle_lambda):
    """So that `step` need not look at all of them to know that none will show."""
    bend = make(spindle, spindle_lambda)._bend(SENTENCES).expand(4, 6, V)
    for t, s in product(torch.linspace(0.01, 1, 30).double(), torch.linspace(0, 0.99, 30).double()):
        if s < t:
            every, least = (_stays(each, t, s) for each in (bend, bend.amax(-1)))
            torch.testing.assert_close(every.amin(-1), least, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_every_schedule_samples_texts_without_masks(spindle, predictor):
    process, predict = make(spindle), predictor(lambda xt, t: log_p())
    start = process.prior((4, 6), generator())
    x = sample_ancestral(process, predict, start, process.grid(8), generator=generator())
    assert ((x >= 0) & (x < MASK)).all()
