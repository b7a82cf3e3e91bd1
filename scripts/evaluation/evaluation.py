"""Sampling and scoring of a system: one evaluation writes its texts, its scores and a table into one folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from diffusion.training.files import write_text
from latent_models.corpora import Split
from offline_metrics import report
from offline_metrics.scores import Scores
from offline_metrics.suite import MetricSuite
from scripts.composition.build import System
from scripts.evaluation.asked import asked_of_system, check_alike, is_whole, mark_whole
from scripts.evaluation.run_folder import scores
from scripts.job.console import note
from scripts.job.processes import is_main, main_first, rank_and_count, shared_out, told_by_main
from scripts.sampling.conditional import add_pair_scores, candidate_sets, chosen, sample_candidates
from scripts.sampling.samples_file import Samples
from scripts.sampling.sampling import sample

TEST_SEEDS = (42, 43, 44, 45, 46)
VALID_SEED = 42
HUMAN = "human"
RESULTS = {"eval": "valid", "eval_test": "test", "ppl_eval": "likelihood"}  # mode -> what its folder begins with


@dataclass(frozen=True)
class Evaluation:
    """One seed's samples and the scores of each way of writing them, beside the human row."""

    samples: dict[str, Samples]  # by row
    rows: dict[str, Scores]
    made: Samples  # all that were sampled, of which the rows may be a choice

    @property
    def texts(self) -> dict[str, list[str]]:
        """The texts of each row."""
        return {row: samples.texts.get(row, samples.first) for row, samples in self.samples.items()}

    @property
    def is_choice(self) -> bool:
        """Whether there were candidates to choose from."""
        return len(self.made.first) > len(next(iter(self.samples.values())).first)

    def write(self, folder: Path) -> None:
        """<row>.jsonl, scores.json and table.md; timing.json, which alone differs when the same is done again.

        candidates.jsonl where there were some to choose from, those of one source one after the other. Of several
        processes, which all have the same, one writes.
        """
        if not is_main():
            return
        for row, samples in self.samples.items():
            samples.write_strategy(row if row in samples.texts else next(iter(samples.texts)), folder / f"{row}.jsonl")
        if self.is_choice:
            self.made.write_strategy(next(iter(self.made.texts)), folder / "candidates.jsonl")
        write_rows(folder, self.rows)
        timing = {"seconds": self.made.seconds, "samples": len(self.made.first)}  # none were taken of the choosing
        report.write_json(folder / "timing.json", timing | {"processes": rank_and_count()[1]})


def result_folder(run_dir: Path, mode: str, step: int) -> Path:
    """Where a mode writes what it finds of a run."""
    return run_dir / "evaluation" / f"{RESULTS[mode]}_step_{step:08d}"


def write_rows(folder: Path, rows: dict[str, Scores]) -> str:
    """Writes scores.json for scripts and table.md for people; returns the table."""
    report.write_json(folder / "scores.json", rows)
    table = report.table(rows, human=HUMAN)
    write_text(folder / "table.md", table)
    return table


def evaluate(
    system: System,
    suite: MetricSuite,
    seed: int,
    sources: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
) -> Evaluation:
    """Samples `num_samples` texts and scores them by each strategy; `sources` are those of the suite's references."""
    count, each = system.options.run.num_samples, system.options.run.mbr_candidates
    available = len(suite.reference_texts)
    if sources is None:
        if count > available:
            note(
                f"{count:,} samples asked but the references hold {available:,} texts: MAUVE compares {available:,} "
                f"with {available:,}; the other metrics use all {count:,}"
            )
        made = sample(system, count, seed, strategies=strategies)
        samples = dict.fromkeys(made.texts, made)
    else:
        if count > available:
            note(f"{count:,} samples asked but there are {available:,} sources: {available:,} are made, one for each")
            count = available
        made = sample_candidates(system, sources[:count], seed, each)
        samples = chosen(made, each)
    with main_first():  # the others read it from the store
        rows = {HUMAN: suite.human_row(count)}
    evaluation = Evaluation(samples, rows, made)

    def score(texts: list[str]) -> Scores:
        row = suite.score(texts)
        if sources is not None:
            add_pair_scores(row, texts, suite.reference_texts[:count], candidate_sets(made, each))
        return row

    written = evaluation.texts
    rows.update(zip(written, shared_out(list(written.values()), score), strict=True))
    return evaluation


def scalars(rows: dict[str, Scores]) -> dict[str, float]:
    """Scores as flat names such as `beam/mauve`, for trackers."""
    return {f"{row}/{name}": value for row, scores in rows.items() for name, value in scores.items()}


@dataclass
class TrainingEvaluator:
    """What the trainer calls after a checkpoint: scores the given weights against the validation split."""

    system: System
    run_dir: Path
    suite: MetricSuite | None = None
    sources: list[str] | None = None

    def __call__(self, step: int, denoiser: nn.Module) -> tuple[dict[str, float], dict[str, list[str]]]:
        """The scores and the texts of each strategy."""
        if self.suite is None:
            self.suite = self.system.suite(self.system.corpus.valid, VALID_SEED)
            self.sources = self.system.sources(self.system.corpus.valid, VALID_SEED)
        trained = self.system.denoiser
        self.system.denoiser = denoiser
        try:
            evaluation = evaluate(self.system, self.suite, VALID_SEED, self.sources)
        finally:
            self.system.denoiser = trained
        evaluation.write(self.run_dir / "evaluation" / f"step_{step:08d}")
        note("\n" + report.table(evaluation.rows, human=HUMAN))
        return scalars(evaluation.rows), evaluation.texts


def evaluate_split(system: System, split: Split, seeds: tuple[int, ...], folder: Path) -> None:
    """One evaluation for each seed, in a folder of its own; then mean and spread over the seeds in `folder`.

    A seed that was evaluated before is kept, so that what was cut short goes on. UsageError, before anything is made,
    where it was asked otherwise; what is older than asked.json is made anew.
    """
    asked = asked_of_system(system)
    places = {seed: folder / f"seed_{seed}" for seed in seeds}

    def begin() -> list[int]:
        """The seeds that are to come, whose places are free of what does not say what it was asked."""
        check_alike(folder, asked)
        missing = [seed for seed, place in places.items() if not is_whole(place)]
        stale = [places[seed] for seed in missing if places[seed].exists()]
        for place in stale:
            shutil.rmtree(place)
        for name in ("scores.json", "table.md") if missing else ():
            (folder / name).unlink(missing_ok=True)
        if stale:
            note(f"{folder}: {', '.join(place.name for place in stale)} do not say what was asked; made anew")
        return missing

    missing = told_by_main(begin)
    if kept := [str(seed) for seed in seeds if seed not in missing]:
        note(f"{folder}: seed {', '.join(kept)} evaluated before and kept; remove the folder to make it anew")
    for seed in missing:
        evaluation = evaluate(system, system.suite(split, seed), seed, system.sources(split, seed))
        evaluation.write(places[seed])
        if is_main():
            mark_whole(places[seed], asked)
    if not is_main():
        return
    by_row: dict[str, list[Scores]] = {}
    for place in places.values():
        for name, row in scores(place / "scores.json").items():
            by_row.setdefault(name, []).append(row)
    rows = {name: report.aggregate(found) for name, found in by_row.items()}
    print(f"{folder}\n\n{write_rows(folder, rows)}", flush=True)
