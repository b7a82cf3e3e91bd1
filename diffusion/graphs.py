"""How SEDD's tokens are lost: the absorbing and the uniform graph (Lou et al. 2024, arXiv:2310.16834, section 3).

Q[x, y] is the rate from token y to token x, so its columns sum to 0; noise sigma takes a token through e^(sigma Q).
Both graphs have Q Q = -Q, and the exponential series collapses: e^(sigma Q) = I + (1 - e^-sigma) Q for any sign of
sigma. A score [B, L, V] estimates p_t(y) / p_t(x_t) for each token y in the place of x_t; its entry at x_t is 1.
Legend: B batch, L positions, V vocabulary, n tokens that a text can hold, E = e^sigma - 1. sigma is [B], float64.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.categorical import filled
from diffusion.masked import hide
from diffusion.randomness import Randomness, uniform

TINY = 1e-30  # never drawn, but keeps the bound finite where a step would rule the truth out


class AbsorbingGraph:
    """A lost token turns into the mask and stays there; V counts the mask, which may be any id."""

    usual_schedule = "loglinear"

    def __init__(self, vocab_size: int, mask_id: int):
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"mask_id {mask_id} is not one of the {vocab_size} ids")
        self.vocab_size, self.mask_id = vocab_size, mask_id

    def prior(self, shape: Sequence[int], generator: Randomness, device: Any = None) -> Tensor:
        """Masks only."""
        return torch.full(tuple(shape), self.mask_id, device=device)

    def corrupt(self, x0: Tensor, move: Tensor, generator: Randomness) -> Tensor:
        """x0 [B, L] with each token masked with chance move [B]."""
        return hide(x0, move, self.mask_id, generator)

    def inflow(self, x: Tensor) -> Tensor:
        """The rate into x [B, L] from each other token, [B, L, 1] float64: Q[x, y] = inflow(x) - [x = y]."""
        return (x == self.mask_id).double().unsqueeze(-1)

    def apply_rate(self, score: Tensor) -> Tensor:
        """Q score, [B, L, V]."""
        return (-score).select_scatter(filled(score, self.mask_id, 0.0).sum(-1), -1, self.mask_id)

    def reverse(self, log_score: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """`tweedie` but for a factor: a mask becomes y with chance (e^sigma - 1) s_y, else it stays; tokens stay."""
        return moved(self, log_score, xt, torch.expm1(sigma))

    def log_scale(self, sigma: Tensor) -> Tensor:
        """[B] to be added to the network's output, so that output 0 is the score of a uniform guess, 1 / (n E)."""
        return log_odds(sigma) - math.log(self.vocab_size - 1)

    def score_entropy(self, log_score: Tensor, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """Sum over y of Q(x_t, y) (s_y - r_y log s_y + r_y (log r_y - 1)), r the true ratio given x0: [B, L] float64.

        0 where s = r, and where x_t is a token: the way back leads out of the mask only (Lou et al. 2024, def. 3.1).
        The one ratio above 0 is that of x0 against the mask, 1 / E.
        """
        log_r = log_odds(sigma).unsqueeze(-1)
        lost = _others(log_score) + log_r.exp() * (log_r - 1 - _at(log_score, x0))
        return torch.where(xt == self.mask_id, lost, 0.0)

    def bound_move_chance(self, sigma: Tensor, sigma_1: Tensor) -> Tensor:
        """Chance [B] of a mask at sigma in a corruption that leaves none but masks at sigma_1, as sampling starts from.

        Conditioning on the prior leaves the rates back to x0 as they were: they are d log(move chance) / dt.
        """
        return move_chance(sigma) / move_chance(sigma_1)

    def prior_kl(self, sigma_1: Tensor) -> Tensor:
        """KL(q(x_1 | x0) || prior) per position in nats: 0 under `bound_move_chance`."""
        return torch.zeros_like(sigma_1)


class UniformGraph:
    """A lost token turns into any of the V ids, itself included, all with the same chance; there is no mask."""

    usual_schedule = "geometric"
    mask_id = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def prior(self, shape: Sequence[int], generator: Randomness, device: Any = None) -> Tensor:
        """Ids drawn uniformly."""
        return (uniform(shape, generator, device, torch.float64) * self.vocab_size).long()

    def corrupt(self, x0: Tensor, move: Tensor, generator: Randomness) -> Tensor:
        """x0 [B, L] with each token drawn anew with chance move [B]."""
        moved = uniform(x0.shape, generator, x0.device, torch.float64) < move.unsqueeze(-1)
        return torch.where(moved, self.prior(x0.shape, generator, x0.device), x0)

    def inflow(self, x: Tensor) -> Tensor:
        """The rate into x [B, L] from each other token, [B, L, 1] float64: Q[x, y] = inflow(x) - [x = y]."""
        return torch.full((*x.shape, 1), 1 / self.vocab_size, dtype=torch.float64, device=x.device)

    def apply_rate(self, score: Tensor) -> Tensor:
        """Q score, [B, L, V]."""
        return score.mean(-1, keepdim=True) - score

    def reverse(self, log_score: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """`tweedie` [B, L, V]."""
        return tweedie(self, log_score, xt, sigma)

    def log_scale(self, sigma: Tensor) -> Tensor:
        """[B] to be added to the network's output: 0, a uniform guess has score 1 already."""
        return torch.zeros_like(sigma)

    def score_entropy(self, log_score: Tensor, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """Sum over y of Q(x_t, y) (s_y - r_y log s_y + r_y (log r_y - 1)), r the true ratio given x0: [B, L] float64.

        0 where s = r (Lou et al. 2024, def. 3.1). The largest ratio is r = 1 + n / E, of x0 against any other token: at
        x_t = x0 all ratios are 1 / r, elsewhere that of x0 is r and the others are 1.
        """
        n = self.vocab_size
        odds = log_odds(sigma).exp().unsqueeze(-1)
        log_r = torch.log1p(n * odds)
        logs = log_score.sum(-1, dtype=torch.float64)  # over y != x_t: the entry at x_t is 0
        kept = -(-log_r).exp() * (logs + (n - 1) * (log_r + 1))
        lost = -logs - n * odds * _at(log_score, x0) + log_r.exp() * (log_r - 1) - (n - 2)
        return (_others(log_score) + torch.where(xt == x0, kept, lost)) / n

    def bound_move_chance(self, sigma: Tensor, sigma_1: Tensor) -> Tensor:
        """Chance [B] that a token has been drawn anew at sigma."""
        return move_chance(sigma)

    def prior_kl(self, sigma_1: Tensor) -> Tensor:
        """KL(q(x_1 | x0) || prior) per position in nats, exactly: q is uniform but for the share e^-sigma_1 on x0."""
        n, kept = self.vocab_size, torch.exp(-sigma_1)
        at_x0, elsewhere = torch.log1p((n - 1) * kept), torch.log1p(-kept)
        return (1 + (n - 1) * kept) / n * at_x0 + (n - 1) / n * (1 - kept) * elsewhere


Graph = AbsorbingGraph | UniformGraph


def transition_into(graph: Graph, x: Tensor, sigma: Tensor) -> Tensor:
    """Row x of e^(sigma Q): the chance that each token turns into x [B, L] under noise sigma; [B, L, V] float64."""
    move = move_chance(sigma)[:, None, None]
    arriving = (move * graph.inflow(x)).repeat(1, 1, graph.vocab_size)
    return arriving.scatter_add(-1, x.unsqueeze(-1), (1 - move).expand(*x.shape, 1))


def staggered(graph: Graph, score: Tensor, sigma: Tensor) -> Tensor:
    """e^(-sigma Q) score [B, L, V] float64: p_s(y) / p_t(x_t), s with sigma less noise than t (Lou et al., sec. 4)."""
    return score.double() - torch.expm1(sigma)[:, None, None] * graph.apply_rate(score.double())


def tweedie(graph: Graph, log_score: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
    """Weights of p(x_s | x_t) [B, L, V] float64, s with sigma less noise than t (Lou et al. 2024, section 4)."""
    back = staggered(graph, log_score.double().exp(), sigma).clamp(min=TINY)
    return back * transition_into(graph, xt, sigma)


def moved(graph: Graph, log_score: Tensor, xt: Tensor, chance: Tensor) -> Tensor:
    """Weights [B, L, V] float64 of x_t moved at `chance` [B] times the reverse rates, made in one tensor."""
    weights = log_score.to(torch.float64, copy=True).exp_().clamp_(min=TINY)
    weights.mul_(chance[:, None, None] * graph.inflow(xt)).scatter_(-1, xt.unsqueeze(-1), 0.0)
    stay = (1 - weights.sum(-1, keepdim=True)).clamp(min=0)  # a long step, or wrong scores, would leave more than all
    return weights.scatter_(-1, xt.unsqueeze(-1), stay)


def move_chance(sigma: Tensor) -> Tensor:
    """1 - e^-sigma, the share of tokens lost, without cancellation where it is small."""
    return -torch.expm1(-sigma)


def log_odds(sigma: Tensor) -> Tensor:
    """log(1 / E): the log odds that a token is still itself; finite for any sigma > 0."""
    return -sigma - torch.log(move_chance(sigma))


def _others(log_score: Tensor) -> Tensor:
    """Sum [B, L] of the scores but for the 1 at x_t; float64, where taking the 1 away again costs nothing."""
    return log_score.exp().sum(-1, dtype=torch.float64) - 1


def _at(log_score: Tensor, x0: Tensor) -> Tensor:
    return log_score.gather(-1, x0.unsqueeze(-1)).squeeze(-1).double()
