"""Two processes that replace one token after the other by a mask and learn to put them back: MDLM and D3PM.

MDLM (Sahoo et al. 2024, arXiv:2406.07524): continuous time, any survival schedule, and a network that never predicts
the mask; what is seen is copied (SUBS). D3PM with an absorbing state (Austin et al. 2021, arXiv:2107.03006): T steps,
alpha = 1 - t, and a plain softmax that may give the mask some probability theta_m. Either needs it at masks only.
Legend: B batch, L positions, V vocabulary with the mask; move chance m = 1 - alpha.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.categorical import sample_categorical, widened, without
from diffusion.positions import Positions
from diffusion.process import Predict
from diffusion.randomness import Randomness, uniform
from diffusion.schedules import even_grid, step_times, time_grid
from diffusion.survival import EPSILON, Survival

# Earliest training time of MDLM. The few masks before it would have weights 1 / t without limit, hence a loss of
# infinite variance; without them the mean over times covers [0.001, 1] instead of [0, 1].
EARLIEST = 1e-3


@dataclass
class MaskedOptions:
    """What MDLM has of its own, beside the noise schedule."""

    _argument_group_name: ClassVar[str] = "MDLM"

    importance_sampling: bool = field(
        default=False,
        metadata={"help": "draw times so that the share of masks is log-uniform; every mask then weighs the same"},
    )


@dataclass
class D3PMOptions:
    """What D3PM has of its own."""

    _argument_group_name: ClassVar[str] = "D3PM"

    zero_mask_prob: bool = field(
        default=False, metadata={"help": "forbid the network to predict the mask, as MDLM does (an ablation)"}
    )


class MaskedProcess:
    """MDLM, the masked `TokenProcess` in continuous time; `timesteps` only divides the range of training times."""

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        survival: Survival,
        *,
        timesteps: int = 1000,
        importance_sampling: bool = False,
    ):
        self.vocab_size = vocab_size
        self.mask_id = self.loss_reads = self.step_reads = mask_id
        self.survival = survival
        self.timesteps = timesteps
        self.importance_sampling = importance_sampling

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times [B] among the steps: even from EARLIEST on, or with importance sampling log-even in m."""
        u, start, stop = u.double(), steps.start / self.timesteps, steps.stop / self.timesteps
        if not self.importance_sampling:
            start = max(start, EARLIEST)
            return start + (stop - start) * u
        low, high = self._log_move_chance(torch.linspace(start, stop, 2, dtype=torch.float64, device=u.device))
        return self.survival.time_of_move_chance(torch.exp(low + (high - low) * u))

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 evenly spaced times from 1 to 0; DiffusionError unless S >= 1."""
        return even_grid(sampling_timesteps)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """All masks; draws nothing."""
        return torch.full(tuple(shape), self.mask_id, device=device)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x0 [B, L] with each token masked at chance m(t)."""
        return hide(x0, self.survival.move_chance(t), self.mask_id, generator)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """log p(x0) [B, L, V] of what masks hide, never the mask; where a token is seen it means nothing."""
        return without(self.mask_id, widened(output)).log_softmax(-1)

    def reverse(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] for any s < t (Sahoo et al. 2024, section 3)."""
        return reverse_masks(x0_hat, xt, self._stays(t, s), self.mask_id)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s [B, L] drawn from `reverse`; no mask is left at s = 0."""
        return unmask(x0_hat, xt, self._stays(t, s), self.mask_id, generator)

    def leaving(self, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
        """What `step` draws, before it reads x0_hat: which masks [B, L] go, and uniforms [B, L] for the tokens."""
        return leaving(xt, self._stays(t, s), self.mask_id, generator)

    def integrand(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Nats per unit time [B, L]: -log p(x0) sigma' / (e^sigma - 1) at masks (Sahoo et al. 2024, section 3)."""
        t = t.double()
        weight = self.survival.rate(t) / torch.expm1(self.survival.sigma(t))
        weight = torch.where(t > 0, weight, 0.0)  # nothing is masked at t = 0, where it may be infinite
        return weight[:, None] * nats(x0_hat, x0, xt == self.mask_id)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The integrand [B, L] at the network's output, divided by the density of t where that is not even."""
        x0_hat = self.denoised(output, xt, t)
        if not self.importance_sampling:
            return self.integrand(x0_hat, x0, xt, t)
        # The weight is m'/m, and so is the density but for the length of the range of log m.
        low, high = self._log_move_chance(torch.arange(2, dtype=torch.float64, device=t.device))
        return (high - low) * nats(x0_hat, x0, xt == self.mask_id)

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw [B, L] of -log p(x0) <= integral over m in [0, 1] of E[-log p(x0 at masks)] / m; see `mask_some`.

        The same for every schedule but for the time the network is told: that with the drawn m, or the nearest.
        """
        xt, move, weight = mask_some(x0, free, u, generator, self.mask_id)
        at = Positions.where(free & (xt == self.mask_id))
        x0_hat = predict(xt, self.survival.time_of_move_chance(move), at)
        return weight[:, None] * at.spread(nats(x0_hat, at.of(x0), at.of(xt) == self.mask_id))

    def _stays(self, t: Tensor, s: Tensor) -> Tensor:
        """Chance [B, 1] that a mask at t is still one at s: (1 - alpha_s) / (1 - alpha_t), 0 at s = 0."""
        return (self.survival.move_chance(s) / self.survival.move_chance(t))[:, None]

    def _log_move_chance(self, t: Tensor) -> Tensor:
        """log m(t), at t = 0 that of where importance-sampled times start."""
        first = self.survival.sigma(torch.zeros_like(t))
        first = torch.where(first > 0, first, EPSILON)  # schedules that start at 0 lose their first thousandth
        return torch.where(t > 0, self.survival.move_chance(t).log(), torch.log(-torch.expm1(-first)))


class D3PMProcess:
    """D3PM with an absorbing mask, the masked `TokenProcess` with T steps: t = k / T, alpha = 1 - t.

    With theta = softmax(output), mask included, the reverse step is sum_v theta_v q(x_t | x_s) q(x_s | x_0 = v) made to
    sum to 1 (Austin et al. 2021, eq. 4), except that the last step, to s = 0, gives the mask's share to the tokens.
    """

    def __init__(self, vocab_size: int, mask_id: int, *, timesteps: int = 1000, zero_mask_prob: bool = False):
        self.vocab_size = vocab_size
        self.mask_id = self.loss_reads = self.step_reads = mask_id
        self.timesteps = timesteps
        self.zero_mask_prob = zero_mask_prob

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times [B] among the given steps."""
        return step_times(u, self.timesteps, steps)

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 of the T steps' times, from 1 to 0."""
        return time_grid(self.timesteps, sampling_timesteps)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """All masks; draws nothing."""
        return torch.full(tuple(shape), self.mask_id, device=device)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x0 [B, L] with each token masked at chance t."""
        return hide(x0, t.double(), self.mask_id, generator)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """log theta [B, L, V], at masks and tokens alike."""
        output = widened(output)
        return (without(self.mask_id, output) if self.zero_mask_prob else output).log_softmax(-1)

    def reverse(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] for any s < t; a token stays what it is."""
        return reverse_masks(x0_hat, xt, self._stays(x0_hat, t, s), self.mask_id)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s [B, L] drawn from `reverse`; no mask is left at s = 0."""
        return unmask(x0_hat, xt, self._stays(x0_hat, t, s), self.mask_id, generator)

    def divergence(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) [B, L] in nats for s < t; at s = 0 it still lets p keep masks."""
        t, s = t.double()[:, None], s.double()[:, None]
        log_theta = x0_hat.gather(-1, x0[..., None]).squeeze(-1).double()
        theta_m = x0_hat[..., self.mask_id].double().exp()
        gone = torch.log1p((1 - t) * theta_m / t) - log_theta  # -log of the chances to go under p, over those under q
        stay = torch.log1p((1 - t) * theta_m / t) - torch.log1p((1 - s) * theta_m / torch.where(s > 0, s, 1.0))
        return torch.where(xt == self.mask_id, (1 - s / t) * gone + s / t * stay, 0.0)  # stay counts 0 at s = 0

    def integrand(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """T KL_k [B, L] in nats at t = k / T, KL_1 being the reconstruction: their mean over k is the bound."""
        k = (t.double() * self.timesteps).round()
        t, s = k / self.timesteps, (k - 1) / self.timesteps
        # The bound of what `step` draws: at k = 1 that is theta over real tokens only, so KL_1 = -log p(x0 | x_1) is
        # taken with it. The reference code instead lets masks remain at s = 0 and adds a second reconstruction from
        # clean x0, a step that no sampler takes.
        last = s == 0
        if last.any():  # spares copies of [B, L, V] where it can
            x0_hat = x0_hat.index_put((last,), without(self.mask_id, x0_hat[last]).log_softmax(-1))
        return self.timesteps * self.divergence(x0_hat, x0, xt, t, s)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The integrand [B, L] at the network's output."""
        return self.integrand(self.denoised(output, xt, t), x0, xt, t)

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw [B, L] of -log p(x0) <= sum_k E[KL_k]: u chooses k. The prior is exact, since alpha(1) = 0."""
        t = self.times(u, range(self.timesteps))
        xt = torch.where(free, self.corrupt(x0, t, generator), x0)
        at = Positions.where(free & (xt == self.mask_id))
        return at.spread(self.integrand(predict(xt, t, at), at.of(x0), at.of(xt), at.times(t)))

    def _stays(self, x0_hat: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Chance [B, L] that a mask at t is still one at s; 0 at s = 0."""
        t, s = t.double()[:, None], s.double()[:, None]
        theta_m = x0_hat[..., self.mask_id].double().exp()
        return torch.where(s > 0, (s + (1 - s) * theta_m) / (t + (1 - t) * theta_m), 0.0)


# What masked processes share.


def hide(x0: Tensor, chance: Tensor, mask_id: int, generator: Randomness) -> Tensor:
    """x0 [B, L] with each position masked independently at its sample's chance [B]."""
    return torch.where(uniform(x0.shape, generator, x0.device, torch.float64) < chance[:, None], mask_id, x0)


def mask_some(
    x0: Tensor, free: Tensor, u: Tensor, generator: Randomness, mask_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t [B, L] with k of the n `free` positions masked, the move chance m [B] that did it, the weight n / k [B].

    u [B] in [0, 1) chooses k evenly from 1 .. n. The mean of the weighted nats at masks is the integral of E[nats] / m
    over m in [0, 1], exactly: 1 / m times the chance C(n, k) m^k (1 - m)^(n - k) of k masks is 1 / k times the density
    of Beta(k, n - k + 1), and that is the distribution of the k-th smallest of n uniforms. So one uniform a position is
    drawn, m is the k-th smallest, and what is at or below it is masked. A row without free positions has weight 0.
    """
    draws = uniform(x0.shape, generator, x0.device, torch.float64).masked_fill(~free, torch.inf)
    n = free.sum(1)
    k = torch.minimum((u.double() * n).long() + 1, n)  # u * n may round up to n
    move = draws.sort(1).values.gather(1, (k - 1).clamp(min=0)[:, None])
    xt = torch.where(free & (draws <= move), mask_id, x0)
    return xt, torch.where(n > 0, move.squeeze(1), 0.0), n.double() / k.clamp(min=1)


def nats(x0_hat: Tensor, x0: Tensor, is_masked: Tensor) -> Tensor:
    """-log p(x0) [B, L] in float64 where masked, exactly 0 elsewhere, whatever x0_hat says there."""
    return torch.where(is_masked, -x0_hat.gather(-1, x0[..., None]).squeeze(-1).double(), 0.0)


def reverse_masks(x0_hat: Tensor, xt: Tensor, stays: Tensor, mask_id: int) -> Tensor:
    """Probabilities [B, L, V]: a mask stays with chance [B, L or 1] or becomes a token of x0_hat; a token stays."""
    probs = (1 - stays[..., None]) * without(mask_id, x0_hat.double()).softmax(-1)
    probs[..., mask_id] = stays
    return carried_over(probs, xt, mask_id)


def carried_over(probs: Tensor, xt: Tensor, mask_id: int) -> Tensor:
    """probs [B, L, V] at masks; where x_t is a token, that token for certain."""
    seen = torch.zeros_like(probs).scatter(-1, xt[..., None], 1.0)
    return torch.where((xt == mask_id)[..., None], probs, seen)


def leaving(xt: Tensor, stays: Tensor, mask_id: int, generator: Randomness) -> tuple[Tensor, Tensor]:
    """Which masks of x_t [B, L] go, and a uniform for the token in the place of each; a mask stays with chance [B, L].

    Two uniforms a position are drawn always: what comes after does not depend on how many masks there are.
    """
    leave, token = (uniform(xt.shape, generator, xt.device, torch.float64) for _ in range(2))
    return (xt == mask_id) & (leave >= stays), token


def unmask(x0_hat: Tensor, xt: Tensor, stays: Tensor, mask_id: int, generator: Randomness) -> Tensor:
    """x_s [B, L] drawn from `reverse_masks` in two stages: which masks go, then the tokens in their place.

    In one draw rare tokens would compete with the mask.
    """
    now, token = leaving(xt, stays, mask_id, generator)
    at = Positions.where(now)
    return at.put(xt, sample_categorical(without(mask_id, at.of(x0_hat).double()).exp(), at.of(token)))
