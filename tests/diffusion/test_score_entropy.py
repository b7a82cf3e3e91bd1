"""SEDD on both graphs: figures from running the public reference code (see golden/README.md), and exactness on the toy.

Legend: B batch, L positions, V vocabulary, n tokens that a text can hold, X texts of the toy.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import HfArgumentParser

from diffusion.graphs import AbsorbingGraph, UniformGraph, log_odds, moved, staggered, transition_into, tweedie
from diffusion.positions import Positions
from diffusion.process import DiffusionError, TokenProcess
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.samplers import sample_ancestral, walk
from diffusion.score_entropy import MAX_SIGMA, TIME_MIN, ScoreEntropyOptions, ScoreEntropyProcess
from diffusion.survival import SURVIVALS, SurvivalOptions, geometric, linear

CASES = ["absorb_loglinear", "absorb_geometric", "uniform_geometric", "uniform_loglinear"]
GRAPHS = {"absorb": lambda n: AbsorbingGraph(n + 1, n), "uniform": UniformGraph}


def process(graph: str = "absorb", schedule: str = "loglinear", n: int = 3) -> ScoreEntropyProcess:
    return ScoreEntropyProcess(GRAPHS[graph](n), SURVIVALS[schedule]())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def at(t: float, batch: int = 1) -> torch.Tensor:
    return torch.full((batch,), t, dtype=torch.float64)


def assert_equal(ours: torch.Tensor, expected, tolerance: float = 1e-9):
    expected = torch.as_tensor(expected, dtype=ours.dtype).expand(ours.shape)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def rate_matrix(graph) -> torch.Tensor:
    ids = torch.arange(graph.vocab_size)
    return graph.inflow(ids[None])[0] - torch.eye(len(ids), dtype=torch.float64)


def transition_matrix(graph, sigma: torch.Tensor) -> torch.Tensor:
    """P(x_t = x | x_0 = y) [B, V, V] as [x, y], for each sigma [B]."""
    return transition_into(graph, torch.arange(graph.vocab_size).expand(len(sigma), -1), sigma)


# Figures from running the public reference code; `turn` moves every id on by so many, so that the mask is not the last


@dataclass(frozen=True)
class Case:
    figures: dict
    turn: int

    @cached_property
    def process(self) -> ScoreEntropyProcess:
        states = self.figures["num_states"]
        absorb = self.figures["graph"] == "absorb"
        graph = AbsorbingGraph(states, (states - 1 + self.turn) % states) if absorb else UniformGraph(states)
        return ScoreEntropyProcess(graph, SURVIVALS[self.figures["noise"]]())

    def numbers(self, name: str) -> torch.Tensor:
        return torch.tensor(self.figures[name], dtype=torch.float64)

    def by_id(self, name: str) -> torch.Tensor:
        return self.numbers(name).roll(self.turn, -1)

    def ids(self, name: str) -> torch.Tensor:
        return (torch.tensor(self.figures[name]) + self.turn) % self.figures["num_states"]


@pytest.fixture(params=[0, 3], ids=["mask_last", "mask_within"])
def golden_case(request, discrete_golden):
    return lambda file, name: Case(discrete_golden(file)["cases"][name], request.param)


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_rates_and_transitions_match_figures_from_running_the_reference_code(discrete_golden, name):
    golden, graph = discrete_golden("sedd_graphs"), GRAPHS[name](7)
    figures, sigma = golden["graphs"][name], torch.tensor(golden["sigma"], dtype=torch.float64)
    assert_equal(rate_matrix(graph), figures["rate_into_state"])
    assert_equal(transition_matrix(graph, sigma), figures["transp_transition_upstream"])
    assert_equal(transition_matrix(graph, sigma).mT, figures["transition_derived"])


@pytest.mark.parametrize("name", CASES)
def test_log_scores_and_losses_match_figures_from_running_the_reference_code(golden_case, name):
    case = golden_case("sedd_losses", name)
    p, x0, xt, t = case.process, case.ids("x0"), case.ids("x"), case.numbers("t")
    assert_equal(p.sigma(t), case.numbers("sigma"))
    assert_equal(p.denoised(case.by_id("raw_output"), xt, t), case.by_id("log_score"))
    entropy = p.graph.score_entropy(case.by_id("log_score"), x0, xt, p.sigma(t))
    assert_equal(entropy, case.numbers("score_entropy_per_token"))
    loss = p.loss(case.by_id("raw_output"), x0, xt, t)
    assert_equal(loss, case.numbers("weighted_per_token"))
    assert_equal(loss.sum(-1), case.numbers("weighted_sequence_sum"))
    single = p.loss(case.by_id("raw_output").float(), x0, xt, t)
    torch.testing.assert_close(single, loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_steps_match_figures_from_running_the_reference_code(golden_case, name):
    case = golden_case("sedd_steps", name)
    p, xt, t, score = case.process, case.ids("x"), case.numbers("t"), case.by_id("score")
    s = t - case.figures["step"]
    assert_equal(staggered(p.graph, score, p.sigma(t) - p.sigma(s)), case.by_id("staggered_score"))
    assert_equal(p.reverse(score.log(), xt, t, s), case.by_id("analytic_distribution"))
    assert_equal(p.euler(score.log(), xt, t, s), case.by_id("euler_distribution"))
    final = F.pad(case.numbers("denoise_distribution"), (0, p.vocab_size - 7)).roll(case.turn, -1)
    assert_equal(p.reverse(score.log(), xt, t, torch.zeros_like(t)), final)


# Graphs and corruption


@pytest.mark.parametrize("name", GRAPHS)
def test_rates_conserve_probability_and_transitions_compose(name):
    graph, (a, b) = GRAPHS[name](4), (at(0.3), at(1.7))
    Q, eye = rate_matrix(graph), torch.eye(graph.vocab_size, dtype=torch.float64)
    assert_equal(Q.sum(0), 0)
    assert_equal(graph.apply_rate(eye).mT, Q)  # row y of apply_rate(eye) is column y of Q
    assert_equal(Q @ Q, -Q)
    assert_equal(transition_matrix(graph, a)[0], torch.linalg.matrix_exp(0.3 * Q))
    assert_equal(transition_matrix(graph, a) @ transition_matrix(graph, b), transition_matrix(graph, a + b))
    assert_equal(transition_matrix(graph, a) @ staggered(graph, eye[None], a).mT, eye[None])


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_corruption_follows_the_transition_probabilities(name, t):
    p, n, count = process(name), 3, 100_000
    x0 = torch.arange(n).repeat(count, 1)
    counts = F.one_hot(p.corrupt(x0, at(t, count), generator()), p.vocab_size).double().mean(0)  # [n, V]
    expected = transition_matrix(p.graph, p.sigma(at(t)))[0].mT[:n]
    assert ((counts - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


@pytest.mark.parametrize(("name", "schedule"), list(product(GRAPHS, SURVIVALS)))
def test_time_zero_is_the_data_whatever_the_schedule_starts_from(name, schedule):
    p, x0 = process(name, schedule), torch.randint(3, (50, 40), generator=generator())
    assert torch.equal(p.corrupt(x0, torch.zeros(50), generator()), x0)
    assert p.sigma(at(0.0)).item() == 0 and p.sigma(at(1.0)).item() > 6


def test_the_prior_is_masks_or_uniform_ids():
    assert (process("absorb").prior((2, 5), generator()) == 3).all()
    ids = process("uniform").prior((100, 300), generator())
    assert ids.dtype == torch.int64
    assert_equal(torch.bincount(ids.flatten()) / ids.numel(), torch.full((3,), 1 / 3), 0.02)


# Score entropy


def brute_force(p: ScoreEntropyProcess, log_score, x0, xt, t) -> torch.Tensor:
    """Score entropy by its definition, [B, L]: every term of the sum, with ratios from the transition matrix."""
    Q, K = rate_matrix(p.graph), transition_matrix(p.graph, p.sigma(t))
    total = torch.zeros(xt.shape, dtype=torch.float64)
    for b, i in product(*map(range, xt.shape)):
        x, start = xt[b, i], x0[b, i]
        for y in range(p.vocab_size):
            if y != x and Q[x, y] > 0:
                r, log_s = K[b, y, start] / K[b, x, start], log_score[b, i, y]
                total[b, i] += Q[x, y] * (log_s.exp() - r * log_s + torch.xlogy(r, r) - r)
    return total


@pytest.mark.parametrize("name", GRAPHS)
def test_score_entropy_is_the_sum_of_its_definition(name):
    p, t = process(name, n=4), torch.tensor([0.05, 0.4, 0.99], dtype=torch.float64)
    x0 = torch.randint(4, (3, 6), generator=generator())
    xt = p.corrupt(x0, t, generator(1))
    xt[:, 0], xt[:, 1] = x0[:, 0], (x0[:, 1] + 1) % 4 if name == "uniform" else 4
    log_score = p.denoised(2 * randn(3, 6, p.vocab_size), xt, t)
    expected = brute_force(p, log_score, x0, xt, t)
    assert_equal(p.graph.score_entropy(log_score, x0, xt, p.sigma(t)), expected)
    rate = torch.autograd.functional.jacobian(p.survival.sigma, t).diagonal()
    assert_equal(p.integrand(log_score, x0, xt, t), rate[:, None] * expected)


@pytest.mark.parametrize("name", GRAPHS)
def test_score_entropy_is_zero_at_the_true_ratio_and_above_elsewhere(name):
    p, t = process(name, n=4), torch.tensor([0.05, 0.4, 0.99], dtype=torch.float64)
    x0 = torch.randint(4, (3, 6), generator=generator())
    xt = torch.full_like(x0, 4) if name == "absorb" else torch.randint(4, (3, 6), generator=generator(1))
    K = transition_matrix(p.graph, p.sigma(t)).mT  # [b, x0, x_t]
    chance = torch.stack([K[b, x0[b]] for b in range(3)])
    true = chance.log() - chance.gather(-1, xt[..., None]).log()
    assert_equal(p.graph.score_entropy(true.clamp(min=-800), x0, xt, p.sigma(t)), 0)
    for scale in (0.1, 1.0):
        other = true.clamp(min=-10) + scale * randn(*true.shape).scatter(-1, xt[..., None], 0.0)
        assert (p.graph.score_entropy(other, x0, xt, p.sigma(t)) > 0).all()


@pytest.mark.parametrize("schedule", SURVIVALS)
def test_a_normalised_absorbing_score_has_the_loss_of_masked_diffusion(schedule):
    p, t = process(schedule=schedule, n=5), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x0, xt = torch.randint(5, (3, 4), generator=generator()), torch.full((3, 4), 5)
    log_p = randn(3, 4, 5).log_softmax(-1)
    weight = (p.survival.rate(t) * log_odds(p.sigma(t)).exp())[:, None]
    cross_entropy = -log_p.gather(-1, x0[..., None]).squeeze(-1)
    is_token = (torch.arange(6) < 5).double()
    log_score = F.pad(log_p, (0, 1)) + log_odds(p.sigma(t))[:, None, None] * is_token
    assert_equal(p.integrand(log_score, x0, xt, t), weight * cross_entropy)
    Z = 1.7  # what a score loses that does not sum to 1 / E
    scaled = log_score + math.log(Z) * is_token
    assert_equal(p.integrand(scaled, x0, xt, t), weight * (cross_entropy + Z - 1 - math.log(Z)))
    if schedule == "loglinear":
        assert_equal(weight, 1 / t[:, None])


def test_output_zero_is_a_uniform_guess(predictor):
    p, t, count = process(n=5), torch.tensor([0.1, 0.9], dtype=torch.float64), 4000
    x0, masks = torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), 5)
    assert_equal(p.loss(torch.zeros(2, 3, 6, dtype=torch.float64), x0, masks, t), math.log(5) / t[:, None])
    p, x0 = process("absorb", "geometric", n=5), torch.zeros(count, 50, dtype=torch.int64)
    u = (torch.arange(count) + 0.5) / count
    zero = predictor(lambda xt, t: p.denoised(torch.zeros(*xt.shape, 6), xt, t))
    nats = p.bound(zero, x0, torch.ones_like(x0, dtype=torch.bool), u, generator()).mean().item()
    assert nats == pytest.approx(math.log(5), rel=0.02)


def test_the_score_of_the_mask_changes_nothing():
    p, t, s = ScoreEntropyProcess(AbsorbingGraph(6, 2), geometric()), at(0.5, 2), at(0.4, 2)
    x0, xt = torch.tensor([[0, 5, 1], [3, 4, 4]]), torch.tensor([[2, 5, 2], [3, 2, 4]])
    output = randn(2, 3, 6)
    other = output.index_fill(-1, torch.tensor([2]), 30.0)
    assert torch.equal(p.loss(output, x0, xt, t), p.loss(other, x0, xt, t))
    for distribution, at_s in product((p.reverse, p.euler), (s, torch.zeros(2))):
        assert_equal(*(distribution(p.denoised(raw, xt, t), xt, t, at_s) for raw in (output, other)))


@pytest.mark.parametrize(("name", "schedule"), list(product(GRAPHS, SURVIVALS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_gradients_and_steps_are_finite_at_both_ends(name, schedule, dtype):
    p, t = process(name, schedule), torch.tensor([0.0, 1e-9, 0.001, 0.5, 1.0])
    x0 = torch.randint(3, (5, 8), generator=generator())
    xt = p.corrupt(x0, torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0]), generator(1))
    output = (3 * randn(5, 8, p.vocab_size)).to(dtype).requires_grad_()
    loss = p.loss(output, x0, xt, t)
    loss.mean().backward()
    assert loss.isfinite().all() and (loss > -1e-3).all() and output.grad.isfinite().all()
    log_score = p.denoised(output, xt, t)
    assert log_score.dtype == torch.float32 and log_score.isfinite().all()
    for s in (t / 2, torch.zeros(5)):
        for probabilities in (p.reverse(log_score, xt, t, s), p.euler(log_score, xt, t, s)):
            assert (probabilities >= 0).all()
            assert_equal(probabilities.sum(-1), 1)


# Likelihood of the toy: exact scores must give -log p(x) for each text


class ExactScores:
    """log of q_t(y) / q_t(x_t) [B, L, V] for the toy by enumeration; a clamped position is not corrupted."""

    def __init__(self, toy, p: ScoreEntropyProcess, free=(True, True)):
        self.p, self.free = p, free
        self.data = F.pad(toy.p, (0, p.vocab_size - 3, 0, p.vocab_size - 3))

    def joint(self, t: torch.Tensor) -> torch.Tensor:
        """q_t(x) [B, V, V]."""
        K = transition_matrix(self.p.graph, self.p.sigma(t))
        first, second = (K if free else torch.eye(K.shape[-1], dtype=K.dtype) for free in self.free)
        return first @ self.data @ second.mT

    def __call__(self, xt: torch.Tensor, t: torch.Tensor, at: Positions | None = None) -> torch.Tensor:
        times, row = t.unique(return_inverse=True)
        q, b = self.joint(times)[row], torch.arange(len(t))
        change = torch.stack([q[b, :, xt[:, 1]], q[b, xt[:, 0], :]], dim=1)
        log_score = change.log() - q[b, xt[:, 0], xt[:, 1]].log()[:, None, None]
        return log_score if at is None else at.of(log_score)


def bound_terms(toy, p: ScoreEntropyProcess, nodes: int = 100):
    """Integral from TIME_MIN to 1, prior divergence and last step, each [X]: their expectations by enumeration."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    t = TIME_MIN + (1 - TIME_MIN) * (points + 1) / 2
    exact, ids = ExactScores(toy, p), torch.arange(p.vocab_size)
    states = torch.cartesian_prod(ids, ids)
    reached = []  # q(x_t | x_0) of a bound draw [t, X, states]; the last t is TIME_MIN
    for time in [*t, torch.tensor(TIME_MIN, dtype=torch.float64)]:
        move = p.graph.bound_move_chance(p.sigma(time[None]), p.sigma_1)
        K = transition_matrix(p.graph, -torch.log1p(-move))[0]
        first, second = (K[states[:, i]][:, toy.texts[:, i]] for i in (0, 1))
        reached.append((first * second).T)
    integral = torch.zeros(9, dtype=torch.float64)
    for time, weight, chance in zip(t, weights, reached[:-1], strict=True):
        times = time.expand(len(states))
        log_score = exact(states, times)
        for x, text in enumerate(toy.texts):
            nats = p.integrand(log_score, text.expand(len(states), 2), states, times).sum(-1)
            integral[x] += (1 - TIME_MIN) * weight / 2 * (chance[x] * nats).sum()
    start = at(TIME_MIN, len(states))
    final = p.reverse(exact(states, start), states, start, torch.zeros_like(start)).log()
    nats = -torch.stack([final[:, 0, text[0]] + final[:, 1, text[1]] for text in toy.texts])
    last = torch.where(reached[-1] > 0, reached[-1] * nats, 0.0).sum(-1)
    return integral, 2 * p.graph.prior_kl(p.sigma_1), last


