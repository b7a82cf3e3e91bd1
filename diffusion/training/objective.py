"""What a training step minimises: the process's loss at random times, with self-conditioning and dropped labels.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.process import Process, mean_over_valid
from diffusion.randomness import uniform
from diffusion.schedules import sample_times


@dataclass(frozen=True)
class Batch:
    """x0 [B, L, D], valid [B, L] bool, label [B] int or None where the data have no classes."""

    x0: Tensor
    valid: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """Loss per sample of a denoiser on a batch, at times drawn from the first `T_k` of `timesteps` steps."""

    process: Process
    timesteps: int
    self_condition_prob: float = 0.0
    class_unconditional_prob: float = 0.0

    def __call__(self, denoiser: nn.Module, batch: Batch, T_k: int, generator: torch.Generator) -> Tensor:
        """Loss [B], each sample the mean over its own valid positions."""
        B, device = len(batch.x0), batch.x0.device
        t = sample_times(B, self.timesteps, T_k, generator, device)
        xt = self.process.corrupt(batch.x0, t, generator)
        label = batch.label
        if label is not None and denoiser.training:
            label = label.masked_fill(uniform((B,), generator, device) < self.class_unconditional_prob, -1)
        x0_prev = self._previous_estimate(denoiser, xt, t, batch.valid, label, generator)
        output = denoiser(xt, t, batch.valid, x0_prev=x0_prev, label=label)
        return mean_over_valid(self.process.loss(output, batch.x0, xt, t), batch.valid)

    @torch.no_grad()
    def _previous_estimate(self, denoiser, xt, t, valid, label, generator) -> Tensor | None:
        """x0_hat [B, L, D] at the same time for the samples whose coin fell so, zeros for the others."""
        if self.self_condition_prob == 0:
            return None
        chosen = uniform((len(xt),), generator, xt.device) < self.self_condition_prob
        rows = chosen.nonzero().squeeze(1)
        x0_prev = torch.zeros_like(xt)
        if len(rows):
            # Without the wrapper of several processes: those where no sample is chosen would miss its exchange.
            denoiser = getattr(denoiser, "module", denoiser)
            output = denoiser(xt[rows], t[rows], valid[rows], label=None if label is None else label[rows])
            x0_prev[rows] = self.process.denoised(output.to(xt.dtype), xt[rows], t[rows])
        return x0_prev
