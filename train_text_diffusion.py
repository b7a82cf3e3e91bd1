"""Trains, evaluates and samples diffusion models of text, latent or on tokens, from files on disk alone.

    python train_text_diffusion.py --dataset_name e2e --enc_dec_model facebook/bart-base ...
    python train_text_diffusion.py --eval_test --resume_dir saved_models/e2e/RUN --num_samples 1000
"""

from __future__ import annotations

if __name__ == "__main__":  # signals are heard while the libraries load, which takes seconds
    import scripts  # noqa: F401  says how threads wait, which the libraries read as they load
    from diffusion.training.signals import leave_when_asked

    leave_when_asked()

import csv
import time
from contextlib import ExitStack, nullcontext
from itertools import count
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from diffusion.training import checkpoint
from diffusion.training.files import replacing
from diffusion.training.signals import StopSignals, listening
from diffusion.training.tracker import JsonlTracker, Trackers, WandbTracker, has_scores
from diffusion.training.trainer import Trainer
from scripts.composition.build import build, fit_space, load_space, load_system
from scripts.composition.checks import Inputs, check, check_new
from scripts.composition.dry_run import dry_run
from scripts.composition.options import Options
from scripts.composition.spaces import save_space
from scripts.evaluation.evaluation import TEST_SEEDS, VALID_SEED, TrainingEvaluator, evaluate_split, result_folder
from scripts.evaluation.likelihood import evaluate_likelihood
from scripts.job.console import note
from scripts.job.errors import UsageError, going_on, run
from scripts.job.locks import training_in
from scripts.job.processes import is_main, join
from scripts.sampling.sampling import Given, sample

METRICS = "metrics.jsonl"


