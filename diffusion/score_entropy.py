"""SEDD: the network estimates ratios of probabilities (Lou et al. 2024, arXiv:2310.16834).

`denoised` gives log-scores: log of p_t(y) / p_t(x_t) for every token y in the place of x_t, 0 at x_t itself.
Legend: B batch, L positions, V vocabulary, T steps of training. x is [B, L] ids; t, s are [B]; sigma is total noise.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffusion.categorical import sample_categorical, widened
from diffusion.gaussian import like
from diffusion.graphs import AbsorbingGraph, Graph, UniformGraph, move_chance, moved
from diffusion.positions import Positions
from diffusion.process import DiffusionError, Predict, check_choices
from diffusion.randomness import Randomness, uniform
from diffusion.schedules import even_grid
from diffusion.survival import Survival, SurvivalOptions

TIME_MIN = 1e-3  # times between 0 and this count as this: ratios grow like 1 / sigma, and nothing is learnt below it
MAX_SIGMA = 36.0  # e^-36 is the resolution of float64: beyond, no step back could be computed
RECONSTRUCTION_SHARE = 0.05  # of the bound's draws go to its last term, which is small and varies little


@dataclass
class ScoreEntropyOptions:
    """Command-line options of SEDD; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "SEDD"

    graph: Literal["absorb", "uniform"] = field(
        default="absorb", metadata={"help": "what SEDD turns a lost token into: the mask, or any token at random"}
    )

    def __post_init__(self):
        check_choices(self)


class ScoreEntropyProcess:
    """SEDD as a `TokenProcess`, on either graph."""

    def __init__(self, graph: Graph, survival: Survival, timesteps: int = 1000):
        self.graph, self.survival, self.timesteps = graph, survival, timesteps
        self.vocab_size = graph.vocab_size
        self.loss_reads = self.step_reads = graph.mask_id
        self.sigma_1 = survival.sigma(torch.ones((), dtype=torch.float64))
        if not self.sigma_1 <= MAX_SIGMA:
            raise DiffusionError(f"--sigma_max {self.sigma_1:g} is too much for SEDD: expected at most {MAX_SIGMA:g}")

    @classmethod
    def from_options(
        cls,
        options: ScoreEntropyOptions,
        schedule: SurvivalOptions,
        *,
        vocab_size: int,
        mask_id: int | None,
        timesteps: int,
    ) -> "ScoreEntropyProcess":
        """The process the options describe; the uniform graph has no use for mask_id."""
        graph = AbsorbingGraph(vocab_size, mask_id) if options.graph == "absorb" else UniformGraph(vocab_size)
        return cls(graph, schedule.survival(graph.usual_schedule), timesteps)

    # Times

    def times(self, u: Tensor, steps: range) -> Tensor:
        """t [B] even over the steps, from TIME_MIN on: the loss weighs a mask by about 1 / t, unbounded at 0."""
        start, stop = (max(step / self.timesteps, TIME_MIN) for step in (steps.start, steps.stop))
        return start + (stop - start) * u.double()

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 even times from 1 to 0."""
        return even_grid(sampling_timesteps)

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise at t [B], float64; 0 at t = 0 whatever the schedule starts from."""
        return torch.where(t > 0, self.noise(t), 0.0)

    def noise(self, t: Tensor) -> Tensor:
        """Total noise [B] that scores at t are of, float64: that of TIME_MIN before it."""
        return self.survival.sigma(t.double().clamp(min=TIME_MIN))

    # Corruption and what the network says of it

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """x at t = 1: masks, or uniform ids."""
        return self.graph.prior(shape, generator, device)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x_t ~ q(x_t | x_0): each token is lost with chance 1 - e^-sigma(t)."""
        return self.graph.corrupt(x0, move_chance(self.sigma(t)), generator)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Log-scores [B, L, V] from the network output, finite at any t."""
        output = widened(output)
        log_score = output + like(self.graph.log_scale(self.noise(t)), output)
        return log_score.scatter(-1, xt.unsqueeze(-1), 0.0)

    # Reverse steps

    def reverse(self, log_score: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] float64 by Tweedie's formula, positions apart (Lou et al. 2024, section 4).

        Exact at one position for exact scores and any s < t. Scores that no distribution has may give negative
        entries; they count as 0.
        """
        return self._distribution(self.graph.reverse(log_score, xt, self.noise(t) - self.sigma(s)), s)

    def euler(self, log_score: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] float64 with the rates of time t held until s (Lou et al. 2024, section 4)."""
        return self._distribution(moved(self.graph, log_score, xt, (t.double() - s) * self._rate(t)), s)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s drawn from `reverse`, x0_hat being log-scores."""
        return _drawn(self.reverse(x0_hat, xt, t, s), generator)

    def euler_step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s drawn from `euler`, x0_hat being log-scores."""
        return _drawn(self.euler(x0_hat, xt, t, s), generator)

    # Loss and likelihood

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Denoising score entropy [B, L] of the network output, weighted as in the bound; >= 0, float64."""
        return self.integrand(self.denoised(output, xt, t), x0, xt, t)

    def integrand(self, log_score: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The bound in nats per unit of time, [B, L] float64: d sigma / dt times the score entropy."""
        return self._rate(t).unsqueeze(-1) * self.graph.score_entropy(log_score, x0, xt, self.noise(t))

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw of the bound on -log p(x0), [B, L] nats; see `TokenProcess` (Lou et al. 2024, thm. 3.6).

        The model is sampling with many steps: from the prior along the reverse rates to TIME_MIN, and from there to 0
        by `reverse` at once, positions apart. The bound is the integral from TIME_MIN to 1, the divergence from the
        prior and the nats of the last step; u picks one point of the integral, or the last step.
        """
        share = RECONSTRUCTION_SHARE
        is_last = u < share
        t = self.times((u - share).clamp(min=0) / (1 - share), range(self.timesteps))
        move = self.graph.bound_move_chance(self.noise(t), self.sigma_1)
        xt = torch.where(free, self.graph.corrupt(x0, move, generator), x0)
        at = Positions.where(free if self.loss_reads is None else free & (xt == self.loss_reads))
        log_score = predict(xt, t, at).double()
        x0, xt, t, is_last = at.of(x0), at.of(xt), at.times(t), at.times(is_last)
        nats = (1 - TIME_MIN) / (1 - share) * self.integrand(log_score, x0, xt, t)
        last = self.reverse(log_score[is_last], xt[is_last], t[is_last], torch.zeros_like(t[is_last]))
        nats[is_last] = -last.gather(-1, x0[is_last].unsqueeze(-1)).squeeze(-1).log() / share
        return torch.where(free, at.spread(nats) + self.graph.prior_kl(self.sigma_1), 0.0)

    def _rate(self, t: Tensor) -> Tensor:
        return self.survival.rate(t.double().clamp(min=TIME_MIN))

    def _distribution(self, weights: Tensor, s: Tensor) -> Tensor:
        """Weights [B, L, V] made to sum to 1 in their place, without the mask where s = 0."""
        if self.graph.mask_id is not None:
            weights[..., self.graph.mask_id] *= (s > 0)[:, None]
        return weights.div_(weights.sum(-1, keepdim=True))


def _drawn(probabilities: Tensor, generator: Randomness) -> Tensor:
    u = uniform(probabilities.shape[:-1], generator, probabilities.device, torch.float64)
    return sample_categorical(probabilities, u)
