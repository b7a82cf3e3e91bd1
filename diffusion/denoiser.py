"""The trunk that every method shares: an x-transformers stack that sees noisy x, the time and a condition.

B batch, L positions, D latent width, V vocabulary, W trunk width (`tx_dim`), C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from x_transformers import Decoder, Encoder

from diffusion.positions import Positions
from diffusion.process import DiffusionError, check_choices

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
    bottleneck_dim: int = field(
        default=0, metadata={"help": "latents enter the trunk through so many numbers, such as 128; 0: directly"}
    )
    class_conditional: bool = field(default=False, metadata={"help": "the trunk is told the class label of a text"})
    time_input: Literal["default", "none", "input", "token", "layerwise"] = field(
        default="default",
        metadata={
            "help": "how the trunk is told the time: not at all, added to the input, as one more position, or in every "
            "layer (which is what --scale_shift does); default: as suits the method"
        },
    )
    trunk: Literal["x_transformers", "dit"] = field(
        default="x_transformers",
        metadata={"help": "the network between input and output; dit: that of published MDLM, SEDD and GIDD weights"},
    )
    dit_heads: int = field(default=0, metadata={"help": "heads of --trunk dit (0: heads 64 wide)"})
    dit_cond_dim: int = field(default=128, metadata={"help": "width in which --trunk dit is told the time"})

    def __post_init__(self):
        check_choices(self)
        if self.trunk == "dit":
            self._check_dit()
        elif self.dit_heads:
            raise DiffusionError(f"--dit_heads {self.dit_heads}: is of --trunk dit, leave it out")
        if self.dit_heads < 0:
            raise DiffusionError(f"--dit_heads {self.dit_heads}: expected 0 (64 wide) or more")
        if self.dit_heads and (self.tx_dim < 1 or self.tx_dim % (2 * self.dit_heads)):
            raise DiffusionError(
                f"--tx_dim {self.tx_dim}: expected a positive multiple of {2 * self.dit_heads}, twice --dit_heads"
            )
        if not self.dit_heads and (self.tx_dim < 1 or self.tx_dim % HEAD_DIM):
            raise DiffusionError(f"--tx_dim {self.tx_dim}: expected a positive multiple of {HEAD_DIM}, the head size")
        if self.dit_cond_dim < 1:
            raise DiffusionError(f"--dit_cond_dim {self.dit_cond_dim}: expected at least 1")
        if self.tx_depth < 1:
            raise DiffusionError(f"--tx_depth {self.tx_depth}: expected at least 1")
        if self.bottleneck_dim < 0:
            raise DiffusionError(f"--bottleneck_dim {self.bottleneck_dim}: expected 0 (none) or more")
        if self.scale_shift and self.time_input not in ("default", "layerwise"):
            raise DiffusionError(f"--time_input {self.time_input} contradicts --scale_shift: leave out one of the two")

    def _check_dit(self) -> None:
        for flag in ("scale_shift", "self_condition", "bottleneck_dim", "class_conditional"):
            if getattr(self, flag):
                raise DiffusionError(f"--{flag}: --trunk dit, the published network, has no such thing; leave it out")
        if self.time_input not in ("default", "none", "layerwise"):
            raise DiffusionError(
                f"--time_input {self.time_input}: --trunk dit is told the time in every layer or not at all; choose "
                "layerwise or none"
            )

    @property
    def heads(self) -> int:
        """Heads of each layer."""
        return self.dit_heads or self.tx_dim // HEAD_DIM

    def chosen_time_input(self, usual: str = "input") -> str:
        """How the time enters, for a method that tells it in the `usual` way."""
        if self.time_input != "default":
            return self.time_input
        return "layerwise" if self.scale_shift and usual != "none" else usual


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


class Denoiser(nn.Module):
    """Trunk and conditioning; how x_t is `embedded` and what `write` is are left to the heads below.

    A head writes for the positions `at` alone, [n, 1, ...], where it is told which.
    """

    def __init__(self, options: DenoiserOptions, classes: int, time_input: str, stack: type = Encoder):
        super().__init__()
        width = options.tx_dim
        dropout = 0.0 if options.disable_dropout else 0.1
        self.time_input = time_input
        self.self_condition = options.self_condition
        self.time = None if time_input == "none" else TimeEmbedding(width)
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no label"
        self.adaptive = options.scale_shift or time_input == "layerwise"
        # Untold the time, adaptive layers see a constant: the trunk is the same one for every method.
        self.constant = nn.Parameter(0.02 * torch.randn(width)) if self.adaptive and self.time is None else None
        self.trunk = stack(
            dim=width,
            depth=options.tx_depth,
            heads=options.heads,
            attn_dim_head=HEAD_DIM,
            attn_flash=True,
            attn_dropout=dropout,
            ff_dropout=dropout,
            ff_glu=True,
            rotary_pos_emb=True,
            **({"use_adaptive_layernorm": True, "use_adaptive_layerscale": True, "dim_condition": width}
               if self.adaptive else {}),
        )  # fmt: skip

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        valid: Tensor,
        x0_prev: Tensor | None = None,
        label: Tensor | None = None,
        at: Positions | None = None,
    ) -> Tensor:
        h = self.run(self.embedded(xt, x0_prev), t, valid, label)
        return self.write(h if at is None else at.of(h))

    def embedded(self, xt: Tensor, x0_prev: Tensor | None) -> Tensor:
        """What the trunk reads of x_t and of the estimate before, [B, L, W]."""
        raise NotImplementedError

    def run(
        self, h: Tensor, t: Tensor, valid: Tensor | None, label: Tensor | None, **trunk: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The trunk on embedded positions h [B, L, W], told time and label; further arguments go to the trunk."""
        condition = self._condition(t, label)
        if self.time_input == "token":
            h = torch.cat([condition[:, None], h], dim=1)
            return self.trunk(h, attn_mask=_seen(pad(valid, (1, 0), value=True)))[:, 1:]
        if condition is not None:
            h = h + condition[:, None]
        return self.trunk(h, attn_mask=_seen(valid), **({"condition": condition} if self.adaptive else {}), **trunk)

    def _condition(self, t: Tensor, label: Tensor | None) -> Tensor | None:
        condition = self.constant if self.time is None else self.time(t)
        if self.constant is not None:
            condition = condition.expand(len(t), -1)
        if self.label is None:
            return condition
        none = self.label.num_embeddings - 1
        label = torch.full_like(t, none, dtype=torch.long) if label is None else label.where(label >= 0, none)
        return self.label(label) if condition is None else condition + self.label(label)