@pytest.mark.parametrize("schedule", SURVIVALS)
def test_exact_absorbing_scores_give_the_likelihood_of_each_text(toy, schedule):
    p = process("absorb", schedule)
    integral, prior, last = bound_terms(toy, p)
    both_lost = p.graph.bound_move_chance(p.sigma(at(TIME_MIN)), p.sigma_1) ** 2
    apart = toy.nll + (toy.p.sum(1)[:, None] * toy.p.sum(0)).log().flatten()  # what the last step cannot know
    limit = torch.tensor(toy.golden["sedd_absorb_exact_ratios_limit"], dtype=torch.float64).flatten()
    assert_equal(integral + prior + last, limit - both_lost * apart, 1e-8)
    assert both_lost < 1e-4


def uniform_from_1e_4() -> ScoreEntropyProcess:
    """The uniform graph with sigma from 1e-4 at TIME_MIN to 20 at 1, geometrically, as the golden figures have it."""
    start = math.exp((math.log(1e-4) - TIME_MIN * math.log(20)) / (1 - TIME_MIN))
    return ScoreEntropyProcess(UniformGraph(3), geometric(start, 20.0))


def test_each_term_of_the_uniform_bound_matches_figures_from_independent_evaluations(toy):
    golden = toy.golden["sedd_uniform_geometric_1e-4_20"]
    integral, prior, last = bound_terms(toy, uniform_from_1e_4())
    assert_equal(integral, torch.tensor(golden["dwdse"]).flatten(), 1e-6)
    assert_equal(prior, 0, 1e-9)
    assert_equal(last, torch.tensor(golden["reconstruction_product_of_marginals"]).flatten(), 1e-8)
    assert_equal(integral + prior + last, toy.nll, 1e-6)


