"""Measures at which noise a corpus tells its texts apart, and names the noise schedule that spends training there.

    python -m scripts.measure_window --dataset_name e2e --enc_dec_model bart-e2e [any flag of training]
    python -m scripts.measure_window --resume_dir RUN [--levels 41] [--texts 300]

First trains a short pilot on every level of noise alike (--beta_schedule log_snr; it goes on where it was cut off), or
takes the latent run that it is given. On held-out texts the squared error of its estimates tells how much information
each level takes away (diffusion/window.py), and the share of tokens that the frozen decoder still writes where it reads
noised latents tells from which level on that error counts. Writes window.json, window.md and window.html, where the
window is drawn with what each schedule spends on it, at every stage of T-range annealing too.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from diffusion.guidance import own_estimate
from diffusion.schedules import BETA_SCHEDULES, NoiseSchedule, tan_betas
from diffusion.training import checkpoint
from diffusion.training.files import write_text
from diffusion.training.progress import progress_bar
from diffusion.training.signals import listening
from diffusion.window import Levels, Window, information_rate
from offline_metrics import report
from scripts.composition.build import System, load_system
from scripts.composition.dry_run import dry_run
from scripts.composition.options import GROUPS, Options, given_flags, parse, reading_a_run, refuse_modes
from scripts.composition.recipes import with_recipe
from scripts.evaluation.interface import READINGS, LatentTexts, readings
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.report.window import page
from train_text_diffusion import train

SEED = 42
NEVER = "1000000000"
PILOT = {  # what the flags of a pilot are unless they are given; it needs neither scores nor samples
    "beta_schedule": "log_snr", "num_train_steps": "1500", "save_and_sample_every": NEVER, "train_batch_size": "32",
    "tx_dim": "128", "tx_depth": "4", "learning_rate": "2e-3", "lr_warmup_steps": "100", "ema_decay": "0.99",
}  # fmt: skip
READS = {"output_dir"}  # of what concerns a run that is trained
TOLD = 0.99  # share of what the decoder writes right of clean latents from which on a text is told
STEPS = 1000  # T of the schedules that are compared
STAGES = (1.0, 0.2, 0.4, 0.6, 0.8)  # all training times, and the parts that T-range annealing begins with


@dataclass
class WindowOptions:
    _argument_group_name: ClassVar[str] = "window"

    levels: int = field(default=41, metadata={"help": "levels of noise to measure at, evenly in ln(sigma^2 / alpha^2)"})
    texts: int = field(default=300, metadata={"help": "held-out texts to measure with"})

    def __post_init__(self):
        for flag, least in (("levels", 5), ("texts", 1)):
            if getattr(self, flag) < least:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least {least}")


def read(argv: list[str]) -> tuple[Options, WindowOptions]:
    """The options of a command line: of the run that it names, else of a pilot and where that lies."""
    if "resume_dir" in (given := given_flags(argv)):
        argv = reading_a_run(argv)
    else:
        refuse_modes(argv)
        argv = [*argv, *(f"--{flag}={value}" for flag, value in PILOT.items() if flag not in given)]
    *groups, window = parse([*GROUPS, WindowOptions], with_recipe(argv), __doc__)
    options = Options.from_groups(groups, argv, READS)
    if options.method.method != "latent":
        raise UsageError(f"--method {options.method.method}: has no noise on latents; expected latent")
    if options.run.resume_dir is None and options.run.output_dir is None:
        corpus = Path(os.path.abspath(Path(options.data.data_dir, str(options.data.dataset_name))))  # or a path to it
        name = f"{corpus.name}-{Path(options.codec.enc_dec_model).name}"
        options.run.output_dir = str(Path(options.run.save_dir) / "window" / name)
    return options, window


class Level(NamedTuple):
    """What is found at one level of noise, per token."""

    gamma: float  # ln(sigma^2 / alpha^2)
    squared_error: float  # of the estimate of x0, summed over coordinates
    rate: float  # nats of information that a unit of gamma takes away
    accuracy: float  # share of tokens that the decoder writes right, those before being given
    cross_entropy: float  # of the decoder, in nats


class Spent(NamedTuple):
    """What a schedule spends on the window."""

    median: float  # gamma
    shares: list[float]  # of training times inside, at each of STAGES
    noise_shift: float  # that centres it


# --- the pilot --------------------------------------------------------------------------------------------------------


def to_train(options: Options) -> Options | None:
    """The options by which the pilot is trained, those that it was begun with where it was; None where it is done."""
    folder = Path(options.run.output_dir)
    if not (folder / "args.json").is_file():
        return options
    begun = Options.from_argv(["--resume_training", f"--resume_dir={folder}"])
    step = checkpoint.step_of(checkpoint.find_checkpoint(folder))
    note(f"{folder}: holds a pilot at step {step:,}, which is used with the options it was begun with")
    return begun if step < begun.training.num_train_steps else None


# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(system: System, levels: int, texts: int) -> list[Level]:
    """What held-out texts tell at levels of noise from the lowest to the highest of the system's schedule."""
    process, space, device = system.process, system.space, next(system.denoiser.parameters()).device
    gamma = process.schedule.gamma
    wanted = torch.linspace(gamma[0], gamma[-1], levels, dtype=torch.float64)
    steps = torch.searchsorted(gamma, wanted).clamp(max=len(gamma) - 1).unique()
    held_out = LatentTexts.of(system, "valid")
    groups = held_out.by_length(torch.arange(len(held_out.texts))[:texts], system.options.training.eval_batch_size)
    batches = [held_out.batch(rows) for rows in groups]
    found = []
    for step in progress_bar(steps.tolist(), "noise levels"):
        generator = torch.Generator(device).manual_seed(SEED + step)
        error, read = 0.0, []
        for batch, words in batches:
            x0, valid = batch.x0, batch.valid
            t = torch.full((len(x0),), (step + 1) / process.timesteps, dtype=torch.float64, device=device)
            xt = process.corrupt(x0, t, generator)
            x0_hat = own_estimate(process, system.denoiser, valid, batch.label)(xt, t)
            error += ((x0_hat - x0) ** 2)[valid].sum().item()
            read.append(readings(space.codec, words, space.statistics.unnormalise(xt), valid))
        sums = dict(zip(READINGS, torch.cat(read).sum(0).tolist(), strict=True))
        error, right, nats = (each / sums["tokens"] for each in (error, sums["right"], sums["nats"]))
        rate = information_rate(gamma[step], torch.tensor(error)).item()
        found.append(Level(gamma[step].item(), error, rate, right, nats))
    return found


