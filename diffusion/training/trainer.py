"""One trainer for every process: x0 batches in, a denoiser and its moving average out.

B batch, L positions, D latent width, T_k steps in the range that times are drawn from at update k.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from diffusion.process import DiffusionError, check_choices
from diffusion.schedules import T_schedule
from diffusion.training import checkpoint
from diffusion.training.batches import EpochBatches
from diffusion.training.objective import Batch, Objective
from diffusion.training.optim import OptimOptions, learning_rate_factor, make_ema, make_optimizer
from diffusion.training.tracker import Tracker, Trackers


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
    mixed_precision: Literal["no", "fp16", "bf16"] = field(default="no", metadata={"help": "precision of the trunk"})
    save_and_sample_every: int = field(
        default=5000, metadata={"help": "steps between checkpoints, each followed by samples and their scores"}
    )
    likelihood_draws: int = field(
        default=32, metadata={"help": "draws of the likelihood bound for each text (--ppl_eval)"}
    )
    log_every: int = field(default=50, metadata={"help": "steps between rows of metrics.jsonl"})
    keep_checkpoints: int = field(default=1, metadata={"help": "newest checkpoints to keep (0: all)"})
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
        if not 0 <= self.random_seed < 2**32:
            raise DiffusionError(f"--random_seed {self.random_seed}: expected 0 to 4294967295")
        T_schedule(self.T_schedule, power=self.polynomial_T_power)  # refuses a power that cannot work


class TrainingData(Protocol):
    """Samples the trainer can fetch: `lengths` [N] in positions, and padded batches by index."""

    lengths: np.ndarray

    def batch(self, indices: np.ndarray) -> Batch: ...


# Called with the step and the averaged denoiser after a checkpoint; gives scores by name and texts by name.
Evaluate = Callable[[int, nn.Module], tuple[dict[str, float], dict[str, list[str]]]]


class Trainer:
    """Trains `denoiser` in `run_dir`; calls `evaluate` after the checkpoint of every `save_and_sample_every` steps."""

    def __init__(
        self,
        options: TrainingOptions,
        optim: OptimOptions,
        objective: Objective,
        denoiser: nn.Module,
        train_data: TrainingData,
        valid_data: TrainingData,
        run_dir: Path,
        *,
        accelerator: Accelerator,
        make_tracker: Callable[[int], Tracker],
        evaluate: Evaluate | None = None,
    ):
        self.options, self.objective, self.run_dir = options, objective, run_dir
        self.train_data, self.valid_data, self.evaluate = train_data, valid_data, evaluate
        self.accelerator, self.make_tracker = accelerator, make_tracker
        self.max_grad_norm = optim.max_grad_norm
        denoiser = denoiser.to(accelerator.device)
        self.ema = make_ema(denoiser, optim).to(accelerator.device)
        self.denoiser, self.optimizer = accelerator.prepare(denoiser, make_optimizer(denoiser, optim))
        factor = learning_rate_factor(optim.lr_schedule, optim.lr_warmup_steps, options.num_train_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, factor)
        self.batches = EpochBatches(train_data.lengths, options.train_batch_size, options.random_seed)
        rank = accelerator.process_index
        self.generator = torch.Generator(accelerator.device).manual_seed(options.random_seed + rank)
        self.step = 0  # optimizer steps done
        self.losses: list[torch.Tensor] = []  # of the steps since the last row of metrics

    @property
    def T_k(self) -> int:
        """The range of the update that comes next."""
        annealing = T_schedule(self.options.T_schedule, power=self.options.polynomial_T_power)
        return annealing(self.options.num_train_steps, self.objective.process.timesteps, self.step)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint of the present step; every process must take part, the main one writes."""
        random = gather_object([checkpoint.random_states(self.generator)])  # each process has its own
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        checkpoint.save(
            self.run_dir,
            self.step,
            {
                "model": self.accelerator.unwrap_model(self.denoiser).state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(self.optimizer.optimizer),
                "random": {f"{i}.{name}": value for i, states in enumerate(random) for name, value in states.items()},
            },
            {
                "step": self.step,
                "batches": self.batches.position,
                "scheduler": {"last_epoch": self.scheduler.last_epoch, "_step_count": self.scheduler._step_count},
                "scaler": scaler.state_dict() if scaler is not None else None,
                "optimizer": type(self.optimizer.optimizer).__name__,
                "processes": self.accelerator.num_processes,
                "losses": [loss.item() for loss in self.losses],
            },
            self.options.keep_checkpoints,
        )

    def resume(self, path: Path) -> None:
        """Continues exactly after the checkpoint at `path`: weights, optimizer, rate, data order and randomness."""
        (model, ema, optimizer, random), state = checkpoint.load(path, "model", "ema", "optimizer", "random")
        asked, had = type(self.optimizer.optimizer).__name__.lower(), state["optimizer"].lower()
        if asked != had:
            raise DiffusionError(f"--optimizer {asked}: {path} was trained by {had}; go on with that")
        if state["processes"] != self.accelerator.num_processes:
            raise DiffusionError(
                f"{path}: was trained by {state['processes']} processes, not {self.accelerator.num_processes}; each "
                "has random numbers of its own, so go on with as many"
            )
        checkpoint.load_weights(self.accelerator.unwrap_model(self.denoiser), model, path)
        checkpoint.load_weights(self.ema, ema, path)
        checkpoint.load_optimizer(self.optimizer.optimizer, optimizer)
        own = f"{self.accelerator.process_index}."
        states = {name.removeprefix(own): value for name, value in random.items() if name.startswith(own)}
        checkpoint.load_random_states(self.generator, states)
        self.step, self.batches.position = state["step"], state["batches"]
        self.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in state["losses"]]
        self.scheduler.__dict__.update(state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _rates(self) -> list[float]:
        pairs = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        return [base * factor(self.scheduler.last_epoch) for base, factor in pairs]

    # --- training ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains up to `num_train_steps`: logs, saves, then evaluates on the way; logs and saves the last step."""
        options = self.options
        tracker = self.make_tracker(self.step) if self.accelerator.is_main_process else Trackers()
        batches = iter(self.batches)
        bar = tqdm(
            total=options.num_train_steps,
            initial=self.step,
            desc="train",
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file needs no line every half second
            file=sys.stderr,
        )
        started, first = time.monotonic(), self.step
        while self.step < options.num_train_steps:
            T_k, rate = self.T_k, self.optimizer.param_groups[0]["lr"]
            loss, grad_norm = self._update(batches, T_k)
            self.losses.append(loss)
            self.step += 1
            bar.update()
            if self.step % options.log_every == 0 or self.step == options.num_train_steps:
                row = {
                    "loss": torch.stack(self.losses).mean().item(),
                    **self._validation(),
                    "grad_norm": grad_norm.item(),
                    "learning_rate": rate,
                    "T": T_k,
                    "epoch": self.batches.epoch,
                    "samples": self.step * options.train_batch_size * options.gradient_accumulation_steps,
                    "steps_per_second": (self.step - first) / (time.monotonic() - started),
                }
                shown = {"loss": f"{row['loss']:.4f}", "valid": f"{row['valid_loss_ema']:.4f}", "lr": f"{rate:.1e}"}
                bar.set_postfix(shown | {"T": T_k})
                tracker.log(self.step, row)
                self.losses.clear()
            if self.step % options.save_and_sample_every == 0 or self.step == options.num_train_steps:
                self.save()
                if self.step % options.save_and_sample_every == 0:
                    self._evaluate(tracker)
        bar.close()
        tracker.close()

    def _update(self, batches, T_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; the mean loss over its micro-batches and the norm of the gradient before clipping."""
        self.denoiser.train()
        micro = []
        for _ in range(self.options.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.denoiser):
                batch = self._fetch(self.train_data, next(batches))
                with self.accelerator.autocast():
                    loss = self.objective(self.denoiser, batch, T_k, self.generator).mean()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    grad_norm = self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                micro.append(loss.detach())
        self.scheduler.step()
        self.ema.update()
        return torch.stack(micro).mean(), grad_norm

    def _fetch(self, data: TrainingData, indices: np.ndarray) -> Batch:
        """The rows of this process; at least one, so that every process takes part in the step."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        batch = data.batch(indices[rank::count] if len(indices) >= count else indices[-1:])
        device = self.accelerator.device
        label, clamped = (each if each is None else each.to(device) for each in (batch.label, batch.clamped))
        return Batch(batch.x0.to(device), batch.valid.to(device), label, clamped)

    @torch.no_grad()
    def _validation(self) -> dict[str, float]:
        """Loss of model and EMA on one validation batch (a different one each time), over the full range of times."""
        turn = self.step // self.options.log_every
        held_out = EpochBatches(self.valid_data.lengths, self.options.eval_batch_size, seed=0)
        batch = self._fetch(self.valid_data, held_out.of_epoch(0)[turn % held_out.per_epoch])
        result = {}
        for name, model in (("valid_loss", self.denoiser), ("valid_loss_ema", self.ema.ema_model)):
            model.eval()
            generator = torch.Generator(self.accelerator.device).manual_seed(turn)
            with self.accelerator.autocast():
                loss = self.objective(model, batch, self.objective.process.timesteps, generator)
            result[name] = loss.mean().item()
        return result

    def _evaluate(self, tracker: Tracker) -> None:
        """Samples and scores without touching the randomness of training."""
        if self.evaluate is None or not self.accelerator.is_main_process:
            return
        with torch.random.fork_rng():
            scores, texts = self.evaluate(self.step, self.ema.ema_model.eval())
        tracker.log(self.step, scores)
        for name, some in texts.items():
            tracker.log_texts(self.step, name, some)
