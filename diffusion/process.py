"""What every diffusion process offers trainer and samplers, and how a loss over positions becomes one number.

Time t [B] is in [0, 1]: 0 is data, 1 is the prior. A process with T discrete steps and 0-based index i has
t = (i + 1) / T. Time is an argument of every method, so a process holds no state that changes during a run.
Legend: B batch, L positions, D latent width, V vocabulary (the absorbing token counted, where there is one).
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

import torch
from torch import Tensor

from diffusion.randomness import Randomness


class DiffusionError(Exception):
    """A wrong option or input, told in one line: what, what was expected, what to do."""


@runtime_checkable
class Process(Protocol):
    """A corruption, its reverse step and its loss; x is [B, L, D] float or [B, L] token ids, t and s are [B]."""

    timesteps: int  # T, the steps that times are drawn from in training and that T-range annealing counts
    loss_reads: int | None  # the id of x_t where alone `loss` is not 0 and reads the output; None: it reads all of it
    step_reads: int | None  # the id of x_t where alone `step` changes x_t and reads x0_hat; None: it reads all of it

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times t [B] among these of the T steps, at u [B] in [0, 1): u uniform draws them."""

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 decreasing times from 1 to 0 for sampling; DiffusionError where the process has no such grid."""

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """x at t = 1, of the given shape."""

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x_t ~ q(x_t | x_0), shaped as x0."""

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat: E[x0] [B, L, D] by the network's output; of tokens log p(x0), or SEDD's log-score, [B, L, V]."""

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s ~ p(x_s | x_t) given the estimate `denoised` made, for s < t; s = 0 gives data."""

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Training loss [B, L] per position, padding included, which `Objective` reduces."""


# (xt, t [B]) or (xt, t, at: Positions) -> what `denoised` makes of the network's output, everywhere or there
Predict = Callable[..., Tensor]


@runtime_checkable
class TokenProcess(Process, Protocol):
    """A process of token ids that bounds the likelihood of a text."""

    vocab_size: int  # V

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw of an upper bound on -log p(x0) in nats, [B, L]: summed over L its mean over draws is the bound.

        Positions that are not `free` [B, L] (padding, or clamped to x0) are never corrupted and contribute 0. u [B] in
        [0, 1) chooses the time (or number of masks) of each row; spread evenly it makes the variance small.
        """


def sum_over_valid(loss: Tensor, valid: Tensor) -> Tensor:
    """Sum [B] of loss [B, L] over each sample's valid [B, L] positions."""
    # `where`, not a product: 0 * nan would let a padding position spoil its sample.
    return torch.where(valid, loss, 0.0).sum(dim=1)


def mean_over_valid(loss: Tensor, valid: Tensor) -> Tensor:
    """Mean [B] of loss [B, L] over each sample's valid [B, L] positions; a sample without any gets 0.

    The mean of the result over the batch weighs samples, not positions: lengths 5 and 64 count the same.
    """
    return sum_over_valid(loss, valid) / valid.sum(dim=1).clamp(min=1)


def check_seed(flag: str, seed: int) -> None:
    """Refuse a seed that a generator does not take; raises DiffusionError."""
    if not 0 <= seed < 2**32:
        raise DiffusionError(f"--{flag} {seed}: expected 0 to 4294967295")


def check_choices(options: Any) -> None:
    """Refuse any Literal-typed field of a dataclass that holds something else; raises DiffusionError."""
    hints = get_type_hints(type(options))
    for field in fields(options):
        choices, value = get_args(hints[field.name]), getattr(options, field.name)
        if get_origin(hints[field.name]) is Literal and value not in choices:
            raise DiffusionError(f"--{field.name} {value!r} is not one of: {', '.join(map(str, choices))}")