def make_run_dir(options: Options, corpus_name: str) -> Path:
    """Makes the folder of a new run: --output_dir, else <save_dir>/<corpus>/<time>, one that no other run has."""
    if options.run.output_dir is not None:
        run_dir = Path(options.run.output_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    named = run_dir = Path(options.run.save_dir) / corpus_name / time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(2):
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:  # the jobs of an array start in the same second
            run_dir = named.with_name(f"{named.name}_{number}")


def train(options: Options, stop: StopSignals) -> None:
    """A new run, or the rest of an old one."""
    resumed = options.run.mode == "resume_training"
    with ExitStack() as held:
        if resumed and is_main():
            held.enter_context(training_in(Path(options.run.resume_dir)))
        inputs = check(options)
        corpus, run_dir = inputs.corpus, Path(options.run.resume_dir) if resumed else None
        accelerator = Accelerator(  # chooses the device of this process, so it comes before the models
            mixed_precision=options.training.mixed_precision,
            gradient_accumulation_steps=options.training.gradient_accumulation_steps,
        )
        with accelerator.main_process_first():  # the others find what the first one encoded
            space = load_space(options, run_dir) if resumed else fit_space(options, corpus)
            system = build(options, corpus, space)
            train_data, valid_data = system.data("train"), system.data("valid")
        if accelerator.is_main_process and not resumed:
            run_dir = make_run_dir(options, corpus.name)
            held.enter_context(training_in(run_dir))
            check_new(run_dir)  # again: another job may have been faster
            save_space(space, run_dir)
        (run_dir,) = broadcast_object_list([run_dir])

        set_seed(options.training.random_seed, device_specific=True)  # dropout draws from the global generators
        trainer = Trainer(
            options.training,
            options.optim,
            system.objective,
            system.denoiser,
            train_data,
            valid_data,
            run_dir,
            accelerator=accelerator,
            make_tracker=lambda step: make_tracker(options, run_dir, step),
            evaluate=TrainingEvaluator(system, run_dir),
            stop=stop,
        )
        if resumed:
            go_on(trainer, inputs)
        else:
            trainer.save()  # whatever ends a run, and as soon as it is one, --resume_training goes on with it
        if accelerator.is_main_process:
            options.save(run_dir)  # of a resumed run too: what was changed holds from now on
            parameters = sum(p.numel() for p in system.denoiser.parameters())
            note(
                f"{run_dir}: {parameters / 1e6:.1f} M parameters, {len(corpus.train):,} training texts, steps "
                f"{trainer.step:,} to {options.training.num_train_steps:,} on {accelerator.device}"
            )
        trainer.train(catch_up=not has_scores(run_dir / METRICS, trainer.step))
        if accelerator.is_main_process:
            skipped = trainer.health.skipped
            note(f"done: {run_dir}" + (f"; {skipped:,} updates skipped, not being finite" if skipped else ""))


def go_on(trainer: Trainer, inputs: Inputs) -> None:
    """Resumes from the checkpoint of the options; those that were passed over as damaged are set aside."""
    trainer.resume(inputs.checkpoint)
    if trainer.accelerator.is_main_process and inputs.options.run.milestone is None:
        for damaged in checkpoint.checkpoints(trainer.run_dir):
            if checkpoint.step_of(damaged) > trainer.step:
                note(f"{damaged}: kept as {checkpoint.set_aside(damaged).name}")


def make_tracker(options: Options, run_dir: Path, step: int) -> Trackers:
    trackers = [JsonlTracker(run_dir / METRICS, step)]
    if options.run.wandb_name is not None:
        trackers.append(WandbTracker(options.run.wandb_name, run_dir, options.flat()))
    return Trackers(*trackers)


def evaluate_run(options: Options, stop: StopSignals) -> None:
    """--eval and --eval_test."""
    system, step = load_system(options)
    name, seeds = ("valid", (VALID_SEED,)) if options.run.mode == "eval" else ("test", TEST_SEEDS)
    folder = result_folder(Path(options.run.output_dir or options.run.resume_dir), options.run.mode, step)
    evaluate_split(system, getattr(system.corpus, name), seeds, folder)


def evaluate_ppl(options: Options, stop: StopSignals) -> None:
    """--ppl_eval: nats per sequence, token and word of the test split."""
    system, step = load_system(options)
    folder = result_folder(Path(options.run.output_dir or options.run.resume_dir), options.run.mode, step)
    evaluate_likelihood(system, "test", folder)


def generate_data(options: Options, stop: StopSignals) -> None:
    """--gen_data: a CSV of (text, label) for each seed, and of sources where texts are made from those.

    Classes take turns, so that all have their share, and so do the sources of the training split.
    """
    system, _ = load_system(options)
    folder = Path(options.run.output_dir or options.run.resume_dir) / "synthetic"
    wanted, classes = options.run.num_samples, len(system.classes)
    labels = [i % classes for i in range(wanted)] if classes else None
    strategies = system.space.strategies[:1]
    for seed in TEST_SEEDS:
        sources = system.sources(system.corpus.train, seed)
        given = sources and [sources[i % len(sources)] for i in range(wanted)]
        samples = sample(system, wanted, seed, strategies=strategies, labels=labels, given=Given(given))
        if not is_main():
            continue
        columns = {"text": samples.first, "label": samples.labels}  # a label None is left empty
        if given is not None:
            columns["source"] = given
        path = folder / f"synth_sample{wanted}_seed{seed}.csv"
        with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        print(path, flush=True)


MODES = {
    "train": train,
    "resume_training": train,
    "eval": evaluate_run,
    "eval_test": evaluate_run,
    "ppl_eval": evaluate_ppl,
    "gen_data": generate_data,
}
GO_ON = ("train", "resume_training", "eval_test")  # the others begin anew


def main() -> None:
    problems: list[str] = []
    options = Options.from_argv(description=__doc__, problems=problems)
    if options.run.dry_run:
        return dry_run(options, problems)
    if problems:
        raise UsageError(problems[0])
    with listening() as stop, going_on() if options.run.mode in GO_ON else nullcontext():
        join()
        MODES[options.run.mode](options, stop)


if __name__ == "__main__":
    run(main)
