"""Optimizer, learning rate and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from ema_pytorch import EMA
from lion_pytorch.foreach import Lion
from torch import nn

from diffusion.process import DiffusionError, check_choices

OPTIMIZERS = ("adamw", "lion")


@dataclass
class OptimOptions:
    """Optimizer, learning rate and moving average; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "optimizer"

    learning_rate: float = field(default=1e-4, metadata={"help": "peak learning rate"})
    lr_schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "learning rate after warm-up, down to 0 at the last step but for constant"}
    )
    lr_warmup_steps: int = field(default=1000, metadata={"help": "steps of linear warm-up"})
    optimizer: str = field(default="adamw", metadata={"help": "adamw or lion (in any case)"})
    adam_beta1: float = field(default=0.9, metadata={"help": "first beta, of Lion too"})
    adam_beta2: float = field(default=0.999, metadata={"help": "second beta, of Lion too (whose authors use 0.99)"})
    adam_weight_decay: float = field(
        default=1e-6, metadata={"help": "weight decay of matrices and embeddings, of Lion too"}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    ema_decay: float = field(default=0.9999, metadata={"help": "greatest decay of the moving average"})
    ema_update_every: int = field(default=1, metadata={"help": "steps between updates of the moving average"})

    def __post_init__(self):
        check_choices(self)
        self.optimizer = self.optimizer.lower()
        if self.optimizer not in OPTIMIZERS:
            raise DiffusionError(f"--optimizer {self.optimizer!r} is not one of: {', '.join(OPTIMIZERS)}")
        for flag in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, flag) < math.inf:
                raise DiffusionError(f"--{flag} {getattr(self, flag)}: expected a number above 0")
        for flag in ("adam_beta1", "adam_beta2", "ema_decay"):
            if not 0 <= getattr(self, flag) < 1:
                raise DiffusionError(f"--{flag} {getattr(self, flag)}: expected a number from 0 to below 1")
        if not 0 <= self.adam_weight_decay < math.inf:
            raise DiffusionError(f"--adam_weight_decay {self.adam_weight_decay}: expected 0 or more")
        if self.lr_warmup_steps < 0:
            raise DiffusionError(f"--lr_warmup_steps {self.lr_warmup_steps}: expected 0 or more")
        if self.ema_update_every < 1:
            raise DiffusionError(f"--ema_update_every {self.ema_update_every}: expected at least 1")


def make_optimizer(model: nn.Module, options: OptimOptions) -> torch.optim.Optimizer:
    """AdamW or Lion (Chen et al. 2023, arXiv:2302.06675); weight decay on parameters of two or more axes only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.adam_weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel over all parameters rather than several for each: the arithmetic of a step is its memory traffic.
    make = {"adamw": partial(torch.optim.AdamW, fused=True), "lion": Lion}[options.optimizer]
    return make(groups, lr=options.learning_rate, betas=(options.adam_beta1, options.adam_beta2))


def learning_rate_factor(schedule: str, warmup: int, total: int) -> Callable[[int], float]:
    """Factor on the peak rate at update k = 0, 1, ...: from 0 up over `warmup`, then by the schedule until `total`."""
    after = {
        "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": lambda progress: 1 - progress,
        "constant": lambda progress: 1.0,
    }[schedule]

    def factor(k: int) -> float:
        if k < warmup:
            return k / warmup
        return after(min(1.0, (k - warmup) / max(1, total - warmup)))

    return factor


def make_ema(model: nn.Module, options: OptimOptions) -> EMA:
    """A copy of the weights for 100 updates, then their average with decay 1 - (1 + k)^(-3/4), at most ema_decay.

    The copy lies where the weights do, the count of updates on the CPU: reading it there waits for no device.
    """
    return EMA(
        model,
        beta=options.ema_decay,
        update_after_step=100,
        update_every=options.ema_update_every,
        inv_gamma=1.0,
        power=0.75,
        include_online_model=False,
        use_foreach=True,
    )
