"""Run folders as they are found, whole or not: what can be read is read, and what cannot is told in `problems`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EINVAL
from pathlib import Path
from typing import Any

from diffusion.training import checkpoint
from latent_models.strict_json import parse
from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.composition.options import defaults, read_args
from scripts.evaluation.evaluation import HUMAN
from scripts.evaluation.run_folder import parameters, scores, seconds_per_sample
from scripts.job.errors import UsageError
from scripts.sampling.samples_file import read_texts

SEED = "random_seed"
SPLITS = {"test_": "test", "valid_": "validation", "": "validation"}  # of folders of scores, the best first
DIGITS = "[0-9]" * 8


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint: a row for every way to write texts and the human one, over all seeds and by seed."""

    folder: Path
    split: str
    step: int
    rows: dict[str, Scores]
    by_seed: dict[int, dict[str, Scores]]

    @property
    def beside(self) -> tuple[str, float | None]:
        """What its scores were measured against: split and words of the human texts."""
        return self.split, self.rows[HUMAN].get("total_words")

    @property
    def strategies(self) -> list[str]:
        """The ways to write texts, the usual one first."""
        return [name for name in self.rows if name != HUMAN]


@dataclass
class Run:
    """What a run folder tells."""

    path: Path
    title: str
    options: dict[str, Any] | None = None  # every option, those at their defaults too; None where args.json is no help
    training: list[dict[str, float]] = field(default_factory=list)  # rows of metrics.jsonl: losses and rates
    scored: list[dict[str, float]] = field(default_factory=list)  # rows of metrics.jsonl: `<row>/<metric>`
    evaluation: Evaluation | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)  # by way of writing, of the first sampling seed
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int | None:
        """The seed it was trained with."""
        return None if self.options is None else self.options[SEED]

    @property
    def step(self) -> int:
        """The last step that anything is known of."""
        logged = [int(row["step"]) for row in (*self.training, *self.scored)]
        return max([*logged, *map(checkpoint.step_of, checkpoint.checkpoints(self.path))], default=0)


def is_run(folder: Path) -> bool:
    """Whether a folder looks like one of a run, be it incomplete."""
    return (
        (folder / "args.json").is_file() or (folder / "metrics.jsonl").is_file() or bool(checkpoint.checkpoints(folder))
    )


def find_runs(place: Path) -> list[Path]:
    """The run that a folder is, or those that lie in it at any depth, by name."""
    if is_run(place):
        return [place]
    found = []
    for folder, names, _ in os.walk(place):
        names[:] = sorted((name for name in names if not name.startswith(".")), key=_natural)
        runs = [name for name in names if is_run(Path(folder, name))]
        found += [Path(folder, name) for name in runs]
        names[:] = [name for name in names if name not in runs]
    return sorted(found, key=lambda path: _natural(str(path)))


def found_in(places: list[Path]) -> tuple[dict[Path, str], list[tuple[str, str]]]:
    """The runs in all places, each once, with their titles; and complaints about places without one.

    A run is called by its path from the place given. Raises UsageError where there is no run at all.
    """
    titles: dict[Path, str] = {}
    known: set[Path] = set()
    empty = []
    for place in places:
        found = find_runs(place)
        for path in sorted(found, key=Path.is_symlink):  # a run has its own name before that of a link to it
            if path.resolve() not in known:
                known.add(path.resolve())
                titles[path] = place.absolute().name if path == place else str(path.relative_to(place))
        if not found:
            empty.append((str(place), "holds no run" if place.is_dir() else "is no folder"))
    if not titles:
        what = "; ".join(f"{place} {message}" for place, message in empty)
        raise UsageError(f"{what}; expected the folder of a run that train_text_diffusion.py wrote, or one of several")
    count = Counter(titles.values())
    return {path: title if count[title] == 1 else str(path) for path, title in titles.items()}, empty


def _natural(name: str) -> list[tuple[int, str]]:
    """An order in which run_10 comes after run_9."""
    return [(int(digits or 0), letters) for letters, digits in re.findall(r"(\D+)|(\d+)", name)]


