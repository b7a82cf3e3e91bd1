"""The trainer: a resumed run ends bit for bit like one that was never interrupted, and nothing disturbs training."""

import faulthandler
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.process import DiffusionError
from diffusion.schedules import T_schedule
from diffusion.training import checkpoint, health
from diffusion.training.objective import Batch, Objective
from diffusion.training.optim import OptimOptions, learning_rate_factor
from diffusion.training.options import TrainingOptions
from diffusion.training.signals import Stopped, StopSignals, listening
from diffusion.training.tracker import JsonlTracker
from diffusion.training.trainer import Trainer

T, D, CLASSES = 1000, 4, 2
TIMING = {"steps_per_second"}


class Crash(Exception):
    """Stands for whatever ends a run early."""


@dataclass
class Atoms:
    """Latents made of four atoms, in `count` texts of 2 to 7 positions with labels."""

    count: int
    seed: int = 0
    broken: int | None = None  # a text whose latents are no numbers

    def __post_init__(self):
        draw = np.random.default_rng(self.seed)
        self.lengths = draw.integers(2, 8, self.count)
        self.tokens = draw.integers(0, 4, (self.count, 7))
        self.atoms = torch.randn(4, D, generator=torch.Generator().manual_seed(0))

    def batch(self, indices: np.ndarray) -> Batch:
        lengths = torch.from_numpy(self.lengths[indices])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        x0 = self.atoms[torch.from_numpy(self.tokens[indices])][:, : valid.shape[1]] * valid[..., None]
        x0[torch.from_numpy(indices) == self.broken] *= math.nan
        return Batch(x0, valid, torch.from_numpy(self.tokens[indices, 0]) % CLASSES)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make(
    run_dir: Path,
    *,
    evaluate: Callable | None = None,
    weights_seed: int = 0,
    optimizer: str = "adamw",
    learning_rate: float = 1e-3,
    warmup: int = 4,
    hook: Callable | None = None,
    stop: StopSignals | None = None,
    dropout: bool = True,
    **options,
) -> Trainer:
    """A trainer of a tiny denoiser; `hook(trunk in training mode, t)` hears of every call of denoiser and average."""
    defaults = {"num_train_steps": 12, "train_batch_size": 4, "eval_batch_size": 8, "log_every": 3,
                "save_and_sample_every": 4, "keep_checkpoints": 0, "T_schedule": "linear"}  # fmt: skip
    training = TrainingOptions(**(defaults | options))
    optim = OptimOptions(optimizer=optimizer, learning_rate=learning_rate, lr_warmup_steps=warmup)
    torch.manual_seed(weights_seed)
    denoiser = LatentDenoiser(
        D, DenoiserOptions(64, 1, scale_shift=True, self_condition=True, disable_dropout=not dropout), CLASSES
    )
    if hook is not None:
        denoiser.register_forward_pre_hook(lambda module, args: hook(module.training, args[1]))
    process = GaussianProcess.from_options(GaussianOptions(loss_type="l1", beta_schedule="linear"))
    run_dir.mkdir(exist_ok=True)
    trainer = Trainer(
        training,
        optim,
        Objective(process, training.self_condition_prob, training.class_unconditional_prob),
        denoiser,
        Atoms(30),
        Atoms(20, seed=1),
        run_dir,
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=training.gradient_accumulation_steps),
        make_tracker=lambda step: JsonlTracker(run_dir / "metrics.jsonl", step),
        evaluate=evaluate,
        stop=stop,
    )
    trainer.ema.update_after_step = 5  # short runs are to see averages too
    return trainer


