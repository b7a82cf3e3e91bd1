"""GIDD: noise between masks and uniformly drawn tokens (von Ruette et al. 2025, arXiv:2503.04482; gamma = 1).

Every token by itself is kept, masked, or replaced by one of the N clean ids (x_0 itself among them), all alike:
    q_t(z | x) = ((1 - t) [z = x] + t [z = mask] + c_t / N [z != mask]) / C_t,   C_t = 1 + c_t,
    c_t = 2 p_u / (1 - p_u) sqrt(t (1 - t)).
Uniform noise has the share p_u at t = 1/2 and none at either end, so t = 0 is the data and t = 1 all masks, exactly.

The estimate x_theta is p(x_i | x_t without position i): what would stand here if this token were unknown. The reverse
step weighs it against the token itself by Bayes' rule. Hence visible tokens are not copied into it, as MDLM does, and
with uniform noise the ordinary posterior p(x_i | x_t) would be wrong: it would count the token twice.
Legend: B batch, L positions, V vocabulary (the mask counted), N = V - 1 clean ids. t and s are [B].
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.categorical import sample_categorical, widened, without
from diffusion.positions import Positions
from diffusion.process import DiffusionError, Predict, check_choices
from diffusion.randomness import Randomness, uniform
from diffusion.schedules import even_grid

MARGIN = 1e-4  # training times keep this far from 0 and 1, where the weight 1 / (t (1 - t)) is infinite
BOUND_MARGIN = 1e-12  # the same for the bound, whose ends have next to no weight

softplus = partial(F.softplus, threshold=40)  # beyond torch's own threshold, 20, it would be off by 2e-9


@dataclass
class InterpolatingOptions:
    """Command-line options of GIDD; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "GIDD"

    p_uniform: float = field(
        default=0.1,
        metadata={
            "help": "share of uniform noise at t = 1/2. 0 is masks only, which has the better likelihood; "
            "self-correction needs some, 0.1 or 0.2 in the paper"
        },
    )
    gidd_weights: Literal["dynamic", "clip", "raw"] = field(
        default="dynamic",
        metadata={
            "help": "loss weights: dynamic depends on whether a token is masked, wrong or right, hardly on time; raw "
            "are those of the likelihood bound, clip cuts these at --gidd_max_weight"
        },
    )
    gidd_max_weight: float = field(
        default=1.0, metadata={"help": "greatest weight of clip; scale of dynamic, whose masks weigh twice that"}
    )

    def __post_init__(self):
        check_choices(self)
        if not 0 <= self.p_uniform < 1:
            raise DiffusionError(f"--p_uniform {self.p_uniform}: expected at least 0 and less than 1")
        if not 0 < self.gidd_max_weight < math.inf:
            raise DiffusionError(f"--gidd_max_weight {self.gidd_max_weight}: expected a number above 0")