def joint_last(toy, p: ScoreEntropyProcess) -> torch.Tensor:
    """E[-log p(x_0 | x_TIME_MIN)] [X] with the true posterior of both positions together."""
    K = transition_matrix(p.graph, p.sigma(at(TIME_MIN)))[0]
    q = ExactScores(toy, p).joint(at(TIME_MIN))[0]
    reached = [K[:, a][:, None] * K[:, b] for a, b in toy.texts]
    return -torch.stack([(r * (r * p_x / q).log()).sum() for r, p_x in zip(reached, toy.p.flatten(), strict=True)])


def test_exact_uniform_scores_with_the_joint_posterior_give_the_likelihood_of_each_text(toy):
    p = uniform_from_1e_4()
    integral, prior, _ = bound_terms(toy, p)
    assert_equal(integral + prior + joint_last(toy, p), toy.nll, 1e-8)


def test_a_uniform_schedule_that_ends_early_pays_for_its_prior(toy):
    p = ScoreEntropyProcess(UniformGraph(3), linear(1e-4, 1.5))
    integral, prior, _ = bound_terms(toy, p)
    q = torch.tensor([math.exp(-1.5), 0, 0], dtype=torch.float64) + (1 - math.exp(-1.5)) / 3
    assert_equal(prior, 2 * (q * (3 * q).log()).sum())
    gap = (toy.p.flatten() * (integral + prior + joint_last(toy, p) - toy.nll)).sum()
    q = ExactScores(toy, p).joint(at(1.0))[0]
    assert_equal(gap, (q * (9 * q).log()).sum(), 1e-8)
    assert gap > 1e-3


