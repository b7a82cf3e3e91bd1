"""The information window: the range of noise over which a noised text still tells, or no longer tells, which it is.

On the axis gamma = ln(sigma^2 / alpha^2) the information that x_t gives about x_0 falls by w(gamma) = e^-gamma mmse / 2
nats a unit, mmse = E |x_0 - E[x_0 | x_t]|^2 summed over coordinates (Guo, Shamai & Verdu 2005, arXiv:cs/0412108). The
integral of w over all gamma is the entropy of the texts, and the part of w at a schedule's times is what training sees.
G levels of gamma, rising; all in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EDGES = (0.05, 0.5, 0.95)


def information_rate(gamma: Tensor, squared_error: Tensor) -> Tensor:
    """w [G] in nats a unit of gamma, from the squared error of the best estimate of x_0 at each level."""
    return 0.5 * torch.exp(-gamma.double()) * squared_error.double()


def information(gamma: Tensor, rate: Tensor) -> Tensor:
    """The integral [G] of w from the first level up to each, in nats."""
    return torch.cat([rate.new_zeros(1), torch.cumulative_trapezoid(rate, gamma)])


@dataclass(frozen=True)
class Levels:
    """The squared error [G] of the best estimate of x_0, summed over coordinates, at rising gamma [G].

    At low noise e^-gamma magnifies whatever error a network has, though the text has long been told: what lies below
    `start`, where a decoder begins to make mistakes, is left out.
    """

    gamma: Tensor
    squared_error: Tensor
    start: float = -math.inf

    def information(self) -> tuple[Tensor, Tensor]:
        """Levels from `start` on, and the information in nats that is lost up to each."""
        kept = self.gamma >= self.start
        gamma = self.gamma[kept].double()
        return gamma, information(gamma, information_rate(gamma, self.squared_error[kept]))


@dataclass(frozen=True)
class Window:
    """The levels of gamma below which 5, 50 and 95% of the information is lost, and how much that is in nats."""

    low: float
    median: float
    high: float
    nats: float

    @classmethod
    def of(cls, measured: Levels) -> Window:
        """The window of what was measured."""
        gamma, lost = measured.information()
        levels = []
        for edge in EDGES:
            wanted = edge * lost[-1]
            i = int(torch.searchsorted(lost, wanted).clamp(1, len(lost) - 1))
            part = (wanted - lost[i - 1]) / (lost[i] - lost[i - 1])
            levels.append(float(gamma[i - 1] + part * (gamma[i] - gamma[i - 1])))
        return cls(*levels, float(lost[-1]))

    @property
    def tan_d(self) -> float:
        """The d of --beta_schedule tan whose median level, 2 ln d, is that of the window."""
        return math.exp(self.median / 2)

    def shift_of(self, gamma: Tensor) -> float:
        """The --noise_shift that brings the median of a schedule's levels to that of the window."""
        return math.exp((self.median - float(gamma.median())) / 2)

    def share(self, gamma: Tensor) -> float:
        """The share of a schedule's levels, each as likely in training as any other, that lie in the window."""
        return float(((gamma >= self.low) & (gamma <= self.high)).double().mean())
