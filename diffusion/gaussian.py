"""Gaussian diffusion of continuous latents: x_t = alpha x_0 + sigma eps, alpha^2 = alpha_bar(t), sigma^2 = 1 - alpha^2.

The network predicts x_0, the noise eps, or the velocity v = alpha eps - sigma x_0 (Salimans & Ho 2022); given x_t and t
each follows from any other, so corruption, reverse step and samplers speak of x0_hat only.
Legend: B batch, L positions, D latent width. x is [B, L, D]; t, s are [B]; coefficients are float64 until they meet x.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from diffusion.process import DiffusionError, check_choices
from diffusion.randomness import Randomness, normal
from diffusion.schedules import BETA_SCHEDULES, MAX_TIMESTEPS, NoiseSchedule, step_times, time_grid
from diffusion.time_density import TimeDensity
from diffusion.window import Levels

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


@dataclass
class GaussianOptions:
    """Command-line options of the Gaussian process; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "Gaussian process"

    objective: Literal["pred_x0", "pred_noise", "pred_v"] = field(
        default="pred_x0", metadata={"help": "what the network predicts: clean latents, the noise, or the velocity"}
    )
    loss_type: Literal["l1", "l2", "smooth_l1"] = field(
        default="l2", metadata={"help": "distance between prediction and target; smooth_l1 has threshold 1"}
    )
    loss_space: Literal["output", "x0"] = field(
        default="output",
        metadata={
            "help": "where the loss is measured: on what the network predicts, or on x0 after conversion. x0 with "
            "pred_noise weighs the squared noise error by (1 - alpha_bar) / alpha_bar, up to 4e8 for cosine"
        },
    )
    beta_schedule: Literal["linear", "cosine", "tan", "log_snr"] = field(
        default="cosine",
        metadata={"help": "how the signal level falls from data to noise; log_snr: evenly in ln(sigma^2 / alpha^2)"},
    )
    noise_shift: float = field(
        default=1.0,
        metadata={
            "help": "factor on sigma / alpha at every time of the schedule: above 1 it is noisier; "
            "scripts.measure_window names one that suits codec and corpus"
        },
    )
    tan_d: float = field(default=9.0, metadata={"help": "noise shift of --beta_schedule tan; larger is noisier"})
    time_density: Literal["uniform", "loss", "information"] = field(
        default="uniform",
        metadata={
            "help": "training times are drawn alike, or as the --window asks: so that the loss is a straight line over "
            "them, or so that each takes away as much information; sampling then visits their quantiles"
        },
    )
    window: str | None = field(
        default=None, metadata={"help": "window.json of scripts.measure_window, for --time_density"}
    )
    p2_loss_weight_gamma: float = field(
        default=0.0, metadata={"help": "weigh the loss by (k + snr)^-gamma; 0 weighs all times the same"}
    )
    p2_loss_weight_k: float = field(default=1.0, metadata={"help": "k of --p2_loss_weight_gamma"})
    timesteps: int = field(
        default=1000, metadata={"help": "number of diffusion steps T, of every method that has steps"}
    )

    def __post_init__(self):
        check_choices(self)
        if not 1 <= self.timesteps <= MAX_TIMESTEPS:
            raise DiffusionError(f"--timesteps {self.timesteps} must be between 1 and {MAX_TIMESTEPS}")
        if not 0 < self.tan_d < math.inf:
            raise DiffusionError(f"--tan_d {self.tan_d} must be above 0: 9 suits wide latents, 3 to 5 compressed ones")
        if not 0 < self.noise_shift < math.inf:
            raise DiffusionError(f"--noise_shift {self.noise_shift} must be above 0: 1 leaves the schedule as it is")
        for name in ("p2_loss_weight_gamma", "p2_loss_weight_k"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DiffusionError(f"--{name} {getattr(self, name)} must be 0 or more")
        if (self.window is None) != (self.time_density == "uniform"):
            raise DiffusionError(
                f"--time_density {self.time_density} {'needs' if self.window is None else 'does not read'} a --window, "
                "the window.json of scripts.measure_window"
            )
        self.noise_schedule()  # refuses combinations that make no schedule, before anything is loaded

    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule these options describe."""
        own = {"tan": {"d": self.tan_d}}
        betas = BETA_SCHEDULES[self.beta_schedule](self.timesteps, **own.get(self.beta_schedule, {}))
        return NoiseSchedule.from_betas(betas).shifted(self.noise_shift)


class GaussianProcess:
    """The Gaussian `Process`: corrupts x0 [B, L, D], inverts it step by step, and measures the network's output."""

    loss_reads = step_reads = None

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        objective: str = "pred_x0",
        loss_type: str = "l2",
        loss_space: str = "output",
        p2_gamma: float = 0.0,
        p2_k: float = 1.0,
        density: TimeDensity | None = None,
    ):
        self.schedule, self.density = schedule, density
        self.p2_gamma, self.p2_k = p2_gamma, p2_k
        self._distance = LOSSES[loss_type]
        # What the loss compares: (network output, its target) or (x0_hat, x0).
        self._compared = {
            "output": lambda output, x0, xt, t: (output, self.target(x0, xt, t)),
            "x0": lambda output, x0, xt, t: (self.denoised(output, xt, t), x0),
        }[loss_space]
        self._to_x0, self._from_x0 = {
            "pred_x0": (lambda x0_hat, xt, t: x0_hat, lambda x0, xt, t: x0),
            "pred_noise": (self.x0_from_noise, self.noise_from_x0),
            "pred_v": (self.x0_from_v, self.v_from_x0),
        }[objective]

    @classmethod
    def from_options(cls, options: GaussianOptions, levels: Levels | None = None) -> "GaussianProcess":
        """The process the options describe; `levels` are what a --time_density was measured from."""
        schedule, kind = options.noise_schedule(), options.time_density
        return cls(
            schedule,
            objective=options.objective,
            loss_type=options.loss_type,
            loss_space=options.loss_space,
            p2_gamma=options.p2_loss_weight_gamma,
            p2_k=options.p2_loss_weight_k,
            density=None if kind == "uniform" else TimeDensity(schedule.gamma, levels, kind),
        )

    @property
    def timesteps(self) -> int:
        """T, the number of steps."""
        return self.schedule.timesteps

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times [B] among the given steps."""
        if self.density is None:
            return step_times(u, self.timesteps, steps)
        return (self.density.steps(u, steps) + 1).double() / self.timesteps

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 of the T steps' times, from 1 to 0: even ones, or by the density of times."""
        even = time_grid(self.timesteps, sampling_timesteps)
        if self.density is None:
            return even
        return [*((i + 1) / self.timesteps for i in self.density.grid(sampling_timesteps)), 0.0]

    def alpha_bar(self, t: Tensor) -> Tensor:
        """alpha_bar(t) [B] in float64: the share of signal variance in x_t."""
        return self.schedule.alpha_bar(t)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """x at t = 1, drawn from N(0, I)."""
        return normal(shape, generator, device)

    def corrupt(
        self, x0: Tensor, t: Tensor, generator: Randomness | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        """x_t ~ q(x_t | x_0), from a generator or from given noise [B, L, D]."""
        if noise is None:
            noise = normal(x0.shape, generator, x0.device, x0.dtype)
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def noised_further(self, xt: Tensor, t: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """x_u ~ q(x_u | x_t) for u >= t; at u = t it is x_t itself."""
        kept = self.alpha_bar(u) / self.alpha_bar(t)
        noise = normal(xt.shape, generator, xt.device, xt.dtype)
        return like(kept.sqrt(), xt) * xt + like((1 - kept).sqrt(), xt) * noise

    # Conversions between x0, noise and velocity, given x_t; those to noise are undefined at t = 0.

    def noise_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The eps with which x0 makes x_t; needs t > 0."""
        alpha, sigma = self._alpha_sigma(t, xt)
        return (xt - alpha * x0) / sigma

    def x0_from_noise(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The x0 from which eps makes x_t; near t = 1 it magnifies the error of eps by 1 / alpha (2e4 for cosine)."""
        alpha, sigma = self._alpha_sigma(t, xt)
        return (xt - sigma * noise) / alpha

    def v_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma x0 for the eps with which x0 makes x_t; needs t > 0."""
        alpha, sigma = self._alpha_sigma(t, xt)
        return (alpha * xt - x0) / sigma

    def x0_from_v(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0 = alpha x_t - sigma v."""
        alpha, sigma = self._alpha_sigma(t, xt)
        return alpha * xt - sigma * v

    def target(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """What the network should have put out for x_t made of x0: x0, eps or v."""
        return self._from_x0(x0, xt, t)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat [B, L, D] from the network output."""
        return self._to_x0(output, xt, t)

    def posterior(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, L, D] and std [B, 1, 1] of q(x_s | x_t, x_0 = x0_hat) for any s < t (Ho et al. 2020, eq. 7)."""
        bar_t, bar_s = self.alpha_bar(t), self.alpha_bar(s)
        kept = bar_t / bar_s  # signal variance that survives from s to t
        from_x0 = bar_s.sqrt() * (1 - kept) / (1 - bar_t)
        from_xt = kept.sqrt() * (1 - bar_s) / (1 - bar_t)
        std = ((1 - bar_s) / (1 - bar_t) * (1 - kept)).sqrt()
        return like(from_x0, xt) * x0_hat + like(from_xt, xt) * xt, like(std, xt)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s from the true posterior given x0_hat, for any s < t; at s = 0 it is x0_hat itself."""
        mean, std = self.posterior(x0_hat, xt, t, s)
        return mean + std * normal(xt.shape, generator, xt.device, xt.dtype)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Loss [B, L], mean over D, times the P2 weight (k + alpha_bar / (1 - alpha_bar))^-gamma (Choi et al. 2022)."""
        predicted, target = self._compared(output.to(x0.dtype), x0, xt, t)
        bar = self.alpha_bar(t)
        weight = like((self.p2_k + bar / (1 - bar)) ** -self.p2_gamma, x0)
        return (weight * self._distance(predicted, target, reduction="none")).mean(dim=-1)

    def _alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        bar = self.alpha_bar(t)
        return like(bar.sqrt(), x), like((1 - bar).sqrt(), x)


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] in the precision of x [B, ...] and shaped to scale it."""
    return coefficient.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