def test_the_prior_is_paid_at_every_draw_of_the_bound(predictor):
    """Where scores are those of x0 itself, nothing else is to be paid before the last step."""
    p, x0 = ScoreEntropyProcess(UniformGraph(3), linear(1e-4, 1.5)), torch.randint(3, (6, 4), generator=generator())

    def certain(xt, t):
        chance = transition_matrix(p.graph, p.sigma(t)).mT[torch.arange(6)[:, None], x0]  # [B, L, x_t]
        return (chance / chance.gather(-1, xt[..., None])).log()

    nats = p.bound(predictor(certain), x0, x0 > 0, torch.linspace(0.06, 0.99, 6), generator(1))
    q = torch.tensor([math.exp(-1.5), 0, 0], dtype=torch.float64) + (1 - math.exp(-1.5)) / 3
    assert_equal(nats, torch.where(x0 > 0, (q * (3 * q).log()).sum(), 0.0))


@pytest.mark.parametrize(
    ("name", "survival"),
    [
        ("absorb", SURVIVALS["loglinear"]()),
        ("absorb", SURVIVALS["cosine"]()),
        ("absorb", linear(1e-4, 1.5)),  # leaves a fifth of the tokens, where sampling starts from masks only
        ("uniform", geometric()),
    ],
)
def test_draws_of_the_bound_have_the_likelihood_as_their_mean(toy, name, survival):
    p, count = ScoreEntropyProcess(GRAPHS[name](3), survival), 20_000
    x0 = toy.texts.repeat(count, 1)
    u = torch.arange(count).repeat_interleave(9).add(torch.rand(9 * count, generator=generator())) / count
    nats = p.bound(ExactScores(toy, p), x0, torch.ones_like(x0, dtype=torch.bool), u, generator(1))
    assert nats.shape == x0.shape and nats.dtype == torch.float64
    per_text = nats.sum(-1).view(count, 9)
    assert ((per_text.mean(0) - toy.nll).abs() <= 4 * per_text.std(0) / count**0.5).all()
    assert (per_text.std(0) < 10).all()


