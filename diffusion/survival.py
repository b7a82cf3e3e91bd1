"""How long a token survives: sigma(t), its rate, and alpha(t) = exp(-sigma(t)) = 1 - move chance, in float64.

Used by every process that replaces tokens (Lou et al. 2024, arXiv:2310.16834; Sahoo et al. 2024, arXiv:2406.07524).
t is [B] in [0, 1]. sigma is the formula at any t; alpha(0) is exactly 1, as everywhere in this package, also for
schedules whose sigma(0) is not 0: their last reverse step commits every token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffusion.process import DiffusionError, check_choices

EPSILON = 1e-3  # share of tokens that survives to t = 1 under loglinear and the cosines


@dataclass(frozen=True)
class Survival:
    """A noise schedule: sigma, its derivative and the inverse of the move chance, as functions of float64 tensors."""

    sigma: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]  # d sigma / dt
    time_of_sigma: Callable[[Tensor], Tensor]

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still itself at t; 1 at t = 0."""
        t = t.double()
        return torch.where(t > 0, torch.exp(-self.sigma(t)), 1.0)

    def move_chance(self, t: Tensor) -> Tensor:
        """1 - alpha(t), without cancellation where it is small."""
        t = t.double()
        return torch.where(t > 0, -torch.expm1(-self.sigma(t)), 0.0)

    def time_of_move_chance(self, move: Tensor) -> Tensor:
        """The t in [0, 1] with that move chance; the nearest end where the schedule does not reach it."""
        return self.time_of_sigma(-torch.log1p(-move.double())).clamp(0, 1)


def loglinear(epsilon: float = EPSILON) -> Survival:
    """alpha = 1 - (1 - epsilon) t: tokens are lost evenly over time; rate / (e^sigma - 1) is 1 / t exactly."""
    return _losing(epsilon, lambda t: t, torch.ones_like, lambda lost: lost)


def cosine(epsilon: float = EPSILON) -> Survival:
    """alpha = epsilon + (1 - epsilon) cos(pi t / 2)."""
    return _losing(
        epsilon,
        lost=lambda t: 2 * torch.sin(math.pi / 4 * t) ** 2,
        rate=lambda t: math.pi / 2 * torch.sin(math.pi / 2 * t),
        time_of_lost=lambda lost: 4 / math.pi * torch.asin((lost / 2).sqrt()),
    )


def cosine_squared(epsilon: float = EPSILON) -> Survival:
    """alpha = epsilon + (1 - epsilon) cos^2(pi t / 2)."""
    return _losing(
        epsilon,
        lost=lambda t: torch.sin(math.pi / 2 * t) ** 2,
        rate=lambda t: math.pi / 2 * torch.sin(math.pi * t),
        time_of_lost=lambda lost: 2 / math.pi * torch.asin(lost.sqrt()),
    )


def linear(sigma_min: float = 1e-3, sigma_max: float = 7.0) -> Survival:
    """sigma from sigma_min to sigma_max in a straight line."""
    rise = sigma_max - sigma_min
    return Survival(
        sigma=lambda t: sigma_min + rise * t,
        rate=lambda t: torch.full_like(t, rise),
        time_of_sigma=lambda sigma: (sigma - sigma_min) / rise,
    )


def geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0) -> Survival:
    """sigma = sigma_min^(1 - t) sigma_max^t, evenly on a log scale."""
    ratio = math.log(sigma_max / sigma_min)
    return Survival(
        sigma=lambda t: sigma_min * torch.exp(ratio * t),
        rate=lambda t: ratio * sigma_min * torch.exp(ratio * t),
        time_of_sigma=lambda sigma: torch.log(sigma / sigma_min) / ratio,
    )


def _losing(
    epsilon: float,
    lost: Callable[[Tensor], Tensor],
    rate: Callable[[Tensor], Tensor],
    time_of_lost: Callable[[Tensor], Tensor],
) -> Survival:
    """alpha = 1 - (1 - epsilon) lost(t), where lost rises from 0 to 1 at d lost / dt = rate and has the given inverse.

    In terms of what is lost rather than what is left, small sigma and small times come out without cancellation.
    """
    share = 1 - epsilon
    return Survival(
        sigma=lambda t: -torch.log1p(-share * lost(t)),
        rate=lambda t: share * rate(t) / (1 - share * lost(t)),
        time_of_sigma=lambda sigma: time_of_lost((-torch.expm1(-sigma) / share).clamp(0, 1)),
    )


SURVIVALS: dict[str, Callable[..., Survival]] = {
    "loglinear": loglinear,
    "cosine": cosine,
    "cosine_squared": cosine_squared,
    "linear": linear,
    "geometric": geometric,
}
SIGMA_RANGE = {"linear": (1e-3, 7.0), "geometric": (1e-4, 20.0)}  # defaults of the schedules that have a range


@dataclass
class SurvivalOptions:
    """The noise schedule of MDLM and SEDD; DiffusionError on a range that is none."""

    _argument_group_name: ClassVar[str] = "noise schedule of tokens"

    noise_schedule: Literal["default", "loglinear", "cosine", "cosine_squared", "linear", "geometric"] = field(
        default="default",
        metadata={"help": "how tokens are lost over time; default: loglinear, geometric for SEDD's uniform graph"},
    )
    sigma_min: float | None = field(
        default=None, metadata={"help": "least total noise of linear (1e-3) and geometric (1e-4)"}
    )
    sigma_max: float | None = field(
        default=None, metadata={"help": "greatest total noise of linear (7) and geometric (20)"}
    )

    def __post_init__(self):
        check_choices(self)
        for name in ("sigma_min", "sigma_max"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise DiffusionError(f"--{name} {value}: expected a number above 0")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise DiffusionError(f"--sigma_min {self.sigma_min}: expected less than --sigma_max {self.sigma_max}")

    def survival(self, default: str = "loglinear") -> Survival:
        """The schedule these options describe; DiffusionError where a range is given that it does not have."""
        name = default if self.noise_schedule == "default" else self.noise_schedule
        given = (self.sigma_min, self.sigma_max)
        if name not in SIGMA_RANGE:
            if given != (None, None):
                raise DiffusionError(
                    f"--sigma_min and --sigma_max do not apply to the {name} schedule; leave them out, or choose "
                    "--noise_schedule linear or geometric"
                )
            return SURVIVALS[name]()
        low, high = (own if own is not None else usual for own, usual in zip(given, SIGMA_RANGE[name], strict=True))
        if low >= high:
            raise DiffusionError(f"--sigma_min {low:g}: expected less than --sigma_max {high:g}")
        return SURVIVALS[name](low, high)
