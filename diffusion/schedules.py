"""Signal level over time, grids of times to sample on, times to train on, and the annealed range of training times.

A process with T steps has times t = (i + 1) / T for i = 0 .. T-1, and t = 0 for clean data. alpha_bar(t) is the share
of signal variance left at t: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.
Legend: B batch, T steps of the process, S sampling steps, T_k steps in the training range at update k.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.process import DiffusionError

LOG_SNR_RANGE = (-8.0, 12.0)
MAX_BETA = 0.999  # keeps alpha_bar(1) above 0: x0 can be computed from noise even at t = 1
MAX_TIMESTEPS = 4000  # single-precision time grids have no repeated time up to here (some have one at 8192)


def linear_betas(timesteps: int) -> Tensor:
    """Betas [T] evenly from 0.1/T to 20/T (Ho et al. 2020, scaled to T); DiffusionError unless T > 20."""
    if timesteps <= 20:
        raise DiffusionError(
            f"--timesteps {timesteps} is too small for --beta_schedule linear, whose last beta 20/timesteps must stay "
            "below 1: use at least 21, or another schedule"
        )
    return torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """Betas [T] of a cosine^2 alpha_bar with offset 0.008, clipped to [0, 0.999] (Nichol & Dhariwal 2021, eq. 17)."""
    i = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64)
    signal = torch.cos((i / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
    return _betas(signal)


def tan_betas(timesteps: int, d: float = 9.0) -> Tensor:
    """Betas [T] of alpha_bar(t) = 1 / (1 + d^2 tan^2(pi t / 2)), clipped to [0, 0.999] (TEncDM); larger d: noisier."""
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    return _betas(1 / (1 + d**2 * torch.tan(math.pi / 2 * t) ** 2))


def log_snr_betas(timesteps: int) -> Tensor:
    """Betas [T] of ln(sigma^2 / alpha^2) rising evenly from -8 to 12: every noise level alike, to measure at."""
    gamma = torch.linspace(*LOG_SNR_RANGE, timesteps, dtype=torch.float64)
    return _betas(torch.cat([gamma.new_ones(1), torch.sigmoid(-gamma)]))


def _betas(signal: Tensor) -> Tensor:
    return (1 - signal[1:] / signal[:-1]).clamp(0, MAX_BETA)


BETA_SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "tan": tan_betas,
    "log_snr": log_snr_betas,
}


class NoiseSchedule:
    """alpha_bar at t = 0, 1/T, ..., 1: a strictly decreasing float64 table of T + 1 entries, the first exactly 1.

    DiffusionError for a table that does not fall from 1 towards 0.
    """

    def __init__(self, table: Tensor):
        if not ((table[1:] < table[:-1]).all() and table[-1] > 0):
            raise DiffusionError(
                "the noise schedule does not lose signal at every step while keeping some: use more common values of "
                "--beta_schedule, --tan_d, --noise_shift and --timesteps"
            )
        self.table = table

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        """The schedule with alpha_bar = cumprod(1 - betas [T])."""
        kept = torch.cumprod(1 - betas.double(), dim=0)
        return cls(torch.cat([kept.new_ones(1), kept]))

    def shifted(self, factor: float) -> "NoiseSchedule":
        """The same with sigma / alpha times `factor` at every time (Hoogeboom et al. 2023, arXiv:2301.11093)."""
        if factor == 1:
            return self
        return NoiseSchedule(self.table / (self.table + factor**2 * (1 - self.table)))

    @property
    def timesteps(self) -> int:
        """T, the number of steps."""
        return len(self.table) - 1

    @property
    def gamma(self) -> Tensor:
        """ln(sigma^2 / alpha^2) [T] at t = 1/T, ..., 1 in float64, rising; on the CPU."""
        table = self.table[1:].cpu()
        return torch.log1p(-table) - table.log()

    def alpha_bar(self, t: Tensor) -> Tensor:
        """alpha_bar at times t in [0, 1], float64, shaped as t; a t between grid points counts as the nearest one."""
        self.table = self.table.to(t.device)  # follows the times to their device; nothing is copied the next time
        index = (t.double() * self.timesteps).round().long()
        return self.table.index_select(0, index.flatten()).view(t.shape)  # a t outside [0, 1] is refused, not wrapped

    def noise_ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha at times t, the noise in standard deviations of the data; float64, shaped as t."""
        bar = self.alpha_bar(t)
        return ((1 - bar) / bar).sqrt()

    def time_at(self, noise_ratio: Tensor) -> Tensor:
        """The first t > 0 whose sigma / alpha is at least `noise_ratio` [B], 1 where none is; float64, shaped as it."""
        grid = torch.arange(self.timesteps + 1, dtype=torch.float64, device=noise_ratio.device) / self.timesteps
        index = torch.searchsorted(self.noise_ratio(grid), noise_ratio.double())
        return grid[index.clamp(1, self.timesteps)]


