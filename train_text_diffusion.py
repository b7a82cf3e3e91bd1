"""Trains, evaluates and samples latent diffusion models of text, from files on disk alone.

    python train_text_diffusion.py --dataset_name e2e --enc_dec_model facebook/bart-base ...
    python train_text_diffusion.py --eval_test --resume_dir saved_models/e2e/RUN --num_samples 1000
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from diffusion.training import checkpoint
from diffusion.training.tracker import JsonlTracker, Trackers, WandbTracker
from diffusion.training.trainer import Trainer
from latent_models.statistics import LatentStatistics
from scripts.build import (
    STATISTICS,
    LatentData,
    System,
    build,
    check,
    check_width,
    encode_split,
    fit_statistics,
    load_codec,
    load_system,
    note,
)
from scripts.errors import UsageError, run
from scripts.evaluation import TEST_SEEDS, VALID_SEED, TrainingEvaluator, evaluate_split
from scripts.options import Options
from scripts.sample import sample


def new_run_dir(options: Options, corpus_name: str) -> Path:
    """The folder of a new run; raises UsageError where a run is in it already."""
    chosen = options.run.output_dir
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    run_dir = Path(chosen) if chosen else Path(options.run.save_dir) / corpus_name / started
    if (run_dir / "args.json").exists():
        raise UsageError(
            f"{run_dir}: holds a run already; choose another --output_dir, or continue it with --resume_training "
            f"--resume_dir {run_dir}"
        )
    return run_dir


def train(options: Options) -> None:
    """A new run, or the rest of an old one."""
    resumed = options.run.mode == "resume_training"
    run_dir = Path(options.run.resume_dir) if resumed else None
    start = checkpoint.find_checkpoint(run_dir, options.run.milestone) if resumed else None
    corpus = check(options)
    run_dir = run_dir or new_run_dir(options, corpus.name)
    codec = load_codec(options)
    caches = {name: encode_split(options, codec, corpus, name) for name in ("train", "valid")}
    if resumed:
        statistics = LatentStatistics.load(run_dir / STATISTICS)
    else:
        statistics = fit_statistics(options, caches["train"])
        run_dir.mkdir(parents=True, exist_ok=True)
        options.save(run_dir)
        statistics.save(run_dir / STATISTICS)
    system = build(options, corpus, codec, statistics)
    check_width(system, run_dir)

    set_seed(options.training.random_seed)  # dropout draws from the global generators
    accelerator = Accelerator(
        mixed_precision=options.training.mixed_precision,
        gradient_accumulation_steps=options.training.gradient_accumulation_steps,
    )
    trainer = Trainer(
        options.training,
        options.optim,
        system.objective,
        system.denoiser,
        *(latent_data(system, caches[name], name) for name in ("train", "valid")),
        run_dir,
        accelerator=accelerator,
        make_tracker=lambda step: make_tracker(options, run_dir, step),
        evaluate=TrainingEvaluator(system, run_dir),
    )
    if start is not None:
        trainer.resume(start)
    parameters = sum(p.numel() for p in system.denoiser.parameters())
    note(
        f"{run_dir}: {parameters / 1e6:.1f} M parameters, {len(corpus.train):,} training texts, steps "
        f"{trainer.step:,} to {options.training.num_train_steps:,} on {accelerator.device}"
    )
    trainer.train()
    note(f"done: {run_dir}")


def latent_data(system: System, cache, name: str) -> LatentData:
    labels = system.label_ids(getattr(system.corpus, name).labels) if system.classes else None
    return LatentData(cache, system.statistics, labels)


def make_tracker(options: Options, run_dir: Path, step: int) -> Trackers:
    trackers = [JsonlTracker(run_dir / "metrics.jsonl", step)]
    if options.run.wandb_name is not None:
        trackers.append(WandbTracker(options.run.wandb_name, run_dir, options.flat()))
    return Trackers(*trackers)


def evaluate_run(options: Options) -> None:
    """--eval and --eval_test."""
    system, step = load_system(options)
    name, seeds = ("valid", (VALID_SEED,)) if options.run.mode == "eval" else ("test", TEST_SEEDS)
    folder = Path(options.run.output_dir or options.run.resume_dir) / "evaluation" / f"{name}_step_{step:08d}"
    evaluate_split(system, getattr(system.corpus, name), seeds, folder)


def generate_data(options: Options) -> None:
    """--gen_data: a CSV of (text, label) for each seed; the samples shared out evenly over the classes."""
    system, _ = load_system(options)
    folder = Path(options.run.output_dir or options.run.resume_dir) / "synthetic"
    folder.mkdir(parents=True, exist_ok=True)
    count, labels = options.run.num_samples, list(range(len(system.classes))) or [None]
    shares = [count // len(labels) + (i < count % len(labels)) for i in range(len(labels))]
    for seed in TEST_SEEDS:
        path = folder / f"synth_sample{count}_seed{seed}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for label, share in zip(labels, shares, strict=True):
                if share:
                    texts = sample(system, share, seed, strategies=["beam"], label=label).texts["beam"]
                    writer.writerows([text, "" if label is None else system.classes[label]] for text in texts)
        print(path, flush=True)


MODES = {
    "train": train,
    "resume_training": train,
    "eval": evaluate_run,
    "eval_test": evaluate_run,
    "gen_data": generate_data,
}


def main() -> None:
    options = Options.from_argv(description=__doc__)
    MODES[options.run.mode](options)


if __name__ == "__main__":
    run(main)