@pytest.mark.parametrize(("name", "schedule"), [("absorb", "loglinear"), ("uniform", "geometric")])
def test_clamped_positions_are_given_and_cost_nothing(toy, name, schedule):
    p, count = process(name, schedule), 20_000
    x0, free = toy.texts.repeat(count, 1), torch.tensor([False, True]).expand(9 * count, 2)
    seen = []

    def predict(xt, t, at):
        seen.append(xt)
        return ExactScores(toy, p, free=(False, True))(xt, t, at)

    nats = p.bound(predict, x0, free, torch.rand(9 * count, generator=generator()), generator(1))
    assert (nats[:, 0] == 0).all() and torch.equal(seen[0][:, 0], x0[:, 0]) and len(seen) == 1
    per_text = nats[:, 1].view(count, 9)
    given_first = toy.nll + toy.p.sum(1).log().repeat_interleave(3)
    assert ((per_text.mean(0) - given_first).abs() <= 4 * per_text.std(0) / count**0.5).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_bound_is_finite_where_a_score_rules_the_truth_out(name, predictor):
    p, x0 = process(name, "geometric"), torch.zeros(40, 3, dtype=torch.int64)
    wrong = torch.tensor([-60.0, 60.0, 0.0, 0.0])[: p.vocab_size]
    sure = predictor(lambda xt, t: p.denoised(wrong.expand(*xt.shape, -1), xt, t))
    nats = p.bound(sure, x0, x0 == 0, torch.linspace(0, 0.99, 40), generator())
    assert nats.isfinite().all() and nats.mean() > 10


