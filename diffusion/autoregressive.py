"""The autoregressive baseline behind the face of a diffusion process: time runs from the end of a text to its start.

At time t the first (1 - t) L of L positions are written and the others erased (-1), so that a reverse step of 1 / L
writes one token. The network hides what stands to the right by itself, hence nothing is corrupted in training, and the
bound is the likelihood itself. Legend: B batch, L positions, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.categorical import sample_categorical, widened, without
from diffusion.process import Predict
from diffusion.randomness import Randomness, uniform
from diffusion.schedules import even_grid

ERASED = -1


class AutoregressiveProcess:
    """The chain rule as a `TokenProcess`: one token after the other, exactly."""

    timesteps = 1
    loss_reads = step_reads = None

    def __init__(self, vocab_size: int, mask_id: int | None = None):
        self.vocab_size = vocab_size
        self.mask_id = mask_id  # of a tokenizer that has such a token: no text holds it

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Zeros [B]: every position learns at once."""
        return torch.zeros_like(u)

    def grid(self, sampling_timesteps: int) -> list[float]:
        """Times 1 to 0, one step for each of `sampling_timesteps` positions."""
        return even_grid(sampling_timesteps)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """Nothing written yet."""
        return torch.full(tuple(shape), ERASED, device=device)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness | None = None) -> Tensor:
        """x0 itself."""
        return x0

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """log p(x_i | x_1 .. x_(i-1)) [B, L, V]."""
        return self._logits(output).log_softmax(-1)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """Write position (1 - t) L where it is erased; ValueError unless the next one is (1 - s) L."""
        now, then = (((1 - time.double()) * xt.shape[1]).round().long() for time in (t, s))
        if not (then - now == 1).all():
            raise ValueError("tokens are written one at a time: a grid of as many steps as positions is needed")
        u = uniform((len(xt),), generator, xt.device, torch.float64)
        rows = torch.arange(len(xt), device=xt.device)
        drawn = sample_categorical(x0_hat[rows, now].double().exp(), u)
        written = torch.where(xt[rows, now] == ERASED, drawn, xt[rows, now])
        return xt.index_put((rows, now), written)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """-log p of every token [B, L] in nats."""
        return F.cross_entropy(self._logits(output).transpose(1, 2), x0, reduction="none")

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """-log p of every free token [B, L]: the same at every draw."""
        nats = -predict(x0, torch.zeros_like(u)).gather(-1, x0[..., None]).squeeze(-1)
        return torch.where(free, nats.double(), 0.0)

    def _logits(self, output: Tensor) -> Tensor:
        output = widened(output)
        return output if self.mask_id is None else without(self.mask_id, output)
