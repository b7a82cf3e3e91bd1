"""The file of a sweep: which runs there are, each a folder named by what varies, and how they are evaluated.

    output_dir = "saved_models/annealing"    # of all runs; what they share lies there too, unless save_dir is given

    [options]                                # the same in every run
    dataset_name = "e2e"

    [grid]                                   # every combination
    random_seed = [41, 42, 43]
    T_schedule = ["normal", "linear"]

    [groups.method.latent]                   # options that vary together: an axis `method`, of which this is one value
    method = "latent"
    self_condition = true
    [groups.method.mdlm]
    method = "mdlm"

    [eval_test]                              # after training; ppl_eval and eval likewise
    num_samples = 1000
"""

from __future__ import annotations

import difflib
import itertools
import os
import tomllib
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any, get_type_hints

from latent_models.codec import first_line
from scripts.composition.flag_checks import check_flags, check_likelihood
from scripts.composition.options import (
    GROUP_NAMES,
    GROUPS,
    MODEL_GROUPS,
    MODES,
    REMEMBERED,
    Options,
    RunOptions,
    fits,
    kind_name,
)
from scripts.evaluation.evaluation import RESULTS
from scripts.job.command_line import flags
from scripts.job.errors import USER_ERRORS, UsageError
from scripts.job.reading import read_lines

EXPECTED = "a sweep file in TOML"
MOST_RUNS = 10_000
MOST_NAMED = 10  # choices that an error lists
LONGEST_NAME = 255  # bytes, of any file system in use
OWN = {"output_dir", "resume_dir", "milestone", "dry_run", *MODES}  # flags that the sweep sets itself
KINDS = {f.name: get_type_hints(group)[f.name] for group in GROUPS for f in fields(group)}
FIXED = {  # by training: an evaluation cannot change them
    f.name for name, group in zip(GROUP_NAMES, GROUPS, strict=True) for f in fields(group) if name in MODEL_GROUPS
}
OF_ONE_CALL = {f.name for f in fields(RunOptions)} - {*REMEMBERED}  # an evaluation does not find them in args.json


@dataclass(frozen=True, eq=False)
class Run:
    """One combination: what it is called, where it lies, its options, and by mode those of its evaluations."""

    name: str
    folder: Path
    values: dict[str, Any]
    options: Options
    evaluations: dict[str, Options]


