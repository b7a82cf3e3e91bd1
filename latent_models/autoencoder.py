"""The network between the states of a frozen encoder and tokens: latents, and a decoder that writes all at once.

A text has one latent a token (its standardised states), or N latents whatever its length, as learned queries read them
off the states (COSMOS, Meshchaninov et al. 2025). The decoder reads latents and tells at once, for every position, the
state and the token there.

B batch, L tokens, W width of the states, N latents, D latent width, M output positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

HEAD = 32  # width of an attention head
EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of an autoencoder; `latents` 0: one latent a token, and its width is that of the states."""

    state_width: int
    vocab_size: int
    max_length: int
    latents: int = 0
    latent_dim: int = 64
    width: int = 256
    depth: int = 3

    @property
    def code_width(self) -> int:
        """D, the width of a latent."""
        return self.latent_dim if self.latents else self.state_width


class Layer(nn.Module):
    """A pre-norm transformer layer: x attends to a context and to itself, then a feed-forward network four times as
    wide."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD
        self.norm, self.context_norm, self.norm_wide = (nn.RMSNorm(width, EPSILON) for _ in range(3))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Tensor, read: Tensor | None) -> Tensor:
        """x [B, n, width] after reading a context [B, m, width] and itself; `read` [B, m + n]: what is looked at."""
        own = self.norm(x)
        split = (x.shape[0], -1, self.heads, HEAD)
        query = self.query(own).view(split).transpose(1, 2)
        pairs = self.key_value(torch.cat([self.context_norm(context), own], 1)).chunk(2, -1)
        key, value = (each.reshape(split).transpose(1, 2) for each in pairs)
        mask = None if read is None else read[:, None, None]
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.widen(self.norm_wide(x))))


def _small(count: int, width: int) -> Tensor:
    """Vectors to tell positions apart: small ones, so that what stands there is read first."""
    return 0.1 * torch.randn(count, width)


class Compressor(nn.Module):
    """States -> N latents: learned queries read [states and positions; queries] in every layer."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.read = nn.Linear(shape.state_width, shape.width)
        self.positions = nn.Parameter(_small(shape.max_length, shape.width))
        self.queries = nn.Parameter(_small(shape.latents, shape.width))
        self.layers = nn.ModuleList(Layer(shape.width) for _ in range(shape.depth))
        self.write = nn.Linear(shape.width, shape.latent_dim)
        # without gains: the network cannot make its latents larger than the noise that is put on them
        self.norm = nn.RMSNorm(shape.latent_dim, EPSILON, elementwise_affine=False)
        self.standard = nn.BatchNorm1d(shape.latents * shape.latent_dim, EPSILON, affine=False)

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """Latents [B, N, D] of standardised states [B, L, W], each coordinate of each slot standardised in its turn."""
        tokens = self.read(states) + self.positions[: states.shape[1]]
        x = self.queries.expand(len(states), -1, -1)
        read = pad(valid, (0, len(self.queries)), value=True)
        for layer in self.layers:
            x = layer(x, tokens, read)
        latents = self.norm(self.write(x))
        return self.standard(latents.flatten(1)).view_as(latents)


class ParallelDecoder(nn.Module):
    """Latents -> states and tokens at all positions at once."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.compressed, self.max_length = bool(shape.latents), shape.max_length
        self.read = nn.Linear(shape.code_width, shape.width)
        self.positions = nn.Parameter(_small(shape.max_length, shape.width))
        self.slots = nn.Parameter(_small(shape.latents, shape.width)) if shape.latents else None
        self.layers = nn.ModuleList(Layer(shape.width) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, EPSILON)
        self.to_states = nn.Linear(shape.width, shape.state_width)
        self.to_logits = nn.Linear(shape.state_width, shape.vocab_size)

    def forward(self, latents: Tensor, valid: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """States [B, M, W] and logits [B, M, V] of the first M = `length` positions; at most L of one latent a token.

        Of N latents the positions after these are made too, as what they say would otherwise depend on `length`.
        """
        x = self.read(latents)
        if self.slots is None:
            context, x, read = x[:, :0], x + self.positions[: x.shape[1]], valid
        else:
            context, read = x + self.slots, None
            x = self.positions.expand(len(x), -1, -1)
        for layer in self.layers:
            x = layer(x, context, read)
        states = self.to_states(self.norm(x[:, :length]))
        return states, self.to_logits(states)


class Autoencoder(nn.Module):
    """Standardises the states of the frozen encoder, makes latents of them, and writes these."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", torch.zeros(shape.state_width))
        self.register_buffer("scale", torch.ones(shape.state_width))
        self.compressor = Compressor(shape) if shape.latents else None
        self.decoder = ParallelDecoder(shape)

    def standardised(self, states: Tensor, valid: Tensor) -> Tensor:
        """Raw states [B, L, W] of about zero mean and unit variance in each coordinate; zero where padded."""
        return (states - self.mean) / (self.scale + EPSILON) * valid[..., None]

    def latents(self, states: Tensor, valid: Tensor) -> Tensor:
        """Latents [B, N, D], or [B, L, W], of standardised states [B, L, W]."""
        return states if self.compressor is None else self.compressor(states, valid)

    def valid_latents(self, valid: Tensor) -> Tensor:
        """Which latents are there, from which tokens [B, L] are: all N of them, or as many as there are tokens."""
        return valid if self.compressor is None else valid.new_ones(len(valid), self.shape.latents)
