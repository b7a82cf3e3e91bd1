"""Samplers: stateless functions that walk an explicit grid of times from noise to data.

A sampler sees the network only as predict_x0(x_t, t [B]) -> x0_hat and is called as
sampler(process, predict_x0, x, times, *, generator, on_step), with x at time times[0] and `times` decreasing to 0.
Nothing is clipped. on_step(i, n, x) is told after step i = 1 .. n what x has become.
Legend: B batch, L positions, D latent width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffusion.gaussian import GaussianProcess, like
from diffusion.positions import Positions
from diffusion.process import DiffusionError, Predict, Process, check_choices
from diffusion.randomness import Randomness, normal

OnStep = Callable[[int, int, Tensor], None]


Step = Callable[[Tensor, Tensor, Tensor, tuple[float, float]], Tensor]


@torch.no_grad()
def walk(step: Step, x: Tensor, times: Sequence[float], on_step: OnStep | None) -> Tensor:
    """What step(x, t [B], s [B], (t, s)) makes of x from each time t of the grid to the next one s.

    Times are float64. What depends on their value goes by the two numbers: to read a tensor is to wait for a GPU.
    """
    like_x = {"device": x.device, "dtype": torch.float64}
    for i, (t, s) in enumerate(pairwise(times), start=1):
        x = step(x, torch.full((len(x),), t, **like_x), torch.full((len(x),), s, **like_x), (t, s))
        if on_step is not None:
            on_step(i, len(times) - 1, x)
    return x


def sample_ancestral(
    process: Process,
    predict_x0: Predict,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """Follow the reverse process itself: each step draws x_s from process.step; serves any process, tokens included."""
    return walk(lambda x, t, s, _: stepped(process.step, process, predict_x0, x, t, s, generator), x, times, on_step)


def stepped(
    step: Callable[..., Tensor],
    process: Process,
    predict_x0: Predict,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    generator: Randomness,
) -> Tensor:
    """x at s by a step of the process, the network being asked only where steps read its answer."""
    if process.step_reads is None:
        return step(predict_x0(x, t), x, t, s, generator)
    at = Positions.where(x == process.step_reads)
    xs = step(predict_x0(x, t, at), at.of(x), at.times(t), at.times(s), at.draws(generator))
    return at.put(x, xs)


def sample_ddim(
    process: GaussianProcess,
    predict_x0: Predict,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12, 16): eta = 0 draws nothing, eta = 1 is ancestral; the last step gives x0_hat."""
    return walk(lambda x, t, s, _: _ddim_step(process, predict_x0(x, t), x, t, s, generator, eta), x, times, on_step)


def sample_dpmpp(
    process: GaussianProcess,
    predict_x0: Predict,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, algorithm 2): deterministic, of second order, nothing drawn.

    Each step is one of DDIM, eta = 0, towards x0_hat extrapolated along h, the rise of log(alpha / sigma). The first
    step has no estimate before it; the last one, to data, where h is infinite, gives x0_hat itself.
    """
    x0_before, h_before = None, None

    def step(x: Tensor, t: Tensor, s: Tensor, now: tuple[float, float]) -> Tensor:
        nonlocal x0_before, h_before
        target = x0_hat = predict_x0(x, t)
        h = _log_signal_to_noise(process, s) - _log_signal_to_noise(process, t)
        if x0_before is not None and now[1] > 0:
            target = x0_hat + like(h / (2 * h_before), x) * (x0_hat - x0_before)
        x0_before, h_before = x0_hat, h
        return _ddim_step(process, target, x, t, s, generator, eta=0.0)

    return walk(step, x, times, on_step)


def sample_q(
    process: GaussianProcess,
    predict_x0: Predict,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    q_from: float = 0.4,
    on_step: OnStep | None = None,
) -> Tensor:
    """Where t <= q_from x_s is drawn anew from q(x_s | x_0 = x0_hat) (arXiv:2604.02028); before, DDIM with eta = 0.

    Fresh noise does not carry along the errors of earlier estimates. It is no integrator, though: even with an exact
    denoiser samples have too little spread and favour what is common. (The paper has ancestral sampling before.)
    """

    def step(x: Tensor, t: Tensor, s: Tensor, now: tuple[float, float]) -> Tensor:
        x0_hat = predict_x0(x, t)
        if now[0] <= q_from:
            return process.corrupt(x0_hat, s, generator)
        return _ddim_step(process, x0_hat, x, t, s, generator, eta=0.0)

    return walk(step, x, times, on_step)


def sample_churn(
    process: GaussianProcess,
    predict_x0: Predict,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    churn: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Each step first goes `churn` steps of the grid back to higher noise, by fresh noise, then down by DDIM, eta = 0.

    What the network sees has the distribution of its time exactly, and errors of earlier steps are partly drowned (the
    stochastic sampler of Karras et al. 2022, arXiv:2206.00364, algorithm 2, in steps of the process). The last step
    draws nothing; churn = 0 is DDIM, eta = 0.
    """

    def step(x: Tensor, t: Tensor, s: Tensor, now: tuple[float, float]) -> Tensor:
        higher = ((t + churn * (t - s)).clamp(max=1) * process.timesteps).round() / process.timesteps
        if now[1] > 0:
            x, t = process.noised_further(x, t, higher, generator), higher
        return _ddim_step(process, predict_x0(x, t), x, t, s, generator, eta=0.0)

    return walk(step, x, times, on_step)


