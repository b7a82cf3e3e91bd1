"""Texts longer than the model: each window keeps the end of the one before as its prefix (Sahoo et al. 2024, sec. 4.3).

B batch, L positions of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.guidance import Clamped
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.training.progress import progress_bar
from scripts.composition.build import System
from scripts.composition.methods import sampler_of
from scripts.job.errors import UsageError
from scripts.sampling.samples_file import Samples
from scripts.sampling.sampling import BAR, prediction


def extended(window: Callable[[Tensor, Tensor], Tensor], first: Tensor, stride: int, strides: int) -> Tensor:
    """`first` [B, L] and `strides` times `stride` more positions; window(known, free) fills the free ones of [B, L]."""
    text, length = first, first.shape[1]
    free = (torch.arange(length, device=first.device) >= length - stride).expand(len(first), length)
    for _ in range(strides):
        known = torch.nn.functional.pad(text[:, stride - length :], (0, stride))
        text = torch.cat([text, window(known, free)[:, -stride:]], dim=1)
    return text


@torch.no_grad()
def sample_long(system: System, count: int, seed: int, stride: int, strides: int) -> Samples:
    """`count` texts of limit + strides * stride tokens, as they stand: an end of text within them ends nothing."""
    limit, device = system.space.limit, next(system.denoiser.parameters()).device
    if not 0 < stride < limit:
        raise UsageError(
            f"--semi_ar_stride {stride}: expected 1 to {limit - 1}, less than the longest text of the model ({limit}), "
            "so that something is left to go on from"
        )
    sampler = sampler_of(system.options)  # not `system.sampler`, which may stop at an end of text
    seeds, texts, ids = sample_seeds(seed, 0, count), [], []
    title, windows = f"sample {count}, seed {seed}", count * (1 + strides)
    with progress_bar(None, title, total=windows, bar_format=BAR) as bar:
        for start in range(0, count, system.options.training.eval_batch_size):
            own = SampleGenerators(seeds[start : start + system.options.training.eval_batch_size])
            valid = torch.ones(len(own), limit, dtype=torch.bool, device=device)

            def window(known: Tensor, free: Tensor, own=own, valid=valid) -> Tensor:
                done = bar.n

                def progress(i: int, n: int, x: Tensor) -> None:
                    bar.update(done + len(own) * i / n - bar.n)

                x = system.process.prior(system.space.shape(*valid.shape), own, device)
                predict_x0 = Clamped(prediction(system, valid), known, free)
                x = predict_x0.hold(x)
                x = sampler(system.process, predict_x0, x, system.times, generator=own, on_step=progress)
                bar.update(done + len(own) - bar.n)  # a sampler may end early
                return predict_x0.hold(x)

            made = extended(window, window(torch.zeros_like(valid, dtype=torch.long), valid), stride, strides)
            texts += [system.space.codec.show(row) for row in made]
            ids += made.tolist()
    strategy = system.space.strategies[0]
    lengths = [limit + strides * stride] * count
    return Samples({strategy: texts}, seeds, lengths, [None] * count, ids, system.space.fingerprint)
