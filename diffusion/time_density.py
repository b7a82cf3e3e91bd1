"""Training times where a measured window says that they are worth it, in place of all times alike.

`loss`: the loss is a straight line over the times drawn (LDLM); `information`: every time takes away as much
information, which is what makes the variance of a likelihood bound least (card of Kingma et al. 2021, arXiv:2107.00630,
section 5.1). Both are fixed before training, from a pilot's errors, and sampling visits their quantiles.
T steps of the process, G measured levels of gamma = ln(sigma^2 / alpha^2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from diffusion.process import DiffusionError
from diffusion.window import Levels

UNIFORM_SHARE = 0.1  # of the draws: no time is left out or so rare that what was measured could ruin a mean


def proposal(worth: Tensor) -> Tensor:
    """Chances of steps in proportion to what they are worth [n], a tenth of them shared out evenly."""
    return (1 - UNIFORM_SHARE) * worth / worth.sum() + UNIFORM_SHARE * torch.ones_like(worth) / len(worth)


def _loss(levels: Levels) -> tuple[Any, Any]:
    """Levels and the error up to each, which rises with noise but for the chance of its measuring."""
    return levels.gamma, isotonic_regression(levels.squared_error.double().numpy()).x


def _information(levels: Levels) -> tuple[Any, Any]:
    return levels.information()


RISING: dict[str, Callable[[Levels], tuple[Any, Any]]] = {"loss": _loss, "information": _information}


class TimeDensity:
    """Probabilities of the T steps of a schedule: the rise of what was measured, from one step to the next.

    `gamma` [T] are the levels of the steps; `kind` is one of RISING. DiffusionError where nothing rises between them.
    """

    def __init__(self, gamma: Tensor, levels: Levels, kind: str):
        between = (gamma[1:] + gamma[:-1]) / 2
        edges = torch.cat([gamma[:1], between, gamma[-1:]])
        measured_at, height = map(np.asarray, RISING[kind](levels))
        rise = np.diff(np.interp(edges.numpy(), measured_at, height))
        if not rise.any():
            raise DiffusionError(
                f"--time_density: the window was measured from {measured_at[0]:.3g} to {measured_at[-1]:.3g} in ln "
                f"sigma^2 / alpha^2, and between the schedule's first step and its last, {edges[0]:.3g} to "
                f"{edges[-1]:.3g}, it tells no time from another; set --noise_shift as scripts.measure_window says"
            )
        self.probability = proposal(torch.from_numpy(rise))  # [T]
        self.cumulated = self.probability.cumsum(0)  # [T]
        self.first = int((gamma < levels.start).sum())  # the step from which on a text is not told any more

    def steps(self, u: Tensor, among: range) -> Tensor:
        """Steps [B] among those given, drawn by their probabilities at u [B] uniform in [0, 1)."""
        self.cumulated = self.cumulated.to(u.device)
        below, up_to = self._up_to(among.start), self._up_to(among.stop)
        found = torch.searchsorted(self.cumulated, below + u.double() * (up_to - below), right=True)
        return found.clamp(among.start, among.stop - 1)

    def _up_to(self, step: int) -> Tensor | float:
        return self.cumulated[step - 1] if step else 0.0

    def grid(self, sampling_steps: int) -> list[int]:
        """S different steps, falling from the last: even quantiles, and the one where texts begin to be told."""
        T = len(self.probability)
        even = torch.arange(1, sampling_steps, dtype=torch.float64) / max(1, sampling_steps - 1)
        quantiles = torch.searchsorted(self.cumulated.cpu(), even * self.cumulated[-1].item()).tolist()
        rising = sorted([min(self.first, T - 1), *quantiles]) if sampling_steps > 1 else [T - 1]
        for i in range(1, sampling_steps):
            rising[i] = max(rising[i], rising[i - 1] + 1)
        for i, room in enumerate(range(T - sampling_steps, T)):  # and all of them within T, the last one at its end
            rising[i] = min(rising[i], room)
        rising[-1] = T - 1
        return rising[::-1]
