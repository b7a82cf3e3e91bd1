"""A bound on -log p(text) under the Gaussian process, from any first step a of its T (Kingma et al. 2021, eq. 11-13).

    -log p(text) <= E[-log p(text | x_a)] + sum_{i = a+1 .. T} 1/2 (SNR(i-1) - SNR(i)) E|x0 - x0_hat(x_i)|^2
                    + KL(q(x_T | x0) || N(0, I)),        SNR = alpha_bar / (1 - alpha_bar)

Squares are summed over valid positions and all of D. It holds for whatever made x0 of the text, and for any x0_hat that
is a function of x_i alone. The steps are those the process has, so nothing is approximated: fewer of them, or a worse
network, can only make it looser. Legend: B batch, L positions, D latent width, T steps, K draws; nats are float64.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from diffusion.gaussian import GaussianProcess
from diffusion.process import Predict
from diffusion.randomness import Randomness, systematic


def squared_error(x0_hat: Tensor, x0: Tensor, valid: Tensor) -> Tensor:
    """|x0 - x0_hat|^2 [B] over the valid [B, L] positions of x0 [B, L, D]."""
    return torch.where(valid, (x0_hat - x0).double().square().sum(-1), 0.0).sum(1)


def prior_nats(process: GaussianProcess, x0: Tensor, valid: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, I)) [B]: 1/2 [alpha_bar |x0|^2 - n D (alpha_bar + ln(1 - alpha_bar))]."""
    bar = process.alpha_bar(torch.ones((), dtype=torch.float64, device=x0.device))
    size = valid.sum(1) * x0.shape[-1]
    return (bar * squared_error(torch.zeros_like(x0), x0, valid) - size * (bar + torch.log1p(-bar))) / 2


def log_snr(process: GaussianProcess) -> Tensor:
    """ln SNR [T] of the steps 1 .. T."""
    return -process.schedule.gamma


def step_weights(process: GaussianProcess) -> Tensor:
    """1/2 (SNR(i-1) - SNR(i)) [T] of the steps i = 1 .. T; infinite for the first, which a decoder has to read."""
    snr = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), log_snr(process).exp()])
    return (snr[:-1] - snr[1:]) / 2


def draws_of_diffusion(
    process: GaussianProcess,
    predict: Predict,
    x0: Tensor,
    valid: Tensor,
    first: int,
    proposal: Tensor,
    draws: int,
    generator: Randomness,
) -> Tensor:
    """K draws [B, K] of the sum over the steps after `first`, which come with the chances `proposal` [T - first].

    Any proposal gives the same mean. The steps of a text's draws are 1 / K apart in cumulated chance, so that their
    mean varies little.
    """
    if first == process.timesteps:
        return torch.zeros(len(x0), draws, dtype=torch.float64, device=x0.device)
    worth = (step_weights(process)[first:] / proposal).to(x0.device)
    cumulated = proposal.cumsum(0).to(x0.device)
    nats = []
    for u in systematic(len(x0), draws, generator, x0.device):
        place = torch.searchsorted(cumulated, u, right=True).clamp(max=len(cumulated) - 1)
        t = (first + 1 + place) / process.timesteps
        x0_hat = predict(process.corrupt(x0, t, generator), t)
        nats.append(worth[place] * squared_error(x0_hat, x0, valid))
    return torch.stack(nats, dim=1)


# What the steps cost is measured at some of them, on other texts: to choose the first step, and to draw the others.


def spread_steps(process: GaussianProcess, count: int) -> list[int]:
    """At most `count` of the steps 1 .. T, the first and the last among them, as even in log SNR as they can be."""
    known = log_snr(process)
    wanted = torch.linspace(known[0].item(), known[-1].item(), count, dtype=torch.float64)
    return ((known - wanted[:, None]).abs().argmin(1) + 1).unique().tolist()


def at_all_steps(process: GaussianProcess, steps: Sequence[int], values: Sequence[float]) -> Tensor:
    """What is known at some steps, the first and the last among them, at all of them [T]: linear in log SNR between."""
    known = log_snr(process).numpy()
    at = [i - 1 for i in reversed(steps)]  # log SNR falls with the steps
    return torch.from_numpy(np.interp(known, known[at], [*reversed(values)]))


def costs_after(costs: Tensor) -> Tensor:
    """Nats [T] of all steps after each, by those of every step, which are its weight times its mean squared error."""
    return pad(costs[1:].flip(0).cumsum(0).flip(0), (0, 1))
