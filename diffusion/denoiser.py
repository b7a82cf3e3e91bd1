"""The trunk that every method shares: an x-transformers encoder that sees noisy x, the time and a condition.

B batch, L positions, D latent width, W trunk width (`tx_dim`), C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from x_transformers import Encoder

from diffusion.process import DiffusionError

HEAD_DIM = 64


@dataclass
class DenoiserOptions:
    """Size and inputs of the trunk; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "denoiser"

    tx_dim: int = field(default=512, metadata={"help": "trunk width, a multiple of 64 (heads are 64 wide)"})
    tx_depth: int = field(default=6, metadata={"help": "trunk layers"})
    scale_shift: bool = field(default=False, metadata={"help": "time enters every layer by adaptive layer norm"})
    disable_dropout: bool = field(default=False, metadata={"help": "no dropout (else 0.1)"})
    self_condition: bool = field(default=False, metadata={"help": "feed the previous estimate of x0 back in"})
    class_conditional: bool = field(default=False, metadata={"help": "the trunk is told the class label of a text"})

    def __post_init__(self):
        if self.tx_dim < 1 or self.tx_dim % HEAD_DIM:
            raise DiffusionError(f"--tx_dim {self.tx_dim}: expected a positive multiple of {HEAD_DIM}, the head size")
        if self.tx_depth < 1:
            raise DiffusionError(f"--tx_depth {self.tx_depth}: expected at least 1")


class TimeEmbedding(nn.Module):
    """t [B] in [0, 1] -> [B, W]: sinusoids of 1000 t (Vaswani et al. 2017, section 3.5), then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000) * torch.linspace(0, 1, width // 2)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = 1000 * t[:, None].float() * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class LatentDenoiser(nn.Module):
    """Trunk with a latent head: (xt [B, L, D], t [B], valid [B, L]) -> [B, L, D], exactly 0 before training.

    `x0_prev` [B, L, D] is the estimate to condition on, position by position (Chen et al. 2022, arXiv:2208.04202);
    zeros stand for none. `label` [B] in 0..C-1, or -1 for no label, joins the time embedding.
    """

    def __init__(self, latent_dim: int, options: DenoiserOptions, classes: int = 0):
        super().__init__()
        width = options.tx_dim
        dropout = 0.0 if options.disable_dropout else 0.1
        self.self_condition = options.self_condition
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no label"
        self.read = nn.Linear(2 * latent_dim if options.self_condition else latent_dim, width)
        self.scale_shift = options.scale_shift
        self.trunk = Encoder(
            dim=width,
            depth=options.tx_depth,
            heads=width // HEAD_DIM,
            attn_dim_head=HEAD_DIM,
            attn_flash=True,
            attn_dropout=dropout,
            ff_dropout=dropout,
            ff_glu=True,
            rotary_pos_emb=True,
            **({"use_adaptive_layernorm": True, "use_adaptive_layerscale": True, "dim_condition": width}
               if options.scale_shift else {}),
        )  # fmt: skip
        self.write = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(
        self, xt: Tensor, t: Tensor, valid: Tensor, x0_prev: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        condition = self.time(t)
        if self.label is not None:
            none = self.label.num_embeddings - 1
            label = torch.full_like(t, none, dtype=torch.long) if label is None else label.where(label >= 0, none)
            condition = condition + self.label(label)
        if self.self_condition:
            xt = torch.cat([xt, torch.zeros_like(xt) if x0_prev is None else x0_prev], dim=-1)
        h = self.read(xt) + condition[:, None]
        h = self.trunk(h, mask=valid, **({"condition": condition} if self.scale_shift else {}))
        return self.write(h)