@dataclass(frozen=True)
class Sweep:
    """What a file says; the options of each evaluation by its mode."""

    output_dir: Path
    runs: list[Run]
    evaluations: dict[str, dict[str, Any]]


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file; UsageError that names the file, the key and what was expected of it."""
    text = "\n".join(read_lines(path, EXPECTED)) + "\n"
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: lists thousands of levels deep
        raise UsageError(f"{path}: cannot be read ({first_line(error)}); expected {EXPECTED}") from None
    try:
        return _sweep(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _sweep(content: dict[str, Any]) -> Sweep:
    tables = {"options", "grid", "groups", *RESULTS}
    for key, value in content.items():
        if key not in {"output_dir", *tables}:
            raise UsageError(f"{key}: unknown key{_guess(key, {'output_dir', *tables})}")
        if key in tables and not isinstance(value, dict):
            raise UsageError(f"{key}: expected a table [{key}]")
    if not fits(output_dir := content.get("output_dir"), str):
        raise UsageError("output_dir: expected a string, the folder of the runs")
    fixed = _options("options", content.get("options", {}))
    axes = _group_axes(content.get("groups", {})) | _grid_axes(content.get("grid", {}))
    _check_each_once(fixed, axes)
    evaluations = {mode: _evaluation(mode, content[mode]) for mode in RESULTS if mode in content}
    if (count := prod(map(len, axes.values()))) > MOST_RUNS:
        raise UsageError(f"{count:,} combinations; expected at most {MOST_RUNS:,}")
    runs = []
    for combination in itertools.product(*(values.items() for values in axes.values())):
        labels = [label for label, _ in combination]
        name = ",".join(f"{_label(axis)}={label}" for axis, label in zip(axes, labels, strict=True)) or "run"
        values = {"save_dir": output_dir} | fixed
        for _, chosen in combination:
            values |= chosen
        runs.append(_run(name, Path(output_dir) / name, values, evaluations))
    if "ppl_eval" in evaluations and not any("ppl_eval" in run.evaluations for run in runs):
        check_likelihood(runs[0].options)  # says why
    return Sweep(Path(output_dir), runs, evaluations)


Axis = dict[str, dict[str, Any]]  # label -> options


def _grid_axes(grid: dict[str, Any]) -> dict[str, Axis]:
    axes = {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"[grid] {key}: expected a list of values such as [1, 2]")
        axes[key] = _axis(f"[grid] {key}", [(value, _options("grid", {key: value})) for value in values])
    return axes


def _group_axes(groups: dict[str, Any]) -> dict[str, Axis]:
    axes = {}
    for axis, values in groups.items():
        if not isinstance(values, dict) or not values or not all(isinstance(each, dict) for each in values.values()):
            raise UsageError(f"[groups.{axis}]: expected tables such as [groups.{axis}.NAME]")
        chosen = [(name, _options(f"groups.{axis}.{name}", each)) for name, each in values.items()]
        axes[axis] = _axis(f"[groups.{axis}]", chosen)
    return axes


def _axis(where: str, values: list[tuple[Any, dict[str, Any]]]) -> Axis:
    axis = {}
    for value, options in values:
        label = _label(value)
        if label in axis:  # two runs would have the same folder
            raise UsageError(f"{where}: two values are called {label}, as their folders would be; give each value once")
        axis[label] = options
    return axis


def _options(table: str, values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        if key in OWN:
            raise UsageError(f"[{table}] {key}: the sweep sets it itself; leave it out")
        if key not in KINDS:
            raise UsageError(f"[{table}] {key}: unknown option{_guess(key, KINDS)}")
        if not fits(value, KINDS[key]):
            raise UsageError(f"[{table}] {key}: {_excerpt(value)}; expected {kind_name(KINDS[key])}")
    return values


def _evaluation(mode: str, values: dict[str, Any]) -> dict[str, Any]:
    for key in _options(mode, values):
        if key in FIXED:
            raise UsageError(f"[{mode}] {key}: says what the model is; set it under [options] or leave it out")
    return values


def _check_each_once(fixed: dict[str, Any], axes: dict[str, Axis]) -> None:
    """Raises UsageError for an option that is set in two places, of which one would win in silence."""
    seen = dict.fromkeys(fixed, "[options]")
    for axis, values in axes.items():
        for key in dict.fromkeys(key for chosen in values.values() for key in chosen):
            if key in seen:
                raise UsageError(f"{key}: set by {seen[key]} and by {axis}; set it once")
            seen[key] = axis


def _run(name: str, folder: Path, values: dict[str, Any], evaluations: dict[str, dict[str, Any]]) -> Run:
    """Raises UsageError where training would refuse the options."""
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UsageError(f"{name[:60]}...: too long for the name of a folder; expected {LONGEST_NAME} bytes at most")
    try:
        options = Options.from_argv(flags(values))
        check_flags(options)
        chosen = {}
        for mode, own in evaluations.items():
            trained = {key: value for key, value in values.items() if key not in OF_ONE_CALL}
            evaluated = replace(Options.from_argv(flags(trained | own)), given=frozenset(own))
            if mode != "ppl_eval" or _has_likelihood(options):
                chosen[mode] = replace(evaluated, run=replace(evaluated.run, **{mode: True}, resume_dir=str(folder)))
                check_flags(chosen[mode])
    except USER_ERRORS as error:
        raise UsageError(f"{name}: {error}") from None
    return Run(name, folder, values, options, chosen)


def _has_likelihood(options: Options) -> bool:
    try:
        check_likelihood(options)
    except UsageError:
        return False
    return True


def _label(value: Any) -> str:
    """A value as part of a folder's name."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join("-" if each in "/\\,= " or not each.isprintable() else each for each in text)


def _excerpt(value: Any, width: int = 60) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of thousands of digits
        return "a number that cannot be held"
    return text if len(text) <= width else f"{text[:width - 3]}..."


def _guess(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return "; expected one that --help lists" if len(known) > MOST_NAMED else f"; expected {', '.join(sorted(known))}"
