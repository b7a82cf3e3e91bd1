"""One trainer for every process: x0 batches in, a denoiser and its moving average out.

B batch, L positions, D latent width, T_k steps in the range that times are drawn from at update k.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from diffusion.process import DiffusionError
from diffusion.schedules import T_schedule, training_steps
from diffusion.training import checkpoint
from diffusion.training.batches import EpochBatches
from diffusion.training.health import Health, Update, check_weights
from diffusion.training.loading import made_ahead
from diffusion.training.objective import Batch, Objective
from diffusion.training.optim import OptimOptions, learning_rate_factor, make_ema, make_optimizer
from diffusion.training.options import TrainingOptions
from diffusion.training.progress import progress_bar
from diffusion.training.share import Share
from diffusion.training.signals import Stopped, StopSignals
from diffusion.training.tracker import Tracker, Trackers


class TrainingData(Protocol):
    """Samples the trainer can fetch: `lengths` [N] in positions, and padded batches by index."""

    lengths: np.ndarray

    def batch(self, indices: np.ndarray) -> Batch: ...


# Called with the step and the averaged denoiser after a checkpoint; gives scores by name and texts by name.
Evaluate = Callable[[int, nn.Module], tuple[dict[str, float], dict[str, list[str]]]]
# Entered around each part of a step, with its name: load, forward, backward, optimizer, ema.
Stage = Callable[[str], AbstractContextManager]

STOP_EVERY = 10  # steps between agreements of several processes on whether to stop
BATCHES_AHEAD = 2  # made ready while another device computes; on a CPU the thread would only take its cores


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
        stop: StopSignals | None = None,
        stage: Stage = lambda name: nullcontext(),
    ):
        self.options, self.objective, self.run_dir = options, objective, run_dir
        self.train_data, self.valid_data, self.evaluate = train_data, valid_data, evaluate
        self.accelerator, self.make_tracker, self.stage = accelerator, make_tracker, stage
        self.stop = stop or StopSignals()
        self.max_grad_norm = optim.max_grad_norm
        denoiser = denoiser.to(accelerator.device)
        self.ema = make_ema(denoiser, optim)
        self.denoiser, self.optimizer = accelerator.prepare(denoiser, make_optimizer(denoiser, optim))
        factor = learning_rate_factor(optim.lr_schedule, optim.lr_warmup_steps, options.num_train_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, factor)
        self.batches = EpochBatches(train_data.lengths, options.train_batch_size, options.random_seed)
        self.health = Health(
            self.batches,
            options.gradient_accumulation_steps,
            skips=options.on_nonfinite == "skip",
            scaled=accelerator.scaler is not None,
            mean=lambda numbers: accelerator.reduce(numbers, "mean"),
            tell=self._tell,
        )
        seed = options.random_seed
        (host_seed,) = np.random.SeedSequence(seed).generate_state(1)  # else both give the same numbers on a CPU
        self.generators = {  # alike on all processes, as `Share` says
            "training": torch.Generator(accelerator.device).manual_seed(seed),
            "host": torch.Generator().manual_seed(int(host_seed)),
        }
        self.step = 0  # optimizer steps done

    @property
    def T_k(self) -> int:
        """The range of the update that comes next."""
        annealing = T_schedule(self.options.T_schedule, power=self.options.polynomial_T_power)
        return annealing(self.options.num_train_steps, self.objective.process.timesteps, self.step)

    def _steps(self, T_k: int) -> range:
        return training_steps(self.options.T_direction, self.objective.process.timesteps, T_k)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint of the present step; every process must take part, the main one writes."""
        random = gather_object([checkpoint.random_states(self.generators)])  # dropout differs between processes
        self.health.settle()
        check_weights(self.denoiser, self.step, self.optimizer.param_groups[0]["lr"])
        if self.accelerator.is_main_process:
            self._write(random)
        self.accelerator.wait_for_everyone()  # a launcher ends all processes as soon as one of them has stopped

    def _write(self, random: list[dict[str, torch.Tensor]]) -> None:
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
                "losses": [loss.item() for loss in self.health.losses],
                "skipped": [self.health.skipped, self.health.in_a_row],
            },
            self.options.keep_checkpoints,
        )

    def resume(self, path: Path) -> None:
        """Continues exactly after the checkpoint at `path`: weights, optimizer, rate, data order and randomness."""
        (model, ema, optimizer, random), state = checkpoint.load(path, *checkpoint.GROUPS)
        asked, had = type(self.optimizer.optimizer).__name__.lower(), state["optimizer"].lower()
        if optimizer and asked != had:  # before the first step there is nothing of it to go on with
            raise DiffusionError(f"--optimizer {asked}: {path} was trained by {had}; go on with that")
        if state["processes"] != self.accelerator.num_processes:
            raise DiffusionError(
                f"{path}: was trained by {state['processes']} processes, not {self.accelerator.num_processes}; the "
                "random numbers of dropout are kept for each of them, so go on with as many"
            )
        checkpoint.load_weights(self.accelerator.unwrap_model(self.denoiser), model, path)
        checkpoint.load_weights(self.ema, ema, path)
        checkpoint.load_optimizer(self.optimizer.optimizer, optimizer)
        own = f"{self.accelerator.process_index}."
        states = {name.removeprefix(own): value for name, value in random.items() if name.startswith(own)}
        checkpoint.load_random_states(self.generators, states)
        self.step, self.batches.position = state["step"], state["batches"]
        self.health.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in state["losses"]]
        self.health.skipped, self.health.in_a_row = state.get("skipped", (0, 0))  # which were not always counted
        self.scheduler.__dict__.update(state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            checkpoint.tidy(self.run_dir, self.step, self.options.keep_checkpoints)

    def _rates(self) -> list[float]:
        pairs = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        return [base * factor(self.scheduler.last_epoch) for base, factor in pairs]

    # --- training ---------------------------------------------------------------------------------------------------

    def train(self, catch_up: bool = False) -> None:
        """Trains up to `num_train_steps`: logs, saves, then evaluates on the way; logs and saves the last step.

        Raises Stopped after the step, or in the evaluation, in which a signal asked for it; what was done is on disk.
        `catch_up` evaluates first where the present step should have been evaluated.
        """
        tracker = self.make_tracker(self.step) if self.accelerator.is_main_process else Trackers()
        bar = progress_bar(
            None,
            "train",
            total=self.options.num_train_steps,
            initial=self.step,
            disable=not self.accelerator.is_main_process,
        )
        with closing(tracker), closing(bar), self.stop.deferred():  # what is said after an error has its own line
            if catch_up and self.step and self.step % self.options.save_and_sample_every == 0:
                self._evaluate(tracker)
            self._train(tracker, bar)

    def _train(self, tracker: Tracker, bar: tqdm) -> None:
        options = self.options
        batches = self.loader()
        started, first = time.monotonic(), self.step
        while self.step < options.num_train_steps:
            T_k, rate = self.T_k, self.optimizer.param_groups[0]["lr"]
            _, grad_norm = self.update(batches, T_k)
            self.step += 1
            bar.update()
            if self.step % options.log_every == 0 or self.step == options.num_train_steps:
                self.health.settle()
                losses = self.health.losses
                row = {
                    "loss": torch.stack(losses).mean().item() if losses else nan,
                    **self._validation(),
                    "grad_norm": grad_norm.item(),
                    "learning_rate": rate,
                    "T": T_k,
                    **self.health.counts(),
                    "epoch": self.batches.epoch,
                    "samples": self.step * options.train_batch_size * options.gradient_accumulation_steps,
                    "steps_per_second": (self.step - first) / (time.monotonic() - started),
                }
                shown = {"loss": f"{row['loss']:.4f}", "valid": f"{row['valid_loss_ema']:.4f}", "lr": f"{rate:.1e}"}
                bar.set_postfix(shown | {"T": T_k}, refresh=False)
                tracker.log(self.step, row)
                losses.clear()
            due, stopping = self.step % options.save_and_sample_every == 0, self._stopping()
            if due or stopping or self.step == options.num_train_steps:
                self.save()
            if stopping:
                raise Stopped(self.stop.asked)
            if due:
                self._evaluate(tracker)

    def _stopping(self) -> bool:
        """Whether a signal asked to stop, with one answer for all processes, who come to it at some steps only."""
        if self.accelerator.num_processes == 1:
            return bool(self.stop.asked)
        if self.step % STOP_EVERY:
            return False
        asked = torch.tensor(float(bool(self.stop.asked)), device=self.accelerator.device)
        return self.accelerator.reduce(asked, "sum").item() > 0

    def update(self, batches: Iterator[Share], T_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; the mean loss over its micro-batches and the norm of the gradient before clipping.

        An update that is skipped leaves weights, average and optimizer as they were; rate, range and data go on. One
        that the loss scaler alone does not make moves the average too, towards the weights as they are: a fused
        optimizer does not say that it left them, and to ask would be to wait for the device at every update.
        """
        self.denoiser.train()
        update = Update(self.step + 1, T_k, self.optimizer.param_groups[0]["lr"], self.batches.position)
        micro = []
        for _ in range(self.options.gradient_accumulation_steps):
            with self.stage("load"):
                share = self._to_device(next(batches))
            self.batches.position += 1
            with self.accelerator.accumulate(self.denoiser):
                with self.stage("forward"), self.accelerator.autocast():
                    draws = share.randomness(*self.generators.values())
                    loss = share.mean(self.objective(self.denoiser, share.batch, self._steps(T_k), *draws))
                with self.stage("backward"):
                    self.accelerator.backward(loss)
            micro.append(loss.detach())
        loss = torch.stack(micro).mean()
        with self.stage("optimizer"):
            grad_norm = self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.max_grad_norm)
            if is_applied := self.health.applies(update, loss, grad_norm):
                self.optimizer.step()
            elif self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # it has looked at these gradients, and waits to hear so
            self.optimizer.zero_grad()
        self.scheduler.step()
        if is_applied:
            with self.stage("ema"):
                self.ema.update()
        return loss, grad_norm

    def loader(self) -> Iterator[Share]:
        """This process's shares of the batches to come, on the CPU; `position` moves as they are used."""
        to_come = iter(replace(self.batches))
        if self.accelerator.device.type == "cpu":
            return map(self._share, to_come)
        return made_ahead(to_come, lambda indices: self._share(indices).each(torch.Tensor.pin_memory), BATCHES_AHEAD)

    def _share(self, indices: np.ndarray, data: TrainingData | None = None) -> Share:
        batch = (data or self.train_data).batch(indices)
        return Share.of(batch, self.accelerator.process_index, self.accelerator.num_processes)

    def _to_device(self, share: Share) -> Share:
        return share.each(lambda part: part.to(self.accelerator.device, non_blocking=True))

    @torch.no_grad()
    def _validation(self) -> dict[str, float]:
        """Loss of model and EMA on one validation batch (a different one each time), over the full range of times."""
        turn = self.step // self.options.log_every
        lengths = self.valid_data.lengths
        if self.objective.mean_length is not None:  # sums over short texts alone, then over long ones, tell nothing
            lengths = np.zeros_like(lengths)
        held_out = EpochBatches(lengths, self.options.eval_batch_size, seed=0)
        chosen = held_out.of_epoch(0)[turn % held_out.per_epoch]
        share = self._to_device(self._share(chosen, self.valid_data))
        result = {}
        for name, model in (("valid_loss", self.denoiser), ("valid_loss_ema", self.ema.ema_model)):
            model.eval()
            generator = torch.Generator(self.accelerator.device).manual_seed(turn)
            with self.accelerator.autocast():
                draws = share.randomness(generator)
                loss = self.objective(model, share.batch, range(self.objective.process.timesteps), *draws)
            result[name] = self.accelerator.reduce(share.mean(loss), "mean").item()
            if not isfinite(result[name]):
                self._tell(f"step {self.step:,}: {name} is {result[name]}; metrics.jsonl has null")
        return result

    def _tell(self, line: str) -> None:
        """A line for the person at the terminal, above the bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stderr)

    def _evaluate(self, tracker: Tracker) -> None:
        """Samples and scores without touching the randomness of training; every process takes part."""
        if self.evaluate is None:
            return
        alone = self.accelerator.num_processes == 1  # others would wait for a process that leaves
        with self.stop.deferred(not alone), torch.random.fork_rng():
            scores, texts = self.evaluate(self.step, self.ema.ema_model.eval())
        tracker.log(self.step, scores)
        for name, some in texts.items():
            tracker.log_texts(self.step, name, some)