def read_run(path: Path, title: str) -> Run:
    """Everything that the report needs of a run folder."""
    run = Run(path, title)
    try:
        run.options = defaults() | read_args(path)
    except UsageError as error:
        run.problems.append(f"{error}; its options are not known, so it stands for itself")
    _read_metrics(run)
    run.evaluation = _read_evaluation(run)
    newest = max(checkpoint.checkpoints(path), default=None)
    if newest is None:
        run.problems.append("no checkpoint; nothing can be sampled from it")
    if run.evaluation is not None:
        _add_facts(run, run.evaluation, newest)
        run.texts = dict(_read_texts(run, run.evaluation))
    wanted = None if run.options is None else run.options["num_train_steps"]
    if wanted is not None and run.step < wanted:
        run.problems.append(f"unfinished: step {run.step:,} of {wanted:,}")
    return run


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def _read_metrics(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    try:
        if path.exists() and not path.is_file():  # a named pipe would block for ever
            raise OSError(EINVAL, "not a file")
        lines = path.read_bytes().decode("utf-8-sig", "replace").removesuffix("\n").split("\n")
    except OSError as error:
        run.problems.append(f"metrics.jsonl: {error.strerror}; there are no curves")
        return
    unread = 0
    for line in lines:
        row = _metrics_row(line)
        if row is None:
            unread += 1
        elif any("/" in key for key in row):
            run.scored.append(row)
        else:
            run.training.append(row)
    if unread:
        run.problems.append(f"metrics.jsonl: {unread:,} of {len(lines):,} lines cannot be read and are left out")
    if not run.training:
        run.problems.append("metrics.jsonl: holds no row of training; there are no curves")


def _metrics_row(line: str) -> dict[str, float] | None:
    """The numbers of a line; None for a line that is no row, such as one that a crash has torn."""
    try:
        row = {key: value for key, value in parse(line).items() if type(value) in (int, float)}
    except (ValueError, AttributeError):
        return None
    return row if type(row.get("step")) is int and row["step"] >= 0 else None


# --- evaluation/ ------------------------------------------------------------------------------------------------------


def _read_evaluation(run: Run) -> Evaluation | None:
    """The newest evaluation on the test split, else on the validation split, else of training."""
    for prefix, split in SPLITS.items():
        folders = sorted(path for path in (run.path / "evaluation").glob(f"{prefix}step_{DIGITS}") if path.is_dir())
        for folder in reversed(folders):
            found = _read_scores(run, folder, split)
            if found is not None:
                return found
    run.problems.append(f"no scores; run train_text_diffusion.py --eval_test --resume_dir {run.path}")
    return None


def _read_scores(run: Run, folder: Path, split: str) -> Evaluation | None:
    """The scores in a folder; of an evaluation that was cut short, those of the seeds that it came to."""
    step = int(folder.name[-8:])
    rows = _rows(run, folder / "scores.json")
    seeds = sorted(
        int(each.name.removeprefix("seed_")) for each in folder.glob("seed_[0-9]*") if each.name[5:].isdecimal()
    )
    by_seed = {seed: found for seed in seeds if (found := _rows(run, folder / f"seed_{seed}" / "scores.json"))}
    if rows is None and by_seed:
        there = ", ".join(map(str, by_seed))
        run.problems.append(f"{folder.name}: no scores over all seeds; those of the seeds {there} are taken together")
        names = next(iter(by_seed.values()))
        rows = {name: report.aggregate([each[name] for each in by_seed.values() if name in each]) for name in names}
    return None if rows is None else Evaluation(folder, split, step, rows, by_seed)


def _rows(run: Run, path: Path) -> dict[str, Scores] | None:
    """The rows of a file of scores; None where there is none to be used, which is told unless it is not there."""
    try:
        rows = scores(path)
    except UsageError as error:
        run.problems.append(str(error))
        return None
    if path.is_file() and not (HUMAN in rows and len(rows) > 1):
        run.problems.append(f"{path}: not the scores of texts beside a human row; evaluate the run again")
    return rows if HUMAN in rows and len(rows) > 1 else None


def _add_facts(run: Run, evaluation: Evaluation, newest: Path | None) -> None:
    """Likelihood, time and size enter the rows, as in a comparison; told is an evaluation of another checkpoint."""
    facts = Scores()
    found = run.path / "evaluation" / f"likelihood_step_{evaluation.step:08d}" / "scores.json"
    try:
        facts = next(iter(scores(found).values()), facts)
    except UsageError as error:
        run.problems.append(str(error))
    try:
        for name in evaluation.strategies:
            evaluation.rows[name].update(seconds_per_sample(evaluation.folder, name))
        if newest is not None:
            facts["parameters"] = parameters(newest) / 1e6
    except UsageError as error:
        run.problems.append(str(error))
    if newest is not None and checkpoint.step_of(newest) != evaluation.step:
        run.problems.append(
            f"scored at step {evaluation.step:,}; the newest checkpoint is of step {checkpoint.step_of(newest):,}"
        )
    for name in evaluation.strategies:
        row = evaluation.rows[name]
        evaluation.rows[name] = Scores({**facts, **row}, {**facts.notes, **row.notes})


def _read_texts(run: Run, evaluation: Evaluation) -> Iterator[tuple[str, list[str]]]:
    """The texts of the first sampling seed, by way of writing."""
    folder = evaluation.folder
    if evaluation.by_seed:
        folder = folder / f"seed_{min(evaluation.by_seed)}"
    for name in evaluation.strategies:
        try:
            yield name, read_texts(folder / f"{name}.jsonl")
        except UsageError as error:
            run.problems.append(str(error))