class LatentDenoiser(Denoiser):
    """Trunk with a latent head: (xt [B, L, D], t [B], valid [B, L]) -> [B, L, D], exactly 0 before training.

    `x0_prev` [B, L, D] is the estimate to condition on, position by position (Chen et al. 2022, arXiv:2208.04202);
    zeros stand for none. `label` [B] in 0..C-1, or -1 for no label, joins the time embedding.
    """

    def __init__(self, latent_dim: int, options: DenoiserOptions, classes: int = 0):
        super().__init__(options, classes, options.chosen_time_input())
        inputs = 2 * latent_dim if options.self_condition else latent_dim
        self.read = nn.Linear(inputs, options.tx_dim)
        if narrow := options.bottleneck_dim:  # of 768 ELF found 128 best
            self.read = nn.Sequential(nn.Linear(inputs, narrow), nn.Linear(narrow, options.tx_dim))
        self.write = silent(nn.Linear(options.tx_dim, latent_dim))

    def embedded(self, xt: Tensor, x0_prev: Tensor | None) -> Tensor:
        if self.self_condition:
            xt = torch.cat([xt, torch.zeros_like(xt) if x0_prev is None else x0_prev], dim=-1)
        return self.read(xt)


class TokenDenoiser(Denoiser):
    """Trunk with a token head: (xt [B, L] ids, t [B], valid [B, L]) -> logits [B, L, V], all 0 before training."""

    def __init__(self, vocab_size: int, options: DenoiserOptions, classes: int = 0, time_input: str = "input"):
        super().__init__(options, classes, options.chosen_time_input(time_input))
        self.read = _embedding(vocab_size, options.tx_dim)
        self.write = silent(nn.Linear(options.tx_dim, vocab_size))

    def embedded(self, xt: Tensor, x0_prev: Tensor | None) -> Tensor:
        return self.read(xt)


class CausalDenoiser(Denoiser):
    """The trunk reading from left to right: logits [B, L, V] at position i see the tokens before i only.

    The input is shifted by one in here, a learnt vector standing at the first position; the time is not used.
    """

    def __init__(self, vocab_size: int, options: DenoiserOptions, classes: int = 0):
        super().__init__(options, classes, "none", Decoder)
        self.start = nn.Parameter(torch.randn(options.tx_dim))
        self.read = _embedding(vocab_size, options.tx_dim)
        self.write = silent(nn.Linear(options.tx_dim, vocab_size))

    def embedded(self, xt: Tensor, x0_prev: Tensor | None) -> Tensor:
        return torch.cat([self._started(len(xt)), self._read(xt[:, :-1])], dim=1)

    def run(
        self, h: Tensor, t: Tensor, valid: Tensor | None, label: Tensor | None, **trunk: Any
    ) -> Tensor | tuple[Tensor, Any]:
        # Padding stands to the right of all that counts, where causal attention does not look: no `valid` is needed.
        return super().run(h, t, None, label, **trunk)

    def next(self, written: Tensor, cache: Any, label: Tensor | None = None) -> tuple[Tensor, Any]:
        """Logits [B, V] of the position after the `written` ids [B, i], and the cache for the call that follows.

        `cache` is what the call before returned, with one id less (None for i = 0).
        """
        h = self._read(written[:, -1:]) if written.shape[1] else self._started(len(written))
        h, cache = self.run(h, h.new_zeros(len(h)), None, label, cache=cache, return_hiddens=True)
        return self.write(h[:, -1]), cache

    def _started(self, batch: int) -> Tensor:
        return self.start.expand(batch, 1, -1)

    def _read(self, ids: Tensor) -> Tensor:
        return self.read(ids.clamp(min=0))  # positions not yet written are -1; causal attention never shows them


def _seen(valid: Tensor | None) -> Tensor | None:
    """The same attention mask for all heads and queries: no position sees padding."""
    # x-transformers' own `mask` would also write zeros into the padding, which nobody reads, by an operation that
    # makes a compiled trunk compile anew for every shape.
    return None if valid is None else valid[:, None, None]


def _embedding(vocab_size: int, width: int) -> nn.Embedding:
    # Of unit variance, nn.Embedding's own: smaller ones drown in what the first layers add, and the network then takes
    # hundreds of steps more to look at the tokens at all.
    return nn.Embedding(vocab_size, width)


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer, which puts out 0 before training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
