"""What a training step minimises: the process's loss at random times, with self-conditioning and dropped labels.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from diffusion.positions import Positions
from diffusion.process import Process, mean_over_valid, sum_over_valid
from diffusion.randomness import Randomness, stratified, uniform


@dataclass(frozen=True)
class Batch:
    """x0 [B, L, D] or [B, L] ids, valid [B, L] bool; label [B] int or None where the data have no classes.

    clamped [B, L] bool: positions that are given, not made, such as the source of a conditional text; None: none are.
    """

    x0: Tensor
    valid: Tensor
    label: Tensor | None = None
    clamped: Tensor | None = None

    @property
    def free(self) -> Tensor:
        """The positions [B, L] that are to be made."""
        return self.valid if self.clamped is None else self.valid & ~self.clamped

    def each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `move` done to every tensor of it."""
        parts = (self.x0, self.valid, self.label, self.clamped)
        return Batch(*(None if part is None else move(part) for part in parts))


@dataclass(frozen=True)
class Objective:
    """Loss per sample of a denoiser on a batch, at times drawn from some of the steps of the process.

    `stratified_times` spreads the times of a batch evenly. A sample's loss is the mean over its positions; with
    `mean_length`, the mean number of positions to be made of a training text, it is their sum divided by that.
    """

    process: Process
    self_condition_prob: float = 0.0
    class_unconditional_prob: float = 0.0
    stratified_times: bool = False
    mean_length: float | None = None

    def __call__(
        self,
        denoiser: nn.Module,
        batch: Batch,
        steps: range,
        generator: Randomness,
        host: Randomness | None = None,
    ) -> Tensor:
        """Loss [B], over each sample's own free positions.

        `host`, a CPU generator, decides which samples see an estimate of x0, else `generator` does: how many rows the
        network reads for it must be known on the CPU, which would have to wait for draws made on another device.
        """
        B, device = len(batch.x0), batch.x0.device
        u = (
            stratified(B, generator, device)
            if self.stratified_times
            else uniform((B,), generator, device, torch.float64)
        )
        t = self.process.times(u, steps)
        xt = self.process.corrupt(batch.x0, t, generator)
        if batch.clamped is not None:
            given = batch.clamped.view(*batch.clamped.shape, *[1] * (xt.ndim - 2))
            xt = torch.where(given, batch.x0, xt)
        label = batch.label
        if label is not None and denoiser.training:
            label = label.masked_fill(uniform((B,), generator, device) < self.class_unconditional_prob, -1)
        x0_prev = self._previous_estimate(denoiser, xt, t, batch.valid, label, host or generator)
        predict = partial(denoiser, xt, t, batch.valid, x0_prev=x0_prev, label=label)
        if self.process.loss_reads is None:
            loss = self.process.loss(predict(), batch.x0, xt, t)
        else:
            at = Positions.where(batch.free & (xt == self.process.loss_reads))
            loss = at.spread(self.process.loss(predict(at=at), at.of(batch.x0), at.of(xt), at.times(t)))
        if self.mean_length is None:
            return mean_over_valid(loss, batch.free)
        # A constant: divided by the length of its own batch, a token of a batch of short texts would weigh more.
        return sum_over_valid(loss, batch.free) / self.mean_length

    @torch.no_grad()
    def _previous_estimate(self, denoiser, xt, t, valid, label, host) -> Tensor | None:
        """x0_hat [B, L, D] at the same time for the samples whose coin fell so, zeros for the others."""
        if self.self_condition_prob == 0:
            return None
        chosen = uniform((len(xt),), host) < self.self_condition_prob
        rows = chosen.nonzero().squeeze(1).to(xt.device, non_blocking=True)
        x0_prev = torch.zeros_like(xt)
        if len(rows):
            # Without the wrapper of several processes: those where no sample is chosen would miss its exchange.
            denoiser = getattr(denoiser, "module", denoiser)
            output = denoiser(xt[rows], t[rows], valid[rows], label=None if label is None else label[rows])
            x0_prev[rows] = self.process.denoised(output.to(xt.dtype), xt[rows], t[rows])
        return x0_prev