def rows(run_dir: Path) -> list[dict]:
    """The rows of metrics.jsonl but for what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def training_rows(run_dir: Path) -> list[dict]:
    return [row for row in rows(run_dir) if "loss" in row]


def contents(run_dir: Path, step: int | None = None):
    return checkpoint.load(checkpoint.find_checkpoint(run_dir, step), "model", "ema", "optimizer", "random")


def assert_same_end(run_dir: Path, other_dir: Path):
    (groups, state), (other_groups, other_state) = contents(run_dir), contents(other_dir)
    assert state == other_state
    for group, other in zip(groups, other_groups, strict=True):
        assert group.keys() == other.keys()
        for name, value in group.items():
            assert torch.equal(value, other[name]), name
    assert rows(run_dir) == rows(other_dir)


def crash_at(step: int) -> Callable:
    """An evaluation that ends the run at `step`, when the checkpoint of that step is on disk."""

    def evaluate(at, denoiser):
        if at == step:
            raise Crash
        return {"score": float(at)}, {}

    return evaluate


def break_text(trainer: Trainer, step: int) -> int:
    """Makes a text of the batch of that step one of no numbers, so that it breaks that step of every epoch."""
    trainer.train_data.broken = int(trainer.batches.of_epoch(0)[step - 1][-1])
    return trainer.train_data.broken


def signal_this_process():
    os.kill(os.getpid(), signal.SIGUSR1)


def signal_at(trainer: Trainer, step: int):
    """Signals this process in the middle of a step."""
    update = trainer.update

    def signalled(*args):
        if trainer.step + 1 == step:
            signal_this_process()
        return update(*args)

    trainer.update = signalled


def scores(at, denoiser):
    return {"score": float(at)}, {}


# Resuming


@pytest.mark.parametrize(("optimizer", "accumulation"), list(product(["adamw", "lion"], [1, 2])))
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, optimizer, accumulation):
    """With dropout, labels, self-conditioning, annealing, an averaged EMA, and a loss window across the checkpoint."""
    options = {"optimizer": optimizer, "gradient_accumulation_steps": accumulation, "num_train_steps": 25,
               "save_and_sample_every": 10, "log_every": 7}  # fmt: skip
    make(tmp_path / "whole", **options).train()
    with pytest.raises(Crash):
        make(tmp_path / "parts", **options, evaluate=crash_at(10)).train()
    for crash in (20, None):
        # another process: other global randomness, other initial weights
        trainer = make(tmp_path / "parts", **options, weights_seed=7, evaluate=crash and crash_at(crash))
        trainer.resume(checkpoint.find_checkpoint(tmp_path / "parts"))
        with pytest.raises(Crash) if crash else nullcontext():
            trainer.train()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    groups, state = contents(tmp_path / "whole")
    model, ema, *_ = groups
    assert state["step"] == 25
    assert not torch.equal(model["write.weight"], ema["ema_model.write.weight"])  # averaging had begun


def test_weights_rate_and_range_go_on_after_resuming(tmp_path):
    make(tmp_path, num_train_steps=20, save_and_sample_every=4).train()
    whole = training_rows(tmp_path)
    trainer = make(tmp_path, num_train_steps=20, log_every=1, weights_seed=3)
    trainer.resume(checkpoint.find_checkpoint(tmp_path, 4))
    before = contents(tmp_path, 4)[0][0]
    assert all(torch.equal(value, before[name]) for name, value in trainer.denoiser.state_dict().items())
    assert (trainer.step, trainer.T_k) == (4, T_schedule("linear")(20, T, 4))
    trainer.train()
    still = [name for name, value in trainer.denoiser.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    factor = learning_rate_factor("cosine", 4, 20)
    for row in training_rows(tmp_path):
        k = row["step"] - 1  # the update that the row belongs to
        assert row["learning_rate"] == pytest.approx(1e-3 * factor(k))
        assert row["T"] == T_schedule("linear")(20, T, k)
    assert {row["step"] for row in whole} == {3, 6, 9, 12, 15, 18, 20}


def test_metrics_have_every_row_once_after_going_back_to_an_older_checkpoint(tmp_path):
    make(tmp_path / "whole", evaluate=scores, num_train_steps=16).train()
    make(tmp_path / "again", evaluate=scores, num_train_steps=16).train()
    trainer = make(tmp_path / "again", evaluate=scores, num_train_steps=16, weights_seed=7)
    trainer.resume(checkpoint.find_checkpoint(tmp_path / "again", 8))
    trainer.train()
    assert [row["step"] for row in rows(tmp_path / "again")] == [3, 4, 6, 8, 9, 12, 12, 15, 16, 16]
    assert_same_end(tmp_path / "whole", tmp_path / "again")


def test_a_resumed_run_that_dies_again_is_found_where_it_died_and_not_in_the_older_future(tmp_path):
    make(tmp_path, num_train_steps=16).train()
    trainer = make(tmp_path, num_train_steps=16, evaluate=crash_at(8))
    trainer.resume(checkpoint.find_checkpoint(tmp_path, 4))
    with pytest.raises(Crash):
        trainer.train()
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000008"


def test_a_finished_run_can_be_extended(tmp_path):
    make(tmp_path, num_train_steps=8).train()
    trainer = make(tmp_path, num_train_steps=12)
    trainer.resume(checkpoint.find_checkpoint(tmp_path))
    trainer.train()
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000012"


def test_a_finished_run_resumed_does_nothing(tmp_path):
    make(tmp_path, num_train_steps=8).train()
    before = rows(tmp_path)
    trainer = make(tmp_path, num_train_steps=8, weights_seed=3)
    trainer.resume(checkpoint.find_checkpoint(tmp_path))
    trainer.train()
    assert rows(tmp_path) == before
    assert torch.equal(trainer.denoiser.write.weight, contents(tmp_path)[0][0]["write.weight"])


@pytest.mark.parametrize(("first", "then"), [("adamw", "lion"), ("lion", "adamw")])
def test_the_state_of_another_optimizer_is_refused_in_one_line(tmp_path, first, then):
    trainer = make(tmp_path, num_train_steps=4, optimizer=first)
    trainer.save()
    trainer.train()
    with pytest.raises(DiffusionError, match="--optimizer") as refusal:
        make(tmp_path, num_train_steps=8, optimizer=then).resume(checkpoint.find_checkpoint(tmp_path))
    assert "\n" not in str(refusal.value)
    make(tmp_path, num_train_steps=8, optimizer=then).resume(checkpoint.find_checkpoint(tmp_path, 0))  # which has none


# Several processes


UNEVEN = {"num_train_steps": 12, "log_every": 2, "save_and_sample_every": 6, "train_batch_size": 29, "dropout": False}


def make_uneven(folder: Path, by_token: bool) -> Trainer:
    """Batches of 29 texts and of the one that is left, which two processes cannot share alike."""
    trainer = make(folder, **UNEVEN, gradient_accumulation_steps=2, T_schedule="normal", eval_batch_size=7)
    if by_token:
        mean_length = trainer.train_data.lengths.mean()
        trainer.objective = replace(trainer.objective, mean_length=mean_length, stratified_times=True)
    return trainer


def make_skipping(folder: Path) -> Trainer:
    """Of whose two processes one alone has the broken text, in steps 3 and 8 or later."""
    options = {"num_train_steps": 16, "log_every": 4, "save_and_sample_every": 16}
    trainer = make(folder, dropout=False, on_nonfinite="skip", **options)
    break_text(trainer, 3)
    return trainer


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> Path:
    """What two processes made, as `train_as_one_of_two_processes` says."""
    folder = tmp_path_factory.mktemp("of_two")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
              "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint.decode()[-2000:]
    return folder


def train_as_one_of_two_processes(folder: Path) -> None:
    faulthandler.dump_traceback_later(300, exit=True)  # processes that wait for each other would do so for long
    options = {"num_train_steps": 30, "log_every": 5, "save_and_sample_every": 15}
    make(folder / "whole", **options).train()
    with listening() as stop:
        trainer = make(folder / "parts", **options, stop=stop)
        if trainer.accelerator.process_index == 1:
            signal_at(trainer, 3)
        with pytest.raises(Stopped):
            trainer.train()
        assert checkpoint.find_checkpoint(folder / "parts").name == "step_00000010"
    trainer = make(folder / "parts", **options, weights_seed=7)
    trainer.resume(checkpoint.find_checkpoint(folder / "parts"))
    trainer.train()
    for by_token in (False, True):
        make_uneven(folder / f"uneven_{by_token}", by_token).train()
    trainer = make_skipping(folder / "skipping")
    trainer.train()
    assert trainer.health.skipped == 2


def test_two_processes_stop_at_the_same_step_and_resume_exactly(of_two, tmp_path):
    """Few samples each, so that often only one of the processes has a first pass of self-conditioning to make."""
    assert_same_end(of_two / "whole", of_two / "parts")
    assert [row["step"] for row in rows(of_two / "whole")] == [5, 10, 15, 20, 25, 30]
    groups, state = contents(of_two / "whole")
    assert state["processes"] == 2
    assert torch.equal(groups[3]["0.training"], groups[3]["1.training"])  # noise belongs to the batch
    with pytest.raises(DiffusionError, match="2 processes, not 1") as refusal:
        make(tmp_path / "run").resume(checkpoint.find_checkpoint(of_two / "parts"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("by_token", [False, True])
def test_two_processes_train_as_one_does(of_two, tmp_path, by_token):
    """Every loss, gradient norm and weight but for rounding, whether or not batches can be shared evenly."""
    trainer = make_uneven(tmp_path, by_token)
    trainer.train()
    both = list(zip(rows(tmp_path), rows(of_two / f"uneven_{by_token}"), strict=True))
    assert len(both) == 6
    for alone, shared in both:
        assert shared == pytest.approx(alone, rel=2e-5)
    for one, two in zip(contents(tmp_path)[0][:2], contents(of_two / f"uneven_{by_token}")[0][:2], strict=True):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_skip_the_same_updates(of_two, tmp_path):
    trainer = make_skipping(tmp_path)
    trainer.train()
    for alone, shared in zip(rows(tmp_path), rows(of_two / "skipping"), strict=True):
        assert shared == pytest.approx(alone, rel=2e-5)
    assert contents(of_two / "skipping")[1]["skipped"] == contents(tmp_path)[1]["skipped"] == [2, 0]


# Numbers that go wrong


def break_gradient(trainer: Trainer):
    trainer.denoiser.write.weight.register_hook(lambda gradient: gradient / (trainer.step != 5))


def break_loss(trainer: Trainer):
    """Of which the gradient remains as it is."""
    objective = trainer.objective
    trainer.objective = lambda *args: objective(*args) + (math.inf if trainer.step == 5 and len(args) == 5 else 0)
    trainer.objective.process, trainer.objective.mean_length = objective.process, objective.mean_length


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda trainer: break_text(trainer, 6), "the loss is nan, the norm of its gradient nan"),
        (break_gradient, r"the loss is \d\S+, the norm of its gradient (inf|nan)"),
        (break_loss, r"the loss is inf, the norm of its gradient \d"),
    ],
)
def test_what_is_no_number_ends_the_run_before_it_is_saved(tmp_path, spoil, found):
    trainer = make(tmp_path)
    spoil(trainer)
    with pytest.raises(DiffusionError, match=found) as refusal:
        trainer.train()
    told = str(refusal.value)
    texts = ", ".join(map(str, trainer.batches.of_epoch(0)[5]))
    rate = 1e-3 * learning_rate_factor("cosine", 4, 12)(5)
    assert told.startswith("step 6: ") and "\n" not in told and "--on_nonfinite skip" in told
    assert f"at T {T_schedule('linear')(12, T, 5)}, learning rate {rate:.3g}, epoch 0, training texts {texts} (" in told
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000004"]
    assert all(value.isfinite().all() for group in contents(tmp_path)[0][:3] for value in group.values())
    assert [row["step"] for row in rows(tmp_path)] == [3]


def test_the_first_of_the_bad_updates_is_told_however_seldom_they_are_looked_at(tmp_path):
    trainer = make(tmp_path, log_every=100, save_and_sample_every=100, gradient_accumulation_steps=3)
    break_text(trainer, 5)  # the second micro-batch of step 2
    with pytest.raises(DiffusionError, match=r"step 2: .* training texts .* and \d more"):
        trainer.train()
    assert trainer.step == 12 and not checkpoint.checkpoints(tmp_path)


def test_a_signal_saves_no_bad_update_either(tmp_path):
    with listening() as stop:
        trainer = make(tmp_path, stop=stop)
        break_text(trainer, 5)
        signal_at(trainer, 5)
        with pytest.raises(DiffusionError, match="step 5: "):
            trainer.train()
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000004"


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_skipped_update_changes_nothing_but_the_counts(tmp_path, optimizer, capsys):
    trainer = make(tmp_path, on_nonfinite="skip", optimizer=optimizer, log_every=1, save_and_sample_every=1)
    trainer.ema.update_after_step = 0
    broken = break_text(trainer, 6)
    trainer.train()
    (before, state), (after, state_after) = contents(tmp_path, 5), contents(tmp_path, 6)
    for group, other in zip(before[:3], after[:3], strict=True):
        assert all(torch.equal(value, other[name]) for name, value in group.items())
    assert (state["skipped"], state_after["skipped"]) == ([0, 0], [1, 1])
    assert state_after["scheduler"]["last_epoch"] == 6 and state_after["batches"] == 6
    logged = training_rows(tmp_path)
    assert [row["skipped"] for row in logged] == [0] * 5 + [1] * 7
    assert logged[5]["loss"] is None and logged[5]["grad_norm"] is None and logged[6]["loss"] > 0
    assert logged[5]["learning_rate"] == pytest.approx(1e-3 * learning_rate_factor("cosine", 4, 12)(5))
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert told.startswith("step 6: the loss is nan") and f" {broken} (counted from 0); skipped" in told


def test_a_run_that_skips_resumes_exactly(tmp_path):
    options = {"on_nonfinite": "skip", "num_train_steps": 20, "log_every": 7}
    trainer = make(tmp_path / "whole", **options)
    break_text(trainer, 4)  # and once in each of the next epochs
    trainer.train()
    trainer = make(tmp_path / "parts", **options, evaluate=crash_at(4))
    break_text(trainer, 4)
    with pytest.raises(Crash):
        trainer.train()
    trainer = make(tmp_path / "parts", **options, weights_seed=7)
    break_text(trainer, 4)
    trainer.resume(checkpoint.find_checkpoint(tmp_path / "parts"))
    assert (trainer.health.skipped, trainer.health.in_a_row) == (1, 1)
    trainer.train()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert contents(tmp_path / "whole")[1]["skipped"][0] > 1


def test_a_run_in_which_every_update_is_bad_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "MOST_IN_A_ROW", 3)
    trainer = make(tmp_path, on_nonfinite="skip", num_train_steps=20)
    trainer.train_data.atoms *= math.nan
    with pytest.raises(DiffusionError, match="step 3: .* 3 updates in a row"):
        trainer.train()


def test_weights_that_an_update_made_infinite_are_not_saved(tmp_path):
    trainer = make(tmp_path, log_every=100)
    step = trainer.optimizer.step

    def explode():
        step()
        if trainer.step == 7:
            trainer.denoiser.write.weight.data[0, 0] = math.inf

    trainer.optimizer.step = explode
    with pytest.raises(DiffusionError, match="step 8: weights are not finite any more, at learning rate"):
        trainer.train()
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000004"


def test_a_validation_loss_that_is_no_number_is_told_and_null(tmp_path, capsys):
    trainer = make(tmp_path)
    trainer.valid_data.atoms = trainer.valid_data.atoms * math.inf
    trainer.train()
    assert [(row["valid_loss"], row["valid_loss_ema"]) for row in training_rows(tmp_path)] == [(None, None)] * 4
    assert all(row["loss"] > 0 for row in training_rows(tmp_path))
    assert "step 3: valid_loss_ema is nan; metrics.jsonl has null" in capsys.readouterr().err


@pytest.fixture
def with_scaler() -> Callable[..., Trainer]:
    """make(...) as on a GPU with --mixed_precision fp16: the loss scaler of a GPU, on the CPU."""

    def made(folder: Path, scale: float, **options) -> Trainer:
        trainer = make(folder, **options)
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        accelerator.autocast = nullcontext  # in which the loss stays what it is
        trainer.health.scaled = True
        trainer.denoiser.write.weight.register_hook(lambda gradient: gradient.half().float())  # which ends at 65504
        trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=accelerator.scaler)
        return trainer

    return made


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_gradients_that_overflow_are_the_scalers_business(tmp_path, with_scaler, optimizer, on_nonfinite):
    """Too large a scale: updates are not made, the scale falls, the rate goes on, and it all resumes exactly."""
    options = {"optimizer": optimizer, "on_nonfinite": on_nonfinite, "log_every": 1, "save_and_sample_every": 1}
    first = with_scaler(tmp_path, 2.0**24, **options)
    with pytest.raises(Crash):
        first.evaluate = crash_at(6)
        first.train()
    overflowed = [row["grad_norm"] is None for row in training_rows(tmp_path)]
    assert overflowed[0] and first.health.skipped == sum(overflowed)
    (one, _), (two, state) = contents(tmp_path, 1), contents(tmp_path, 2)
    for group, other in zip(one[:1] + one[2:3], two[:1] + two[2:3], strict=True):
        assert all(torch.equal(value, other[name]) for name, value in group.items())
    assert state["scheduler"]["last_epoch"] == 2 and state["scaler"]["scale"] == 2.0**22
    second = with_scaler(tmp_path, 2.0**24, weights_seed=7, **options)
    second.resume(checkpoint.find_checkpoint(tmp_path))
    assert second.accelerator.scaler.get_scale() == 2.0 ** (24 - sum(overflowed))
    second.train()
    logged = training_rows(tmp_path)
    assert logged[-1]["skipped"] == sum(row["grad_norm"] is None for row in logged) < 12
    assert all(row["loss"] > 0 for row in logged if not (on_nonfinite == "skip" and row["grad_norm"] is None))


def test_a_loss_that_is_no_number_is_not_the_scalers_business(tmp_path, with_scaler):
    trainer = with_scaler(tmp_path, 1.0)
    break_text(trainer, 6)
    with pytest.raises(DiffusionError, match="step 6: the loss is nan"):
        trainer.train()


# Stopping


@pytest.mark.parametrize("at", [5, 8, 12])  # between checkpoints, where one is due, and in the last step
def test_a_run_stopped_by_a_signal_ends_like_one_that_was_not(tmp_path, at):
    make(tmp_path / "whole", evaluate=scores, keep_checkpoints=1).train()
    with listening() as stop:
        trainer = make(tmp_path / "parts", evaluate=scores, keep_checkpoints=1, stop=stop)
        signal_at(trainer, at)
        with pytest.raises(Stopped):
            trainer.train()
    assert checkpoint.find_checkpoint(tmp_path / "parts").name == f"step_{at:08d}"
    assert [row["step"] for row in rows(tmp_path / "parts") if "score" in row] == list(range(4, at, 4))
    trainer = make(tmp_path / "parts", evaluate=scores, keep_checkpoints=1, weights_seed=7)
    trainer.resume(checkpoint.find_checkpoint(tmp_path / "parts"))
    trainer.train(catch_up=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_ends_an_evaluation_at_once_and_the_run_makes_up_for_it(tmp_path):
    make(tmp_path / "whole", evaluate=scores).train()

    def endless(step, denoiser):
        signal_this_process()
        pytest.fail("went on")

    with listening() as stop, pytest.raises(Stopped):
        make(tmp_path / "parts", evaluate=endless, stop=stop).train()
    trainer = make(tmp_path / "parts", evaluate=scores, weights_seed=7)
    trainer.resume(checkpoint.find_checkpoint(tmp_path / "parts"))
    assert trainer.step == 4
    trainer.train(catch_up=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


# Evaluation


def test_an_evaluation_may_draw_random_numbers_without_changing_training(tmp_path):
    def draws(step, denoiser):
        torch.manual_seed(42)
        torch.rand(1000 + step)
        np.random.seed(0)
        denoiser(torch.randn(2, 3, D), torch.rand(2), torch.ones(2, 3, dtype=torch.bool))
        torch.Generator().manual_seed(42)
        return {}, {}

    make(tmp_path / "without").train()
    make(tmp_path / "with", evaluate=draws).train()
    (groups, _), (others, _) = contents(tmp_path / "without"), contents(tmp_path / "with")
    for group, other in zip(groups, others, strict=True):
        assert all(torch.equal(group[name], other[name]) for name in group)
    assert training_rows(tmp_path / "without") == training_rows(tmp_path / "with")


def test_an_evaluation_sees_the_averaged_weights_when_their_checkpoint_is_on_disk(tmp_path):
    seen = []

    def evaluate(step, denoiser):
        _, ema, *_ = contents(tmp_path)[0]
        assert checkpoint.find_checkpoint(tmp_path).name == f"step_{step:08d}"
        assert torch.equal(denoiser.write.weight, ema["ema_model.write.weight"])
        assert not denoiser.training and not any(module.training for module in denoiser.modules())
        seen.append(step)
        return {"beam/mauve": 0.5}, {"beam": ["a text"]}

    make(tmp_path, evaluate=evaluate, log_every=100).train()  # so that no validation has put it in evaluation mode
    assert seen == [4, 8, 12]
    assert [row for row in rows(tmp_path) if "beam/mauve" in row] == [{"step": k, "beam/mauve": 0.5} for k in seen]


def test_there_is_a_final_checkpoint_and_row_where_the_run_ends_between_two(tmp_path):
    make(tmp_path, num_train_steps=10).train()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "step_00000004", "step_00000008", "step_00000010"
    ]  # fmt: skip
    assert [row["step"] for row in training_rows(tmp_path)] == [3, 6, 9, 10]


def test_no_checkpoint_holds_pickled_code(tmp_path):
    make(tmp_path, num_train_steps=4).train()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}


# Times, rates and what is logged of them


def test_training_draws_from_the_annealed_range_and_validation_from_all_of_it(tmp_path):
    heard = []
    trainer = make(tmp_path, num_train_steps=40, train_batch_size=16, eval_batch_size=20, log_every=1, dropout=False,
                   save_and_sample_every=40, hook=lambda training, t: heard.append((training, t)))  # fmt: skip
    limits = []
    update = trainer.update

    def counted(batches, T_k):
        start = len(heard)
        result = update(batches, T_k)
        limits.append((T_k, max(t.max().item() for training, t in heard[start:] if training)))
        return result

    trainer.update = counted
    trainer.train()
    annealing = T_schedule("linear")
    assert [T_k for T_k, _ in limits] == [annealing(40, T, k) for k in range(40)]
    assert [row["T"] for row in training_rows(tmp_path)] == [T_k for T_k, _ in limits]
    assert all(largest <= T_k / T + 1e-6 for T_k, largest in limits)
    assert limits[0][0] == 200 and limits[0][1] > 0.1
    validation = [t for training, t in heard if not training]
    assert len(validation) >= 80
    early = torch.cat(validation[:20])  # the range of training is still below 0.5 then
    assert early.max() > 0.9


def test_training_from_high_noise_on_draws_the_latest_times_first(tmp_path):
    heard = []
    trainer = make(
        tmp_path,
        num_train_steps=40,
        train_batch_size=16,
        log_every=40,
        T_direction="high_to_low",
        hook=lambda training, t: heard.append((trainer.step, t.min().item())) if training else None,
    )
    trainer.train()
    annealing = T_schedule("linear")
    assert {step for step, _ in heard} == set(range(40))
    assert all(earliest > 1 - annealing(40, T, step) / T for step, earliest in heard)
    assert min(earliest for step, earliest in heard if step == 0) < 0.95
    assert min(earliest for step, earliest in heard if step >= 20) < 0.2


def test_a_direction_without_annealing_is_refused():
    with pytest.raises(DiffusionError, match="--T_direction high_to_low: .* --T_schedule"):
        TrainingOptions(T_direction="high_to_low")


def test_the_logged_rate_and_samples_are_those_of_the_update(tmp_path):
    make(tmp_path, log_every=1, gradient_accumulation_steps=2, num_train_steps=10).train()
    factor = learning_rate_factor("cosine", 4, 10)
    for k, row in enumerate(training_rows(tmp_path)):
        assert row["step"] == k + 1
        assert row["learning_rate"] == pytest.approx(1e-3 * factor(k))
        assert row["samples"] == (k + 1) * 8
        assert row["epoch"] == pytest.approx((k + 1) * 2 / 8)  # 30 samples in batches of 4
        assert row["grad_norm"] > 0


def test_the_first_update_is_at_rate_zero_and_the_first_logged_loss_that_of_silence(tmp_path):
    trainer = make(tmp_path, log_every=1, num_train_steps=2, save_and_sample_every=1)
    before = {name: value.clone() for name, value in trainer.denoiser.state_dict().items()}
    trainer.train()
    after = contents(tmp_path, 1)[0][0]
    assert all(torch.equal(after[name], before[name]) for name in before)
    batch = trainer.train_data.batch(trainer.batches.of_epoch(0)[0])
    silent = torch.stack([row[v].abs().mean() for row, v in zip(batch.x0, batch.valid, strict=True)]).mean()
    assert training_rows(tmp_path)[0]["loss"] == pytest.approx(silent.item(), rel=1e-6)


def test_validation_repeats_for_the_same_weights_and_hears_of_better_ones(tmp_path):
    trainer = make(tmp_path, num_train_steps=60, warmup=0, learning_rate=2e-3, train_batch_size=16, log_every=30,
                   save_and_sample_every=60, T_schedule="normal")  # fmt: skip
    first = trainer._validation()
    assert first == trainer._validation()
    assert first["valid_loss"] == first["valid_loss_ema"]
    trainer.train()
    trainer.step = 0
    assert trainer._validation()["valid_loss"] < 0.9 * first["valid_loss"]


def test_validation_of_a_mean_over_tokens_mixes_lengths(tmp_path):
    trainer = make(tmp_path)
    lengths = trainer.valid_data.lengths
    lengths.sort()
    seen, batch_of = [], trainer.valid_data.batch
    trainer.valid_data.batch = lambda indices: (seen.append(lengths[indices]), batch_of(indices))[1]
    for mean_length in (None, trainer.train_data.lengths.mean()):
        trainer.objective = replace(trainer.objective, mean_length=mean_length)
        for turn in range(3):
            trainer.step = turn * trainer.options.log_every
            trainer._validation()
    alike, mixed = (sorted(np.concatenate(seen[i : i + 3])) for i in (0, 3))
    assert alike == mixed == sorted(lengths)  # all texts, once
    spread = [np.mean([np.ptp(own) for own in seen[i : i + 3]]) for i in (0, 3)]
    assert spread[1] > spread[0] + 1


# Updates


def test_two_micro_batches_make_the_gradient_of_their_mean(tmp_path):
    """And one optimizer step: the first update of Lion moves every weight by the rate, however many micro-batches."""
    trainer = make(tmp_path, gradient_accumulation_steps=2, optimizer="lion", warmup=0, dropout=False)
    before = trainer.denoiser.write.weight.detach().clone()
    heads = []
    for index in trainer.batches.of_epoch(0)[:2]:
        heads.append(trainer._share(index).batch)
    expected = torch.zeros_like(before)
    draws = {name: torch.Generator() for name in trainer.generators}
    for name, generator in trainer.generators.items():
        draws[name].set_state(generator.get_state())
    for batch in heads:
        loss = trainer.objective(trainer.denoiser.train(), batch, range(trainer.T_k), *draws.values()).mean() / 2
        (gradient,) = torch.autograd.grad(loss, trainer.denoiser.write.weight)
        expected += gradient
    loss, grad_norm = trainer.update(trainer.loader(), trainer.T_k)
    moved = trainer.denoiser.write.weight.detach() - before
    torch.testing.assert_close(moved, -1e-3 * expected.sign())
    assert trainer.batches.position == 2
    assert grad_norm.item() >= expected.norm().item() * (1 - 1e-5)


def test_gradients_are_clipped_and_their_norm_is_logged_before(tmp_path):
    trainer = make(tmp_path, warmup=0)
    trainer.max_grad_norm = 1e-3
    _, grad_norm = trainer.update(trainer.loader(), trainer.T_k)
    first_moments = [state["exp_avg"] for state in trainer.optimizer.optimizer.state.values()]
    clipped = torch.cat([m.flatten() for m in first_moments]).norm() / 0.1  # (1 - beta1) times the gradient
    assert clipped.item() == pytest.approx(1e-3, rel=1e-2)
    assert grad_norm.item() > 0.01


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_training_lowers_the_loss(tmp_path, optimizer):
    make(tmp_path, num_train_steps=80, optimizer=optimizer, learning_rate=1e-3 if optimizer == "adamw" else 4e-4,
         train_batch_size=16, log_every=20, save_and_sample_every=80, T_schedule="normal").train()  # fmt: skip
    losses = [row["loss"] for row in training_rows(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]


def test_another_seed_is_another_run_and_the_same_seed_the_same(tmp_path):
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, random_seed=seed, dropout=False).train()
        ends.append(contents(tmp_path / name)[0][0]["write.weight"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    "wrong",
    [{"num_train_steps": 0}, {"gradient_accumulation_steps": 0}, {"T_schedule": "quadratic"}, {"log_every": 0},
     {"self_condition_prob": 1.5}, {"class_unconditional_prob": -0.1}, {"mixed_precision": "fp8"},
     {"keep_checkpoints": -1}, {"random_seed": -1}, {"polynomial_T_power": 0.0}],
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line_that_names_the_flag(wrong):
    (flag,) = wrong
    with pytest.raises(DiffusionError, match=f"--{flag}") as refusal:
        TrainingOptions(**wrong)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("flag", "dtype"), [("no", None), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_sampling_computes_in_the_precision_of_training_on_a_gpu_alone(flag, dtype):
    options = TrainingOptions(mixed_precision=flag)
    assert options.sampling_precision(torch.device("cuda", 1)) == dtype
    assert options.sampling_precision(torch.device("cpu")) is None


if __name__ == "__main__":  # run by the test of two processes
    train_as_one_of_two_processes(Path(sys.argv[1]))
