"""Runs that differ in nothing but their seed are one setting: its name, its rows, and how it differs from another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan, sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit

from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.composition.options import defaults
from scripts.evaluation.evaluation import HUMAN
from scripts.report.runs import SEED, Run

# Options that change where things lie, how fast they go or what is written down, but not what comes out.
ASIDE = {
    SEED, "save_dir", "data_dir", "wandb_name", "log_every", "keep_checkpoints", "save_and_sample_every",
    "eval_batch_size", "metric_batch_size",
}  # fmt: skip
MOST_IN_NAME = 3  # options that differ; where there are more, runs are called by their folders
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """Runs of one setting, one for each training seed."""

    name: str
    runs: list[Run]

    @property
    def scored(self) -> list[Run]:
        """The runs that have scores, of the same step beside the same texts: of several kinds, the commonest."""
        kinds = Counter(_kind(run) for run in self.runs if run.evaluation is not None)
        return [run for run in self.runs if run.evaluation is not None and _kind(run) == kinds.most_common(1)[0][0]]

    @property
    def strategies(self) -> list[str]:
        """The ways of writing texts that have scores, the usual one first."""
        return list(dict.fromkeys(name for run in self.scored for name in run.evaluation.strategies))

    @property
    def ways(self) -> list[str]:
        """The same with those that were scored in training."""
        logged = (key.partition("/")[0] for run in self.runs for row in run.scored for key in row if "/" in key)
        return [name for name in dict.fromkeys([*self.strategies, *logged]) if name != HUMAN]

    def title(self, way: str) -> str:
        """What its rows of a way of writing are called."""
        return self.name if len(self.ways) <= 1 else f"{self.name}, {way}"

    def row(self, strategy: str) -> Scores:
        """Mean and spread over training seeds; of a run alone, its own, over sampling seeds."""
        found = [run.evaluation.rows[strategy] for run in self.scored if strategy in run.evaluation.rows]
        if len(found) > 1:
            found = [_without_spread(row) for row in found]
        row = report.aggregate(found)
        row.pop("parameters" + report.SPREAD, None)  # which is of no seed
        return row

    @property
    def counts(self) -> str:
        """How many training and sampling seeds the rows are of."""
        sampling = sorted({max(1, len(run.evaluation.by_seed)) for run in self.scored})
        return f"{len(self.scored)} × {'–'.join(map(str, sampling))}"


def _kind(run: Run) -> tuple:
    return run.evaluation.step, run.evaluation.beside


def _without_spread(row: Scores) -> Scores:
    kept = {name: value for name, value in row.items() if not name.endswith(report.SPREAD) and name != "runs"}
    return Scores(kept, row.notes)


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """The settings, in the order of their first runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kept = None if run.options is None else {k: v for k, v in run.options.items() if k not in ASIDE}
        groups.setdefault(str(run.path) if kept is None else json.dumps(kept, sort_keys=True), []).append(run)
    keys = differing([run for run in runs if run.options is not None], ASIDE)
    return [
        Setting(name, group) for name, group in zip(_names(list(groups.values()), keys), groups.values(), strict=True)
    ]


def differing(runs: Sequence[Run], aside: set[str] = frozenset()) -> list[str]:
    """The options that are not the same in all runs, the one of most values first."""
    names = dict.fromkeys(name for run in runs for name in run.options if name not in aside)
    values = {name: len({json.dumps(run.options.get(name)) for run in runs}) for name in names}
    return sorted((name for name, count in values.items() if count > 1), key=lambda name: -values[name])


def _names(groups: list[list[Run]], keys: list[str]) -> list[str]:
    """A name for each setting: its options of those that differ; the title of its first run where that is long."""
    parts = [[] if group[0].options is None else _parts(group[0], keys) for group in groups]
    if len(groups) == 1 or max(map(len, parts)) > MOST_IN_NAME:
        parts = [[] for _ in groups]
    names = [", ".join(own) or group[0].title for own, group in zip(parts, groups, strict=True)]
    taken = Counter([HUMAN, *names])
    return [f"{name} ({group[0].path})" if taken[name] > 1 else name for name, group in zip(names, groups, strict=True)]


