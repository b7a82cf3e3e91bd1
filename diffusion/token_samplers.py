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
from diffusion.positions import Positions
from diffusion.randomness import Randomness, uniform
from diffusion.samplers import OnStep, stepped, walk
from diffusion.score_entropy import ScoreEntropyProcess


def sample_ddpm_cache(
    process: MaskedProcess,
    predict_x0: Predictor,
    x: Tensor,
    times: Sequence[float],
    *,
    generator: Randomness,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling that asks the network only about rows that change, and in them only about masks that go.

    The same samples as `sample_ancestral`. Sahoo et al. 2024 (section 4.2) keep what the network said until a text
    changes; that a step chooses the masks that go before anything is asked needs nothing kept.
    """

    def step(x: Tensor, t: Tensor, s: Tensor, _: tuple[float, float]) -> Tensor:
        now, token = process.leaving(x, t, s, generator)
        rows = now.any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            return x
        at = Positions.where(now[rows])
        x0_hat = predict_x0.rows(rows)(x[rows], t[rows], at)
        return x.masked_scatter(now, sample_categorical(x0_hat.double().exp(), at.of(token[rows])))

    return walk(step, x, times, on_step)


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

    A mask goes when the move chance has fallen to a value that is uniformly distributed. Zheng et al. 2024 draw these
    values in their order (arXiv:2409.02908, algorithm 1); here each position draws its own, so that padding changes
    nothing for the others. The grid of times is not used.
    """
    hit, token = (uniform(x.shape, generator, x.device, torch.float64) for _ in range(2))
    all_masked = process.survival.move_chance(torch.ones((), dtype=torch.float64, device=x.device))
    hit = torch.where(x == process.mask_id, hit * all_masked, -1.0)  # -1: nothing to decide
    total = int((hit >= 0).sum(1).max())
    for i in range(1, total + 1):
        move, position = hit.max(1)
        rows = (move >= 0).nonzero().squeeze(1)
        chosen = rows, position[rows]
        xt, t = x[rows], process.survival.time_of_move_chance(move[rows])
        at = Positions(xt.shape, torch.arange(len(rows), device=x.device) * x.shape[1] + position[rows])
        log_p = predict_x0.rows(rows)(xt, t, at).squeeze(1)
        x = x.index_put(chosen, sample_categorical(log_p.double().exp(), token[chosen]))
        hit[chosen] = -1.0
        if on_step is not None:
            on_step(i, total, x)
    return x


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

    def step(x: Tensor, t: Tensor, s: Tensor, now: tuple[float, float]) -> Tensor:
        own = process.euler_step if now[1] > 0 else process.step  # Euler may leave masks and noise behind at t = 0
        return stepped(own, process, predict_x0, x, t, s, generator)

    return walk(step, x, times, on_step)


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

    After `stop_id` was drawn a row is finished: what is erased of the rest is filled with that id, and the sampler ends
    early when all rows are. The grid of times is not used.
    """
    x, length, cache = x.clone(), x.shape[1], None
    # All at once: how long other rows go on must not change what a generator draws next.
    u = uniform(x.shape, generator, x.device, torch.float64)
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for i in range(length):
        log_p, cache = predict_x0.next(x[:, :i], cache)
        drawn, is_erased = sample_categorical(log_p.double().exp(), u[:, i]), x[:, i] == ERASED
        if stop_id is not None:
            drawn = torch.where(running, drawn, stop_id)
            running &= ~is_erased | (drawn != stop_id)
        x[:, i] = torch.where(is_erased, drawn, x[:, i])
        if on_step is not None:
            on_step(i + 1, length, x)
        if not running.any():
            return torch.where(x == ERASED, stop_id, x)
    return x
