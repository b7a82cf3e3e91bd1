"""Draws of a token process's bound on -log p(x0), spread evenly over time. B batch, L positions, K draws."""

import torch
from torch import Tensor

from diffusion.process import Predict, TokenProcess
from diffusion.randomness import Randomness, uniform


def draws_of_bound(
    process: TokenProcess, predict: Predict, x0: Tensor, free: Tensor, draws: int, generator: Randomness
) -> Tensor:
    """K draws of the bound for each text [B, K] in nats, summed over its free positions.

    The times of a text's draws share one random offset and are 1 / K apart, so that their mean varies little.
    """
    offset = uniform((len(x0),), generator, x0.device, torch.float64)
    nats = []
    for k in range(draws):
        u = (offset + k / draws) % 1
        nats.append(process.bound(predict, x0, free, u, generator).sum(1))
    return torch.stack(nats, dim=1)
