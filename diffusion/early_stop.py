"""Early stop: network calls saved on samples whose prediction has come to rest.

Legend: B batch, L positions, D latent width, R samples still running.
"""

import torch
from torch import Tensor

from diffusion.gaussian import GaussianProcess
from diffusion.guidance import Predictor
from diffusion.process import mean_over_valid


class EarlyStop:
    """predict_x0 of one walk from noise to data, which asks the network no more about samples that are finished.

    A sample is finished when its x0_hat moved by less than `tolerance` since the step before: root mean square over the
    positions to be `made` [B, L], in units of the latents. It keeps that x0_hat from then on, which the last step of
    every sampler gives. Samples do not influence each other.
    """

    def __init__(self, process: GaussianProcess, predict_x0: Predictor, made: Tensor, tolerance: float):
        self._process, self._predict_x0, self._made, self._tolerance = process, predict_x0, made, tolerance
        self._running = torch.arange(len(made), device=made.device)  # [R], the samples that `predict_x0` still has
        self._x0_hat: Tensor | None = None  # [B, L, D]

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat [B, L, D] for xt [B, L, D] at t [B], new for the samples still running."""
        running, before = self._running, self._x0_hat
        if len(running) == 0:
            return before
        fresh = self._predict_x0(xt[running], t[running])
        if before is None:
            self._x0_hat = fresh
            return fresh
        self._x0_hat = before.index_copy(0, running, fresh)  # a new tensor: samplers may hold the one before
        moved = mean_over_valid((fresh - before[running]).square().mean(-1), self._made[running]).sqrt()
        # While noise outweighs signal a prediction also rests: it has not seen anything yet.
        is_finished = (moved < self._tolerance) & (self._process.alpha_bar(t[running]) > 0.5)
        if is_finished.any():
            going = (~is_finished).nonzero().squeeze(1)
            self._running, self._predict_x0 = running[going], self._predict_x0.rows(going)
        return self._x0_hat