def time_grid(timesteps: int, sampling_timesteps: int) -> list[float]:
    """S + 1 decreasing times from 1 to 0, as even as the T steps allow; DiffusionError unless 1 <= S <= T."""
    if not 1 <= sampling_timesteps <= timesteps:
        raise DiffusionError(
            f"--sampling_timesteps {sampling_timesteps} must be between 1 and --timesteps ({timesteps}), "
            "or sampling would visit a time twice"
        )
    # Single precision, as in the systems whose samples ours are compared with: where a grid point should be a whole
    # number, the precision decides which index it is truncated to.
    index = torch.linspace(-1, timesteps - 1, sampling_timesteps + 1, dtype=torch.float32).int()
    return [(i + 1) / timesteps for i in reversed(index.tolist())]


def even_grid(sampling_timesteps: int) -> list[float]:
    """S + 1 even times from 1 to 0, for processes in continuous time; DiffusionError unless S >= 1."""
    if sampling_timesteps < 1:
        raise DiffusionError(f"--sampling_timesteps {sampling_timesteps}: expected at least 1")
    return [i / sampling_timesteps for i in range(sampling_timesteps, -1, -1)]


def warped(times: Sequence[float], power: float, timesteps: int | None = None) -> list[float]:
    """A grid with t^power for each time t, among T steps the nearest; below 1 it is denser at high noise.

    DiffusionError where the T steps are too few for it, so that a time would be visited twice.
    """
    if power == 1:
        return list(times)
    warped = [t**power for t in times]
    if timesteps is not None:
        warped = [round(t * timesteps) / timesteps for t in warped]
    if any(s >= t for t, s in pairwise(warped)):
        raise DiffusionError(
            f"--grid_power {power} with {len(times) - 1} sampling steps would visit one of the {timesteps} --timesteps "
            "twice; take fewer steps or a power nearer to 1"
        )
    return warped


def step_times(u: Tensor, timesteps: int, steps: range) -> Tensor:
    """Training times t [B] = (i + 1) / T in float64: u [B] uniform on [0, 1) draws i evenly among `steps`."""
    return ((u.double() * len(steps)).floor() + steps.start + 1) / timesteps


# T-range annealing. For the first half of training (updates k = 0 .. h-1, h = floor(N / 2)) times are drawn from T_k
# steps at one end only, usually that of low noise: a fifth of the T steps at first, growing to all of them.


def normal_T_schedule(total_step: int, timesteps: int, curr_step: int) -> int:
    """T_k without annealing: all `timesteps` at every update."""
    return timesteps


def linear_T_schedule(total_step: int, timesteps: int, curr_step: int) -> int:
    """T_k at update `curr_step` (from 0) of `total_step`: a fifth of the range, growing evenly over the first half."""
    return _growing(total_step, timesteps, curr_step, lambda progress: progress)


def polynomial_T_schedule(total_step: int, timesteps: int, curr_step: int, power: float = 2) -> int:
    """T_k that grows over the first half with the given power of progress, hence late for power > 1."""
    return _growing(total_step, timesteps, curr_step, lambda progress: progress**power)


def cosine_T_schedule(total_step: int, timesteps: int, curr_step: int) -> int:
    """T_k that grows over the first half along half a cosine: slow, fast, slow."""
    return _growing(total_step, timesteps, curr_step, lambda progress: 1 - 0.5 * (1 + math.cos(math.pi * progress)))


def unsmooth_T_schedule(total_step: int, timesteps: int, curr_step: int) -> int:
    """T_k in jumps: 1, 2, 3, then 4 fifths of the range for a quarter of the first half each, then all of it."""
    half = total_step // 2
    if curr_step > half:
        return timesteps
    fifths = next((n for n in (1, 2, 3) if curr_step <= n * half / 4), 4)
    return _within(timesteps, fifths * timesteps / 5)


def _growing(total_step: int, timesteps: int, curr_step: int, growth: Callable[[float], float]) -> int:
    half, least = total_step // 2, timesteps // 5
    if curr_step >= half:
        return timesteps
    return _within(timesteps, least + growth(curr_step / half) * (timesteps - least))


def _within(timesteps: int, T_k: float) -> int:
    return max(1, min(timesteps, int(T_k)))  # at least one step even where timesteps < 5 has no fifth


T_SCHEDULES: dict[str, Callable[..., int]] = {
    "normal": normal_T_schedule,
    "linear": linear_T_schedule,
    "polynomial": polynomial_T_schedule,
    "cosine": cosine_T_schedule,
    "unsmooth": unsmooth_T_schedule,
}


def training_steps(direction: str, timesteps: int, T_k: int) -> range:
    """The T_k of T steps that times are drawn from: those of least noise (low_to_high), or of most (high_to_low)."""
    return range(T_k) if direction == "low_to_high" else range(timesteps - T_k, timesteps)


def T_schedule(name: str, *, power: float = 2) -> Callable[[int, int, int], int]:
    """The named schedule as f(total_step, timesteps, curr_step) -> T_k; `power` is polynomial's own option."""
    if name not in T_SCHEDULES:
        raise DiffusionError(f"--T_schedule {name!r} is not one of: {', '.join(T_SCHEDULES)}")
    if not 0 < power < math.inf:
        raise DiffusionError(f"--polynomial_T_power {power} must be above 0: 1 grows evenly, 2 or 3 grow late")
    own = {"polynomial": {"power": power}}
    return partial(T_SCHEDULES[name], **own.get(name, {}))
