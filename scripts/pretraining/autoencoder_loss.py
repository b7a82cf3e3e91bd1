"""What an autoencoder on frozen states learns from: corrupted states, rough latents, and what is to be written of them.

The loss is that of COSMOS (Meshchaninov et al. 2025): cross-entropy of the tokens and squared error to the encoder's
clean, standardised states. Padding counts only as far as it is needed to end a text.

B batch, L tokens, M output positions, W width of the states, D latent width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from latent_models.autoencoder import Autoencoder, Shape
from latent_models.frozen_encoder import IGNORED
from scripts.job.errors import UsageError

PADS = 4  # positions behind the end of a text where N latents have to say that nothing comes


@dataclass
class CorruptionOptions:
    """Half of the texts have states hidden, the others noised ones; latents of all are dropped and noised."""

    _argument_group_name: ClassVar[str] = "corruption"

    token_mask: float = field(default=0.3, metadata={"help": "share of states hidden in one half of the texts"})
    state_noise: float = field(
        default=0.714, metadata={"help": "sigma of the noise on the states of the others, alpha^2 + sigma^2 being 1"}
    )
    latent_dropout: float = field(default=0.4, metadata={"help": "share of coordinates of the latents set to 0"})
    noise_ratio: float = field(
        default=1.0,
        metadata={"help": "greatest sigma / alpha on the latents that are written from; each text draws from 0 to it"},
    )

    def __post_init__(self):
        for flag in ("token_mask", "state_noise", "latent_dropout"):
            if not 0 <= getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected 0 to below 1")
        if not 0 <= self.noise_ratio < math.inf:
            raise UsageError(f"--noise_ratio {self.noise_ratio}: expected 0 or more")


@dataclass(frozen=True)
class Corruption:
    """Random changes of standardised states and of latents, from a generator of their own."""

    options: CorruptionOptions
    generator: torch.Generator

    def states(self, states: Tensor, hideable: Tensor, valid: Tensor) -> Tensor:
        """States [B, L, W] of which every other text has some `hideable` [B, L] ones at 0, their mean; the rest are
        noised. Texts take turns, as neighbours in a batch are of one length. Padding stays 0.
        """
        sigma, result = self.options.state_noise, states.clone()
        hidden = self._uniform(hideable) < self.options.token_mask
        noised = math.sqrt(1 - sigma**2) * states + sigma * self._normal(states)
        result[0::2] = states[0::2].masked_fill((hidden & hideable)[0::2, :, None], 0.0)
        result[1::2] = noised[1::2] * valid[1::2, :, None]
        return result

    def latents(self, latents: Tensor) -> Tensor:
        """Latents [B, L, D] with coordinates dropped, those left not made larger for it, and noise on all."""
        kept = self._uniform(latents) >= self.options.latent_dropout
        sigma = self.options.noise_ratio * self._uniform(latents[:, :1, :1])
        return latents * kept + sigma * self._normal(latents)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator).to(like.device)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like.device)


def targets(ids: Tensor, pad_id: int, shape: Shape) -> Tensor:
    """What is to be written [B, M]: the tokens ids [B, L] and, from N latents, PADS of padding behind each text."""
    if not shape.latents:
        return ids
    ids = pad(ids, (0, min(PADS, shape.max_length - ids.shape[1])), value=IGNORED)
    behind = torch.arange(ids.shape[1], device=ids.device) - (ids != IGNORED).sum(1, keepdim=True)
    return ids.masked_fill((behind >= 0) & (behind < PADS), pad_id)


class Losses(NamedTuple):
    """Sums over a batch and what they are sums over: nats of the texts' tokens, nats of the padding behind them, and
    squared errors of states."""

    content: Tensor
    tokens: Tensor
    padding: Tensor
    pads: Tensor
    error: Tensor

    @property
    def total(self) -> Tensor:
        """Cross-entropy of all that is written, and squared error: what is trained on."""
        return (self.content + self.padding) / (self.tokens + self.pads) + self.error / self.tokens


def losses(
    model: Autoencoder, states: Tensor, valid: Tensor, ids: Tensor, special: Tensor, pad_id: int,
    corruption: Corruption | None = None,
) -> Losses:  # fmt: skip
    """Of raw states [B, L, W], where texts are [B, L] and their tokens [B, L]; `special` ones are never hidden.

    Without a corruption: of states and latents as they are.
    """
    clean = read = model.standardised(states, valid)
    if corruption is not None:
        read = corruption.states(clean, valid & ~torch.isin(ids, special), valid)
    latents = model.latents(read, valid)
    if corruption is not None:
        latents = corruption.latents(latents)
    wanted = targets(ids, pad_id, model.shape)
    told, logits = model.decoder(latents, model.valid_latents(valid), wanted.shape[1])
    nats = cross_entropy(logits.mT, wanted, ignore_index=IGNORED, reduction="none")  # [B, M]
    content = pad(valid, (0, wanted.shape[1] - valid.shape[1]))
    error = (told[:, : valid.shape[1]] - clean).square().mean(-1)
    pads = ((wanted != IGNORED) & ~content).sum()
    return Losses((nats * content).sum(), content.sum(), (nats * ~content).sum(), pads, (error * valid).sum())
