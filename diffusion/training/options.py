"""How long, on what batches and by which annealing a run is trained, and what it saves on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from diffusion.process import DiffusionError, check_choices, check_seed
from diffusion.schedules import T_schedule

PRECISION = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}  # by --mixed_precision; None: float32


@dataclass
class TrainingOptions:
    """Steps, batches, annealing, saving; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "training"

    num_train_steps: int = field(default=60_000, metadata={"help": "optimizer steps N, also of annealing and decay"})
    train_batch_size: int = field(default=16, metadata={"help": "texts per micro-batch, over all processes"})
    eval_batch_size: int = field(default=32, metadata={"help": "texts per batch in validation, sampling and decoding"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches per optimizer step"})
    T_schedule: Literal["normal", "linear", "polynomial", "cosine", "unsmooth"] = field(
        default="normal", metadata={"help": "how the range of training times grows over the first half of training"}
    )
    polynomial_T_power: float = field(default=2, metadata={"help": "power of --T_schedule polynomial"})
    T_direction: Literal["low_to_high", "high_to_low"] = field(
        default="low_to_high", metadata={"help": "the noise at which that range starts: low noise first, or high noise"}
    )
    time_sampling: Literal["default", "iid", "stratified"] = field(
        default="default",
        metadata={"help": "times of a batch: independent (latent), or one in each part of the range (tokens)"},
    )
    self_condition_prob: float = field(
        default=0.5, metadata={"help": "share of samples that see an estimate of x0 in training (--self_condition)"}
    )
    class_unconditional_prob: float = field(
        default=0.1, metadata={"help": "share of samples trained without their label (--class_conditional)"}
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = field(
        default="no",
        metadata={
            "help": "precision of the network's products in training and, on a GPU, in sampling; weights and "
            "likelihoods are in float32 always"
        },
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "what becomes of an update whose loss or gradient is NaN or infinite: it stops the run, whose last "
            "checkpoint is good, or it is skipped and counted"
        },
    )
    save_and_sample_every: int = field(
        default=5000, metadata={"help": "steps between checkpoints, each followed by samples and their scores"}
    )
    likelihood_draws: int = field(
        default=32, metadata={"help": "draws of the likelihood bound for each text (--ppl_eval)"}
    )
    log_every: int = field(default=50, metadata={"help": "steps between rows of metrics.jsonl"})
    keep_checkpoints: int = field(
        default=2, metadata={"help": "newest checkpoints to keep (0: all); with 1 there is none left if it is damaged"}
    )
    random_seed: int = field(default=42, metadata={"help": "seed of weights, batches and noise"})

    def __post_init__(self):
        check_choices(self)
        for flag in ("num_train_steps", "train_batch_size", "eval_batch_size", "gradient_accumulation_steps",
                     "save_and_sample_every", "log_every", "likelihood_draws"):  # fmt: skip
            if getattr(self, flag) < 1:
                raise DiffusionError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        for flag in ("self_condition_prob", "class_unconditional_prob"):
            if not 0 <= getattr(self, flag) <= 1:
                raise DiffusionError(f"--{flag} {getattr(self, flag)}: expected a probability, 0 to 1")
        if self.keep_checkpoints < 0:
            raise DiffusionError(f"--keep_checkpoints {self.keep_checkpoints}: expected 0 (all) or more")
        check_seed("random_seed", self.random_seed)
        T_schedule(self.T_schedule, power=self.polynomial_T_power)  # refuses a power that cannot work
        if self.T_schedule == "normal" and self.T_direction != "low_to_high":
            raise DiffusionError(f"--T_direction {self.T_direction}: there is no annealing without a --T_schedule")

    def sampling_precision(self, device: torch.device) -> torch.dtype | None:
        """What the network's products are taken in when it samples: on a GPU as in training; None: float32.

        On a CPU products in half precision may be hundreds of times slower.
        """
        return PRECISION[self.mixed_precision] if device.type == "cuda" else None