# Reverse steps and samples


@pytest.mark.parametrize(("name", "schedule"), list(product(GRAPHS, SURVIVALS)))
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 0.3), (0.6, 0.5), (0.5, 0.001), (0.001, 0.0)])
def test_one_step_of_exact_scores_recovers_the_earlier_distribution_at_one_position(name, schedule, t, s):
    p, data = process(name, schedule), torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
    data = F.pad(data, (0, p.vocab_size - 3))
    at_t, at_s = (transition_matrix(p.graph, p.sigma(at(time)))[0] @ data for time in (t, s))
    ids = torch.arange(p.vocab_size)[None]
    log_score = at_t.log() - at_t.log()[ids.mT]  # [x_t, y]
    assert_equal(at_t @ p.reverse(log_score[None], ids, at(t), at(s))[0], at_s, 1e-7)


@pytest.mark.parametrize("schedule", SURVIVALS)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 0.3), (0.6, 0.599), (0.5, 0.001), (0.001, 0.0), (1e-9, 1e-10)])
def test_the_absorbing_graphs_own_reverse_step_is_the_general_one(schedule, t, s):
    p, t, s = process("absorb", schedule, n=7), at(t, 40), at(s, 40)
    xt = p.corrupt(torch.randint(7, (40, 6), generator=generator()), t.clamp(min=0.5), generator(1))
    log_score = p.denoised(3 * randn(40, 6, p.vocab_size), xt, t)
    expected = tweedie(p.graph, log_score, xt, p.noise(t) - p.sigma(s))
    expected[..., -1] *= (s > 0)[:, None]
    assert_equal(p.reverse(log_score, xt, t, s), expected / expected.sum(-1, keepdim=True), 1e-12)


