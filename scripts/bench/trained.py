"""Steps of the real Trainer, timed in turns, and the FLOPs that they could not do without.

B texts in a batch, L positions, D latent width, W trunk width (`tx_dim`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.training.objective import Objective
from diffusion.training.optim import OptimOptions
from diffusion.training.options import PRECISION, TrainingOptions
from diffusion.training.tracker import Trackers
from diffusion.training.trainer import Trainer, TrainingData
from scripts.bench.measure import MemoryGrowth, Row, Stopwatch, matmul_peak, spread
from scripts.job.hardware import compile_trunk, wait_for

STAGES = ("load", "encode", "forward", "backward", "optimizer", "ema")


def forward_flops(options: DenoiserOptions, latent_dim: int, lengths: np.ndarray) -> float:
    """FLOPs of the matrix products of one forward pass over texts of `lengths` [B] positions, nothing padded.

    A layer's: q, k, v and output (4 W^2 a position), the gated feed-forward (W to 2 x 4W, 4W to W: 12 W^2), and
    attention's two products (2 L W); a text's: the time MLP (8 W^2) and what it scales (W^2 each).
    """
    W, depth = options.tx_dim, options.tx_depth
    read = latent_dim * W * (2 if options.self_condition else 1)
    a_position = read + depth * 16 * W**2 + W * latent_dim
    a_text = 8 * W**2 + (W**2 * (4 * depth + 1) if options.scale_shift else 0)
    products = lengths.sum() * a_position + len(lengths) * a_text + depth * 2 * W * (lengths**2).sum()
    return 2.0 * float(products)


def useful_flops(
    options: DenoiserOptions, latent_dim: int, lengths: np.ndarray, self_condition_prob: float
) -> float:
    """FLOPs of a training step: forward, backward (twice as many), and a forward for the texts that see an estimate.

    Counted is what any implementation must multiply: not what is computed again in the backward pass, nor anything
    that is no matrix product. The gradient of the network's own input, which no step needs, is (1% at the usual sizes).
    """
    return forward_flops(options, latent_dim, lengths) * (1 + self_condition_prob + 2)


class Turn(NamedTuple):
    """Some steps, timed as a whole."""

    steps: int
    seconds: float
    tokens: int  # valid positions
    flops: float  # useful ones
    peak: float  # FLOP/s of matrix products meanwhile
    growth: int  # bytes of memory beyond what was there before

    @property
    def rate(self) -> float:
        """Valid tokens per second."""
        return self.tokens / self.seconds

    @property
    def share(self) -> float:
        """Useful FLOPs as a share of what the matmul peak would have done in the time."""
        return self.flops / self.seconds / self.peak


class Trained:
    """A latent denoiser and the Trainer that trains it on `data`, with weights, noise and batches of fixed seeds."""

    def __init__(
        self,
        denoiser: DenoiserOptions,
        latent_dim: int,
        data: TrainingData,
        batch_size: int,
        *,
        self_condition_prob: float = 0.5,
        mixed_precision: str = "no",
        compiled: bool = False,
    ):
        self.denoiser, self.latent_dim, self.data = denoiser, latent_dim, data
        self.self_condition_prob, self.dtype = self_condition_prob, PRECISION[mixed_precision] or torch.float32
        AcceleratorState._reset_state()  # else all in this process would have to share one precision
        accelerator = Accelerator(mixed_precision=mixed_precision)
        self.device = accelerator.device
        process = GaussianProcess.from_options(GaussianOptions())
        torch.manual_seed(0)
        network = LatentDenoiser(latent_dim, denoiser)
        if compiled:
            compile_trunk(network)
        self.trainer = Trainer(
            TrainingOptions(train_batch_size=batch_size),
            OptimOptions(),
            Objective(process, self_condition_prob),
            network,
            data,
            data,
            Path(),
            accelerator=accelerator,
            make_tracker=lambda step: Trackers(),
        )
        self._batches = self.trainer.loader()
        self._not_watched = self.trainer.stage

    def turn(self, steps: int) -> Turn:
        """The next `steps` steps, between two looks at the matmul peak; the device is waited for once, at the end."""
        lengths = [self.data.lengths[i] for i in islice(iter(replace(self.trainer.batches)), steps)]
        before = matmul_peak(self.device, self.dtype)
        with MemoryGrowth(self.device) as memory:
            seconds = self._steps(steps)
        peak = (before + matmul_peak(self.device, self.dtype)) / 2
        flops = sum(useful_flops(self.denoiser, self.latent_dim, each, self.self_condition_prob) for each in lengths)
        return Turn(steps, seconds, int(sum(map(np.sum, lengths))), flops, peak, memory.bytes)

    def stages(self, steps: int) -> dict[str, float]:
        """Seconds by stage of a step, over the next `steps`; the device is waited for at each."""
        watch = self.trainer.stage = Stopwatch(self.device)
        try:
            self._steps(steps)
        finally:
            self.trainer.stage = self._not_watched
        return {stage: watch.seconds[stage] / steps for stage in STAGES}

    @property
    def state_bytes(self) -> int:
        """Bytes that training holds between two steps: weights, their average and what the optimizer keeps of them."""
        trainer = self.trainer
        kept = [value for state in trainer.optimizer.state.values() for value in state.values()]
        return _bytes(trainer.denoiser) + _bytes(trainer.ema) + sum(t.nbytes for t in kept if torch.is_tensor(t))

    def _steps(self, steps: int) -> float:
        T = self.trainer.objective.process.timesteps
        wait_for(self.device)
        started = perf_counter()
        for _ in range(steps):
            self.trainer.update(self._batches, T)
        wait_for(self.device)
        return perf_counter() - started


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def figures(trained: Trained, turns: Sequence[Turn], state_bytes: int = 0) -> Row:
    """The row of some turns: medians and spreads. `state_bytes` is held beside what training itself holds."""
    return {
        **spread("seconds_per_step", [turn.seconds / turn.steps for turn in turns]),
        **spread("tokens_per_second", [turn.rate for turn in turns]),
        **spread("share_of_peak", [turn.share for turn in turns]),
        **spread("matmul_peak", [turn.peak for turn in turns]),
        "matmul_dtype": str(trained.dtype).removeprefix("torch."),
        "useful_flops_per_step": sum(turn.flops for turn in turns) / sum(turn.steps for turn in turns),
        "peak_memory": trained.state_bytes + state_bytes + max(turn.growth for turn in turns),
    }