def _ddim_step(
    process: GaussianProcess, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness, eta: float
) -> Tensor:
    bar_t, bar_s = process.alpha_bar(t), process.alpha_bar(s)
    sigma = eta * ((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)).sqrt()
    towards_xt = (1 - bar_s - sigma**2).clamp(min=0).sqrt()  # rounding may leave -1e-17
    noise = process.noise_from_x0(x0_hat, xt, t)
    xs = like(bar_s.sqrt(), xt) * x0_hat + like(towards_xt, xt) * noise
    if eta > 0:
        xs = xs + like(sigma, xt) * normal(xt.shape, generator, xt.device, xt.dtype)
    return xs


def _log_signal_to_noise(process: GaussianProcess, t: Tensor) -> Tensor:
    """log(alpha / sigma) [B] in float64; infinite at t = 0."""
    bar = process.alpha_bar(t)
    return (bar.log() - (1 - bar).log()) / 2


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": sample_ddim,
    "ancestral": sample_ancestral,
    "dpmpp": sample_dpmpp,
    "q": sample_q,
    "churn": sample_churn,
}


@dataclass
class SamplingOptions:
    """Command-line options of sampling; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "sampling"

    sampler: Literal[
        "default", "ddim", "ancestral", "dpmpp", "q", "churn", "ddpm_cache", "first_hitting", "euler", "left_to_right"
    ] = field(
        default="default",
        metadata={
            "help": "how noise is turned into data. latent: ddim (default), ancestral, dpmpp (DPM-Solver++ 2M), q "
            "(q-sampling), churn (back to more noise before each step); tokens: ancestral (default), for mdlm "
            "ddpm_cache (default: the same texts sooner) and first_hitting, for sedd euler; ar: left_to_right"
        },
    )
    sampling_timesteps: int = field(
        default=250, metadata={"help": "number of sampling steps, at most --timesteps; each costs one network call"}
    )
    grid_power: float = field(
        default=1.0,
        metadata={
            "help": "sampling times are even ones to this power: below 1 more of the steps are spent at high noise, "
            "which few steps need most"
        },
    )
    ddim_sampling_eta: float = field(
        default=1.0, metadata={"help": "randomness of ddim: 0 is deterministic, 1 as random as ancestral sampling"}
    )
    q_sampling_from: float = field(
        default=0.4, metadata={"help": "time from which q draws fresh noise at each step: 1 is always, 0 never"}
    )
    churn: float = field(
        default=1.0, metadata={"help": "how many steps back to higher noise churn goes before each step down"}
    )
    early_stop: float = field(
        default=0.0,
        metadata={
            "help": "A latent is finished when its prediction moves by less than this (root mean square) in a step and "
            "signal outweighs noise; 0: after the last step"
        },
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "weight of the class label: above 1 further away from what is predicted without it, at two network "
            "calls a step (--class_conditional)"
        },
    )
    self_condition_guidance: float = field(
        default=1.0, metadata={"help": "the same for the estimate of the step before (--self_condition)"}
    )
    temperature: float = field(default=1.0, metadata={"help": "sharpens what is predicted of each token if below 1"})
    top_p: float = field(default=1.0, metadata={"help": "keep the likeliest tokens that have this probability"})
    top_k: int = field(default=0, metadata={"help": "keep this many of the likeliest tokens; 0: all"})

    def __post_init__(self):
        check_choices(self)
        if self.sampling_timesteps < 1:
            raise DiffusionError(f"--sampling_timesteps {self.sampling_timesteps} must be 1 or more")
        if not 0 < self.grid_power < math.inf:
            raise DiffusionError(f"--grid_power {self.grid_power} must be above 0; 1 is an even grid")
        if not 0 <= self.ddim_sampling_eta <= 1:
            raise DiffusionError(f"--ddim_sampling_eta {self.ddim_sampling_eta} must be between 0 and 1")
        if not 0 <= self.q_sampling_from <= 1:
            raise DiffusionError(f"--q_sampling_from {self.q_sampling_from} must be between 0 and 1, a time")
        if not 0 <= self.churn < math.inf:
            raise DiffusionError(f"--churn {self.churn} must be 0 (none) or more")
        if not 0 <= self.early_stop < math.inf:
            raise DiffusionError(f"--early_stop {self.early_stop} must be 0 (off) or more, such as 0.02")
        for name in ("guidance", "self_condition_guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DiffusionError(f"--{name} {getattr(self, name)} must be 0 or more; 1 is no guidance")
        if self.guidance != 1 != self.self_condition_guidance:
            raise DiffusionError("--guidance and --self_condition_guidance: leave out one of the two")
        if not 0 < self.temperature < math.inf:
            raise DiffusionError(f"--temperature {self.temperature} must be above 0; near 0 it takes the likeliest")
        if not 0 < self.top_p <= 1:
            raise DiffusionError(f"--top_p {self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise DiffusionError(f"--top_k {self.top_k} must be 0 (all) or more")

    @property
    def is_tempered(self) -> bool:
        """Whether predictions are to be sharpened."""
        return (self.temperature, self.top_p, self.top_k) != (1, 1, 0)