def test_weights_of_a_step_are_made_in_one_tensor_and_leave_the_scores_alone():
    graph, log_score, sizes = AbsorbingGraph(8, 7), randn(2, 3, 8), []
    before = log_score.clone()

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if made.numel() == before.numel():
                sizes.append(made.untyped_storage().data_ptr())
            return made

    with Made():
        weights = moved(graph, log_score, torch.full((2, 3), 7), at(0.3, 2))
    assert set(sizes) == {weights.data_ptr()} and torch.equal(log_score, before)


def test_euler_is_analytic_for_the_absorbing_graph_with_loglinear_noise_only():
    def distributions(name, schedule):
        p, t, s = process(name, schedule, n=5), torch.tensor([0.4, 0.9]).double(), torch.tensor([0.38, 0.85]).double()
        xt = p.corrupt(torch.randint(5, (2, 6), generator=generator()), t, generator(1))
        log_score = p.denoised(0.5 * randn(2, 6, p.vocab_size), xt, t)
        return p.euler(log_score, xt, t, s), p.reverse(log_score, xt, t, s)

    assert_equal(*distributions("absorb", "loglinear"), 1e-12)
    for other in (("absorb", "geometric"), ("uniform", "loglinear"), ("uniform", "geometric")):
        euler, analytic = distributions(*other)
        assert 1e-4 < (euler - analytic).abs().max() < 0.5


def test_known_tokens_never_move_and_no_mask_is_left_on_the_absorbing_graph():
    p, xt = ScoreEntropyProcess(AbsorbingGraph(6, 2), geometric()), torch.tensor([[0, 2, 5, 2]]).repeat(500, 1)
    log_score = p.denoised(5 * randn(500, 4, 6), xt, at(0.9, 500))
    known = xt != 2
    for s, distribution, step in product((0.6, 0.0), (p.reverse, p.euler), (p.step, p.euler_step)):
        probabilities = distribution(log_score, xt, at(0.9, 500), at(s, 500))
        assert_equal(probabilities[known], F.one_hot(xt[known], 6), 1e-15)
        xs = step(log_score, xt, at(0.9, 500), at(s, 500), generator())
        assert torch.equal(xs[known], xt[known])
        if s == 0:
            assert (probabilities[..., 2] == 0).all() and (xs != 2).all()


@pytest.mark.parametrize(("name", "schedule"), [("absorb", "loglinear"), ("uniform", "geometric")])
@pytest.mark.parametrize("euler", [False, True])
def test_samples_follow_the_distribution_of_exact_scores(toy, name, schedule, euler):
    p = process(name, schedule)
    exact, x, g = ExactScores(toy, p), p.prior((20_000, 2), generator()), generator(1)
    if euler:
        x = walk(lambda x, t, s, _: p.euler_step(exact(x, t), x, t, s, g), x, p.grid(256), None)
    else:
        x = sample_ancestral(p, exact, x, p.grid(128), generator=g)
    assert toy.p_value(x) > 1e-3


