"""Wrappers that turn a denoiser into predict_x0(xt, t), the only thing a sampler sees.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from diffusion.process import Process


@dataclass
class Prediction:
    """predict_x0 of a denoiser for one batch of samples: feeds each estimate back in where the denoiser wants it."""

    process: Process
    denoiser: nn.Module
    valid: Tensor  # [B, L] bool
    label: Tensor | None = None  # [B] int, -1 for none
    x0_prev: Tensor | None = field(default=None, init=False)

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat [B, L, D] for xt [B, L, D] at t [B]."""
        output = self.denoiser(xt, t, self.valid, x0_prev=self.x0_prev, label=self.label)
        x0_hat = self.process.denoised(output.to(xt.dtype), xt, t)
        self.x0_prev = x0_hat if self.denoiser.self_condition else None
        return x0_hat
