"""Samplers of token processes that save network calls, or write from left to right; called as those in `samplers`.

Legend: B batch, L positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.autoregressive import ERASED, AutoregressiveProcess
from diffusion.categorical import sample_categorical
from diffusion.guidance import Predictor
from diffusion.masked import MaskedProcess
from diffusion.randomness import Randomness, uniform
from diffusion.samplers import OnStep, steps
from diffusion.score_entropy import ScoreEntropyProcess


@torch.no_grad()
def sample_ddpm_cache(
    process: MaskedProcess,
    predict_x0: Predictor,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling that asks the network only about rows that changed (Sahoo et al. 2024, section 4.2).

    The same samples as `sample_ancestral`, for a denoiser that is not told the time.
    """
    x0_hat, changed = None, torch.arange(len(x), device=x.device)
    for i, t, s in steps(times, x):
        if len(changed):
            fresh = predict_x0.rows(changed)(x[changed], t[changed])
            x0_hat = fresh if x0_hat is None else x0_hat.index_copy(0, changed, fresh)
        before, x = x, process.step(x0_hat, x, t, s, generator)
        changed = (x != before).any(1).nonzero().squeeze(1)
        if on_step is not None:
            on_step(i, len(times) - 1, x)
    return x


@torch.no_grad()
def sample_first_hitting(
    process: MaskedProcess,
    predict_x0: Predictor,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """The limit of infinitely many steps in as many as there are masks: one token at a time, at its own random time.

    With n masks left the move chance falls by u^(1/n), and one of them, any, is decided (Zheng et al. 2024,
    arXiv:2409.02908, algorithm 1). The grid of times is not used.
    """
    move = torch.ones(len(x), dtype=torch.float64, device=x.device)
    is_masked = x == process.mask_id
    total = int(is_masked.sum(1).max())
    for i in range(1, total + 1):
        left = is_masked.sum(1)
        fall, choice, token = (uniform((len(x),), generator, x.device, torch.float64) for _ in range(3))
        move = move * fall ** (1 / left.clamp(min=1))
        rows = (left > 0).nonzero().squeeze(1)
        which = (choice[rows] * left[rows]).long()  # which of its masks each row decides
        position = (is_masked[rows].cumsum(1) == which[:, None] + 1).int().argmax(1)
        t = process.survival.time_of_move_chance(move)[rows]
        log_p = predict_x0.rows(rows)(x[rows], t)
        own = log_p[torch.arange(len(rows), device=x.device), position]
        x = x.clone()
        x[rows, position] = sample_categorical(own.double().exp(), token[rows])
        is_masked = x == process.mask_id
        if on_step is not None:
            on_step(i, total, x)
    return x


@torch.no_grad()
def sample_euler(
    process: ScoreEntropyProcess,
    predict_x0: Predictor,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler steps of the reverse rates (Lou et al. 2024, section 4.1), the last one an exact step to data."""
    for i, t, s in steps(times, x):
        step = process.euler_step if s[0] > 0 else process.step  # Euler may leave masks and noise behind at t = 0
        x = step(predict_x0(x, t), x, t, s, generator)
        if on_step is not None:
            on_step(i, len(times) - 1, x)
    return x


@torch.no_grad()
def sample_left_to_right(
    process: AutoregressiveProcess,
    predict_x0: Predictor,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
    stop_id: int | None = None,
) -> Tensor:
    """One token after the other with a cache of keys and values; positions that hold a token already keep it.

    After `stop_id` was written a row is finished: the rest of it is filled with that id, and the sampler ends early
    when all rows are. The grid of times is not used.
    """
    x, length, cache = x.clone(), x.shape[1], None
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for i in range(length):
        log_p, cache = predict_x0.next(x[:, :i], cache)
        u = uniform((len(x),), generator, x.device, torch.float64)
        token = torch.where(x[:, i] == ERASED, sample_categorical(log_p.double().exp(), u), x[:, i])
        if stop_id is not None:
            token = torch.where(running, token, stop_id)
            running &= token != stop_id
        x[:, i] = token
        if on_step is not None:
            on_step(i + 1, length, x)
        if not running.any():
            x[:, i + 1 :] = stop_id
            break
    return x