def test_a_sample_depends_on_its_own_generator_only():
    p, seeds, lengths = process("uniform", "geometric", n=7), sample_seeds(3, 0, 3), [2, 6, 4]

    def sample(rows, width):
        g = SampleGenerators([seeds[i] for i in rows], [lengths[i] for i in rows])
        x = p.prior((len(rows), width), g)
        x = p.corrupt(x, at(0.5, len(rows)), g)
        for step in (p.step, p.euler_step):
            score = torch.stack([randn(9, 7, seed=i)[:width] for i in rows])
            x = step(p.denoised(score, x, at(0.5, len(rows))), x, at(0.5, len(rows)), at(0.4, len(rows)), g)
        return x

    together = sample([0, 1, 2], 9)
    for i in range(3):
        assert torch.equal(together[i, : lengths[i]], sample([i], 6)[0, : lengths[i]])


# Times, options


def test_training_times_stay_in_the_range_and_away_from_zero():
    p, u = process(), torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert p.times(u, range(1000)).dtype == torch.float64
    assert_equal(p.times(u, range(1000)), [TIME_MIN, (1 + TIME_MIN) / 2, 1], 1e-6)
    assert_equal(p.times(u, range(200)), [TIME_MIN, (0.2 + TIME_MIN) / 2, 0.2], 1e-6)
    assert_equal(p.times(u, range(1)), TIME_MIN)
    assert_equal(ScoreEntropyProcess(UniformGraph(3), geometric(), timesteps=4000).times(u, range(1)), TIME_MIN)


def test_the_sampling_grid_is_even():
    assert process().grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0] and process().grid(1) == [1.0, 0.0]


def test_options_build_either_graph_with_the_schedule_that_suits_it():
    parser = HfArgumentParser(ScoreEntropyOptions)
    (options,) = parser.parse_args_into_dataclasses([])
    p = ScoreEntropyProcess.from_options(options, SurvivalOptions(), vocab_size=9, mask_id=4, timesteps=50)
    assert isinstance(p, TokenProcess) and (p.graph.mask_id, p.vocab_size, p.timesteps) == (4, 9, 50)
    assert p.sigma(at(0.5)).item() == pytest.approx(-math.log(1 - 0.999 / 2))
    (options,) = parser.parse_args_into_dataclasses(["--graph", "uniform"])
    p = ScoreEntropyProcess.from_options(options, SurvivalOptions(), vocab_size=9, mask_id=None, timesteps=50)
    assert isinstance(p.graph, UniformGraph) and p.sigma(at(1.0)).item() == pytest.approx(20)
    cosine = SurvivalOptions(noise_schedule="cosine")
    p = ScoreEntropyProcess.from_options(options, cosine, vocab_size=9, mask_id=None, timesteps=50)
    assert p.sigma(at(1.0)).item() == pytest.approx(-math.log(1e-3))


def test_wrong_options_are_refused_in_one_line():
    with pytest.raises(DiffusionError) as error:
        ScoreEntropyOptions(graph="ring")
    assert "absorb, uniform" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DiffusionError) as error:
        ScoreEntropyProcess(UniformGraph(3), linear(1e-3, 1e8))
    assert f"at most {MAX_SIGMA:g}" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="mask_id 3"):
        AbsorbingGraph(3, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", GRAPHS)
def test_a_gpu_gives_the_cpu_result(name, predictor):
    results = []
    for device in ("cpu", "cuda"):
        p, g = process(name, "geometric"), SampleGenerators(sample_seeds(0, 0, 3))
        x0, t = torch.tensor([[0, 1], [2, 1], [0, 0]], device=device), torch.tensor([0.1, 0.5, 1.0], device=device)
        output = randn(3, 2, p.vocab_size).to(device)
        xt = p.corrupt(x0, t, g)
        log_score = p.denoised(output, xt, t)
        xs = p.step(log_score, xt, t, t / 2, g), p.euler_step(log_score, xt, t, 0 * t, g), p.prior((3, 2), g, device)
        predict = predictor(lambda xt, t, p=p, output=output: p.denoised(output, xt, t))
        nats = p.bound(predict, x0, x0 >= 0, t * 0.4, g), p.loss(output, x0, xt, t)
        assert {x.device.type for x in (*xs, *nats)} == {device}
        results.append(torch.cat([x.cpu().double().flatten() for x in (*xs, *nats)]))
    torch.testing.assert_close(*results)