class InterpolatingProcess:
    """GIDD as a `TokenProcess`; with p_uniform = 0 and the weights `raw` it is MDLM with alpha = 1 - t."""

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        *,
        p_uniform: float = 0.1,
        weights: str = "dynamic",
        max_weight: float = 1.0,
        timesteps: int = 1000,
    ):
        self.vocab_size, self.mask_id, self.timesteps = vocab_size, mask_id, timesteps
        self.p_uniform, self.max_weight = p_uniform, max_weight
        self.loss_reads = self.step_reads = None if p_uniform > 0 else mask_id  # without noise what is seen is right
        self._clean = vocab_size - 1  # N
        self._noise_scale = 2 * p_uniform / (1 - p_uniform)  # c_t / sqrt(t (1 - t))
        self._training_weights = {"dynamic": self._dynamic, "clip": self._clipped, "raw": self.weights}[weights]

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times t [B] in float64, even over the steps less a margin of 1e-4 at both ends of [0, 1]."""
        start, stop = max(steps.start / self.timesteps, MARGIN), min(steps.stop / self.timesteps, 1 - MARGIN)
        return start + (stop - start) * u.double()

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 even times from 1 to 0, without a margin: both ends are exact, and the step to 0 leaves no mask."""
        return even_grid(sampling_timesteps)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """All masks."""
        return torch.full(tuple(shape), self.mask_id, device=device)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities that a token is kept (alpha), masked, replaced: (1 - t, t, c_t) / C_t, shaped as t, float64."""
        t = t.double()
        c = self._noise_scale * (t * (1 - t)).sqrt()
        return (1 - t) / (1 + c), t / (1 + c), c / (1 + c)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x_t ~ q(x_t | x_0) [B, L]."""
        alpha, _, replaced = self.marginal(t[:, None])
        u, which = (uniform(x0.shape, generator, x0.device, torch.float64) for _ in range(2))
        noise = torch.where(u >= 1 - replaced, self._clean_id(which), self.mask_id)
        return torch.where(u < alpha, x0, noise)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """log x_theta [B, L, V], the mask excluded."""
        return without(self.mask_id, widened(output)).log_softmax(-1)

    def weights(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The bound's weights [B, L] for 0 < t < 1: the rate into x_t from elsewhere divided by q_t(x_t | x_0)."""
        alpha, _, replaced = self.marginal(t[:, None])
        each = replaced / self._clean
        t = t.double()[:, None]
        return self._by_kind(x0, xt, each / (alpha + each)) / (2 * t * (1 - t))

    def divergence(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """KL(q_t(. | x_0) || q_t(. | x_theta)) + D_IS(q_t(x_t | x_0) || q_t(x_t | x_theta)) [B, L] in nats, float64.

        D_IS(a || b) = a / b - log(a / b) - 1. For 0 < t < 1; where `weights` is 0 the value means nothing.
        """
        alpha, _, replaced = self.marginal(t[:, None])
        log_x0, log_xt = (_at(x0_hat, x).double() for x in (x0, xt))
        if self.p_uniform == 0:
            return -alpha * log_x0  # of a mask; no other token has a weight
        # q_t(v | x_theta) = each (1 + rho x_theta(v)), so only log(1 + rho x_theta) is needed, whose sum over v is the
        # one thing that takes all of [B, L, V].
        each = replaced / self._clean
        log_rho = (alpha / each).log()
        certain = softplus(log_rho)
        over_ids = softplus(x0_hat + log_rho[..., None].to(x0_hat.dtype)).sum(-1).double()
        kl = alpha * (certain - softplus(log_x0 + log_rho)) + each * (certain - over_ids)
        log_ratio = torch.where(xt == x0, certain, 0.0) - softplus(log_xt + log_rho)  # 0 at a mask
        return kl + torch.expm1(log_ratio) - log_ratio

    def integrand(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Nats per unit of time [B, L], at least 0: the mean over x_t, integrated over t, bounds -log p(x_0)."""
        return _weighted(self.weights(x0, xt, t), self.divergence(x0_hat, x0, xt, t))

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The integrand with training weights [B, L], in float64."""
        x0_hat = self.denoised(output, xt, t)
        return _weighted(self._training_weights(x0, xt, t), self.divergence(x0_hat, x0, xt, t))

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw of an upper bound on -log p(x_0) [B, L] in nats: the integral alone, as both ends are exact."""
        # The variance sits at the ends, where rare events weigh 1 / (t (1 - t)). With uniform noise it is infinite for
        # even times and for t = (1 - cos(pi u)) / 2 alike, and finite for times that leave the ends as u^3.
        u = u.double()
        t = (u**3 * (10 - 15 * u + 6 * u**2)).clamp(BOUND_MARGIN, 1 - BOUND_MARGIN)
        dt_du = 30 * (u * (1 - u)) ** 2
        xt = torch.where(free, self.corrupt(x0, t, generator), x0)
        at = Positions.where(free if self.loss_reads is None else free & (xt == self.loss_reads))
        nats = self.integrand(predict(xt, t, at), at.of(x0), at.of(xt), at.times(t))
        return dt_du[:, None] * at.spread(nats)

    def reverse(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] in float64, proportional to q(x_t | x_s) q_s(x_s | x_theta), for any s < t."""
        stay, mask, replace, draw = self._routes(x0_hat, xt, t, s).unsqueeze(-2).unbind(-1)
        ids = torch.arange(self.vocab_size, device=xt.device)
        even = torch.where(ids == self.mask_id, mask, replace / self._clean)
        return even + draw * x0_hat.double().exp() + stay * (ids == xt[..., None])

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s [B, L] ~ `reverse`, first choosing the way there: only tokens drawn from x_theta need all its ids."""
        u, which = (uniform(xt.shape, generator, xt.device, torch.float64) for _ in range(2))
        route = sample_categorical(self._routes(x0_hat, xt, t, s), u)
        xs = torch.where(route == 0, xt, torch.where(route == 1, self.mask_id, self._clean_id(which)))
        at = Positions.where(route == 3)
        return at.put(xs, sample_categorical(at.of(x0_hat).double().exp(), at.of(which)))

    def _routes(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) split [B, L, 4]: x_s is x_t again, the mask, a uniform draw, a draw from x_theta."""
        alpha_t, _, _ = self.marginal(t[:, None])
        alpha_s, mask_s, replaced_s = self.marginal(s[:, None])
        is_masked = xt == self.mask_id
        # q(x_t | x_s) for x_s other than x_t, written so that rounding cannot make it negative, nor t = 1 undefined.
        t, s = t.double()[:, None], s.double()[:, None]
        scale = 1 + self._noise_scale * (t * (1 - t)).sqrt()  # C_t
        kept = (1 - t) / (1 - s)
        to_mask = (t - s) / (1 - s) / scale
        to_each = self._noise_scale * (1 - t).sqrt() * (t.sqrt() - (s * kept).sqrt()) / (self._clean * scale)
        arrival = torch.where(is_masked, to_mask, to_each)
        same = torch.where(is_masked, mask_s, alpha_s * _at(x0_hat, xt).double().exp() + replaced_s / self._clean)
        ways = (alpha_t / alpha_s * same, arrival * mask_s, arrival * replaced_s, arrival * alpha_s)
        routes = torch.stack(torch.broadcast_tensors(*ways), -1)
        total = routes.sum(-1, keepdim=True)
        # A token that x_theta rules out, or that the process cannot show at t (a known one at t = 1), stays.
        stays = (torch.arange(4, device=xt.device) == 0).double()
        return torch.where(total > 0, routes / total, stays)

    def _by_kind(self, x0: Tensor, xt: Tensor, right: Tensor) -> Tensor:
        """Relative weights [B, L]: 2 for a mask, 1 for a wrong token (there is none without uniform noise), `right`."""
        wrong = float(self.p_uniform > 0)
        return torch.where(xt == self.mask_id, 2.0, torch.where(xt == x0, right, wrong))

    def _clipped(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.weights(x0, xt, t).clamp(max=self.max_weight)

    def _dynamic(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The published weights w_max (1 + [mask] + (B/N sqrt((1 - alpha) / alpha) - 1) [right]), N the clean ids.

        They are 2 t (1 - t) w_max times the bound's weights, for right tokens nearly: there c_t is shared by the clean
        ids, so N counts these; another reading counts the mask too. Version 1.1 of the authors' code has a different
        formula, nearly constant for right tokens.
        """
        alpha, _, _ = self.marginal(t[:, None])
        right = self._noise_scale / self._clean * ((1 - alpha) / alpha).sqrt()
        return self.max_weight * self._by_kind(x0, xt, right)

    def _clean_id(self, u: Tensor) -> Tensor:
        """A clean id for each uniform number, all alike."""
        rank = (u * self._clean).long()
        return rank + (rank >= self.mask_id)


def _at(x0_hat: Tensor, ids: Tensor) -> Tensor:
    return x0_hat.gather(-1, ids[..., None]).squeeze(-1)


def _weighted(weights: Tensor, divergence: Tensor) -> Tensor:
    return torch.where(weights > 0, weights * divergence, 0.0)  # not 0 * inf where a token cannot occur