def told_at(levels: list[Level]) -> float:
    """The gamma up to which the decoder writes all but a hundredth of what it writes of the least noise."""
    enough = TOLD * levels[0].accuracy
    return next((level.gamma for level in levels if level.accuracy < enough), levels[-1].gamma)


def schedules(window: Window, own: NoiseSchedule) -> dict[str, NoiseSchedule]:
    """Every schedule by name, those that the window asks for and that of the run among them."""
    betas = {name: make(STEPS) for name, make in BETA_SCHEDULES.items() if name != "tan"}
    betas |= {f"tan, d = {d:.3g}": tan_betas(STEPS, d) for d in (5.0, 9.0, window.tan_d)}
    found = {name: NoiseSchedule.from_betas(each) for name, each in betas.items()}
    found["linear, centred"] = found["linear"].shifted(window.shift_of(found["linear"].gamma))
    return found if any(torch.equal(own.table, each.table) for each in found.values()) else found | {"this run": own}


def spent(schedule: NoiseSchedule, window: Window) -> Spent:
    """How a schedule meets the window."""
    gamma = schedule.gamma
    shares = [window.share(gamma[: round(stage * len(gamma))]) for stage in STAGES]
    return Spent(float(gamma.median()), shares, window.shift_of(gamma))


# --- what is told -----------------------------------------------------------------------------------------------------


def summary(window: Window, start: float) -> str:
    return (
        f"The window: 90% of {window.nats:.3g} nats a token are lost between gamma {window.low:.2f} and "
        f"{window.high:.2f}, half of them below {window.median:.2f} (gamma = ln(sigma^2 / alpha^2); nothing is counted "
        f"below {start:.2f}, where the decoder writes {TOLD:.0%} of what it can). It asks for --beta_schedule "
        f"tan --tan_d {window.tan_d:.3g}, or for the --noise_shift below, which says of each schedule what share of "
        "its training times lies in the window: of all, and of the part that T-range annealing draws from."
    )


def tables(levels: list[Level], found: dict[str, Spent]) -> list[list[list[str]]]:
    """What schedules spend on the window, and the levels, cell by cell."""
    titles = ["schedule", "median gamma", "all times", *(f"T_k = {stage:.0%}" for stage in STAGES[1:]), "--noise_shift"]
    by_schedule = [titles] + [
        [name, f"{each.median:.2f}", *(f"{share:.0%}" for share in each.shares), f"{each.noise_shift:.3g}"]
        for name, each in found.items()
    ]
    titles = ["gamma", "sigma / alpha", "squared error", "nats a unit of gamma", "decoder right", "decoder nats"]
    by_level = [titles] + [
        [f"{each.gamma:.2f}", f"{torch.tensor(each.gamma / 2).exp():.3g}", f"{each.squared_error:.4g}",
         f"{each.rate:.3g}", f"{each.accuracy:.1%}", f"{each.cross_entropy:.3g}"]
        for each in levels
    ]  # fmt: skip
    return [by_schedule, by_level]


def main() -> None:
    options, asked = read(sys.argv[1:])
    only_looks = options.run.dry_run
    if options.run.resume_dir is None:
        if (pilot := to_train(options)) is not None:
            if only_looks:
                return dry_run(pilot, [])
            with listening() as stop:
                train(pilot, stop)
        options, _ = read([f"--resume_dir={options.run.output_dir}"])
    if only_looks:
        return dry_run(options, [])
    system, step = load_system(options)
    levels = measure(system, asked.levels, asked.texts)
    gamma, squared_error, *_ = torch.tensor(levels, dtype=torch.float64).T
    measured = Levels(gamma, squared_error, told_at(levels))
    window = Window.of(measured)
    chosen = schedules(window, system.process.schedule)
    found = {name: spent(schedule, window) for name, schedule in chosen.items()}
    folder = Path(options.run.output_dir or options.run.resume_dir) / "evaluation" / f"window_step_{step:08d}"
    record = {"window": asdict(window) | {"tan_d": window.tan_d, "start": measured.start}}
    record |= {"schedules": {name: each._asdict() for name, each in found.items()}}
    report.write_json(folder / "window.json", record | {"levels": [each._asdict() for each in levels]})
    words, cells = summary(window, measured.start), tables(levels, found)
    write_text(folder / "window.md", "\n\n".join([words, *map(report.markdown, cells)]) + "\n")
    title = f"The information window of {system.corpus.name} under {Path(options.codec.enc_dec_model).name}"
    write_text(folder / "window.html", page(title, words, levels, measured, chosen, cells))
    print(f"{folder}\n\n{words}\n\n{report.markdown(cells[0])}", flush=True)


if __name__ == "__main__":
    run(main)
