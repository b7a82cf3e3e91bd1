"""The network of MDLM, SEDD and GIDD: a diffusion transformer with adaptive layer norms (Peebles & Xie 2023,
arXiv:2212.09748, as Lou et al. 2024, arXiv:2310.16834, have it for text).

Modules and parameters bear the names, and stand in the order, of the published checkpoints: reading one is accounting.
B batch, L positions, V vocabulary, W width, H heads, C width of the condition; q rows of h, B or single positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention, silu

from diffusion.denoiser import DenoiserOptions, silent
from diffusion.positions import Positions

FREQUENCIES = 128  # sines and as many cosines of the noise
PERIOD = 10_000.0  # the longest of their waves, and the base of the rotary positions
WIDENED = 4  # the MLP of a block is so many times as wide


class DiT(nn.Module):
    """A token denoiser: (xt [B, L] ids, t [B], valid [B, L]) -> logits [B, L, V], all 0 before training.

    It is told `noise`(t) [B], unscaled, or the constant 0 where that is None. x0_prev and label are not used.
    """

    self_condition = False

    def __init__(self, vocab_size: int, options: DenoiserOptions, noise: Callable[[Tensor], Tensor] | None):
        super().__init__()
        width, condition = options.tx_dim, options.dit_cond_dim
        self.noise = noise
        self.vocab_embed = VocabEmbedding(vocab_size, width)
        self.sigma_map = NoiseEmbedding(condition)
        dropout = 0.0 if options.disable_dropout else 0.1
        self.blocks = Blocks(Block(width, options.heads, condition, dropout) for _ in range(options.tx_depth))
        self.output_layer = OutputLayer(width, vocab_size, condition)

    @property
    def trunk(self) -> nn.Module:
        """What lies between embedding and head."""
        return self.blocks

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        valid: Tensor,
        x0_prev: Tensor | None = None,
        label: Tensor | None = None,
        at: Positions | None = None,
    ) -> Tensor:
        condition = silu(self.sigma_map(torch.zeros_like(t) if self.noise is None else self.noise(t)))
        h = self.blocks(self.vocab_embed(xt), condition, valid)
        if at is not None:
            h, condition = at.of(h), at.times(condition)
        return self.output_layer(h, condition)


class VocabEmbedding(nn.Module):
    """ids [B, L] -> [B, L, W]; even in +-1 / sqrt(W) before training."""

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.embedding)


class NoiseEmbedding(nn.Module):
    """noise [B] -> [B, C]: cosines, then sines of it, and an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise: Tensor) -> Tensor:
        dtype = self.mlp[0].weight.dtype
        waves = PERIOD ** -(torch.arange(FREQUENCIES, device=noise.device, dtype=dtype) / FREQUENCIES)
        angles = noise[:, None].to(dtype) * waves
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Blocks(nn.ModuleList):
    """All blocks, one after the other: h [B, L, W], told condition [B, C]; no position sees what is not `valid`."""

    def forward(self, h: Tensor, condition: Tensor, valid: Tensor) -> Tensor:
        rotary = rotary_angles(h.shape[1], self[0].head_dim, h.device)
        cos, sin = (of(rotary).to(h.dtype) for of in (torch.cos, torch.sin))
        for block in self:
            h = block(h, condition, valid[:, None, None], cos, sin)
        return h


class Block(nn.Module):
    """Attention, then an MLP; the condition shifts and scales what each reads and weighs what it adds, 0 at first."""

    def __init__(self, width: int, heads: int, condition: int, dropout: float):
        super().__init__()
        self.head_dim = width // heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, WIDENED * width), nn.GELU(approximate="tanh"), nn.Linear(WIDENED * width, width)
        )
        self.adaLN_modulation = silent(nn.Linear(condition, 6 * width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, condition: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.dropout(self._attended(self.norm1(h) * (1 + scale1) + shift1, seen, cos, sin))
        return h + gate2 * self.dropout(self.mlp(self.norm2(h) * (1 + scale2) + shift2))

    def _attended(self, h: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv = self.attn_qkv(h).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)  # 3, B, H, L, W / H
        q, k, v = qkv.unbind()
        heads = scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v, attn_mask=seen)
        return self.attn_out(heads.transpose(1, 2).flatten(2))


class OutputLayer(nn.Module):
    """h [q, L, W], told condition [q, C] -> logits [q, L, V]."""

    def __init__(self, width: int, vocab_size: int, condition: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, bias=False)
        self.linear = silent(nn.Linear(width, vocab_size))
        self.adaLN_modulation = silent(nn.Linear(condition, 2 * width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(h) * (1 + scale) + shift)


def rotary_frequencies(head_dim: int, device: torch.device | None = None) -> Tensor:
    """Radians per position [W / 2H] of each pair of numbers of a head (Su et al. 2021, arXiv:2104.09864)."""
    return PERIOD ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)


def rotary_angles(length: int, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angles [L, W / 2H] by which the pairs of a head are turned at each position."""
    return torch.outer(torch.arange(length, device=device), rotary_frequencies(head_dim, device))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, L, W / H] with pair i, its numbers i and i + W / 2H, turned by the angle of its position."""
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)