def _parts(run: Run, keys: list[str]) -> list[str]:
    """The option that differs most, and others that are not at their default."""
    values = {key: run.options.get(key) for key in keys}
    shown = {key: v for key, v in values.items() if key == keys[0] or v != defaults().get(key)}
    return [v if isinstance(v, str) and key == keys[0] else f"{key}={v}" for key, v in shown.items()]


def baseline(settings: Sequence[Setting]) -> Setting | None:
    """What the others are compared with: the most usual of the settings that have scores."""
    return most_usual([setting for setting in settings if setting.scored])


def most_usual(settings: Sequence[Setting]) -> Setting | None:
    """The setting with most options at their default."""
    return min(settings, key=_set, default=None)


def _set(setting: Setting) -> float:
    """How many options are not at their default."""
    options = setting.runs[0].options
    if options is None:
        return float("inf")
    return sum(value != defaults().get(name) for name, value in options.items() if name not in ASIDE)


def doubts(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Runs that the others cannot be compared with as they are, and why."""
    found = []
    for setting in settings:
        by_seed: dict[int | None, Run] = {}
        for run in setting.runs:
            other = by_seed.setdefault(run.seed, run)
            if other is not run:
                found.append((run.title, f"has the options and the seed of {other.title}; both are counted"))
            if run.evaluation is not None and run not in setting.scored:
                found.append((run.title, f"scored otherwise than {setting.scored[0].title}; left out of their mean"))
    scored = [run for setting in settings for run in setting.scored]
    for run in scored[1:]:
        if run.evaluation.beside != scored[0].evaluation.beside:
            found.append((run.title, f"scored beside other human texts than {scored[0].title}; compare with care"))
    return found


# --- paired differences -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Mean of n differences and its t interval; without an interval where n is 1."""

    n: int
    mean: float
    half_width: float = nan

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """The differences between values of the same seed: mean and 95 % t interval (n - 1 degrees); None for no pair."""
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    differences = [each for each in both if isfinite(each)]
    n = len(differences)
    if n < 2:
        return Paired(1, differences[0]) if differences else None
    half_width = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * stdev(differences) / sqrt(n)
    return Paired(n, fmean(differences), half_width)


@dataclass(frozen=True)
class Comparison:
    """How one way of writing of a setting differs from the baseline, metric by metric, over `unit`."""

    title: str
    against: str
    unit: str
    differences: dict[str, Paired]


def compare(setting: Setting, base: Setting, metrics: Sequence[str]) -> list[Comparison] | str:
    """The comparisons of a setting with the baseline by each way of writing, or the reason why there is none.

    Runs trained with the same seed are pairs. Where there is one pair only, its samples of the same seed are.
    """
    ours, theirs = ({run.seed: run for run in each.scored if run.seed is not None} for each in (setting, base))
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return "no two runs with scores were trained with the same seed"
    shared = [seed for seed in shared if ours[seed].evaluation.beside == theirs[seed].evaluation.beside]
    if not shared:
        return "scored beside other human texts; evaluate both on as many texts of the same split"
    found = []
    for strategy in setting.strategies:
        other = strategy if strategy in base.strategies else base.strategies[0]
        if len(shared) > 1:
            unit = "training seeds"
            rows = [
                {seed: runs[seed].evaluation.rows.get(name, Scores()) for seed in shared}
                for runs, name in ((ours, strategy), (theirs, other))
            ]
        else:
            unit = "sampling seeds"
            rows = [
                {seed: row.get(name, Scores()) for seed, row in runs[shared[0]].evaluation.by_seed.items()}
                for runs, name in ((ours, strategy), (theirs, other))
            ]
        differences = {}
        for metric in metrics:
            one, two = ({seed: row.get(metric, nan) for seed, row in each.items()} for each in rows)
            if (difference := paired(one, two)) is not None:
                differences[metric] = difference
        if differences:
            found.append(Comparison(setting.title(strategy), base.title(other), unit, differences))
    return found or "no value of the same seed on both sides"


def spread(row: Mapping[str, float], metric: str) -> float | None:
    """The standard deviation that a row has of a metric."""
    value = row.get(metric + report.SPREAD, nan)
    return None if isnan(value) else value
