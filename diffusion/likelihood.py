"""Draws of a token process's bound on -log p(x0), spread evenly over time. B batch, L positions, K draws."""

import torch
from torch import Tensor

from diffusion.process import Predict, TokenProcess
from diffusion.randomness import Randomness, systematic


def draws_of_bound(
    process: TokenProcess, predict: Predict, x0: Tensor, free: Tensor, draws: int, generator: Randomness
) -> Tensor:
    """K draws of the bound for each text [B, K] in nats, summed over its free positions.

    The times of a text's draws are 1 / K apart, so that their mean varies little.
    """
    spread = systematic(len(x0), draws, generator, x0.device)
    return torch.stack([process.bound(predict, x0, free, u, generator).sum(1) for u in spread], dim=1)
