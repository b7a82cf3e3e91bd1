"""Ways to sample one run, each named in a word: SAMPLER:STEPS[:GRID_POWER], or FLAG=VALUE[,FLAG=VALUE ...]."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from diffusion.samplers import SamplingOptions
from offline_metrics.scores import Scores
from scripts.composition.build import System
from scripts.composition.flag_checks import check_flags
from scripts.composition.methods import METHODS
from scripts.composition.options import Options
from scripts.evaluation.asked import Asked, asked_of, is_whole, mark_whole, read_asked
from scripts.evaluation.evaluation import evaluate
from scripts.evaluation.run_folder import as_scores, read, scores
from scripts.job.command_line import parse
from scripts.job.errors import UsageError

SHORT = re.compile(r"([a-z_]+):([0-9]+)(?::([0-9]*\.?[0-9]+))?")
OLD = "cell.json"  # of before asked.json: what was asked and the rows
PAIRS = re.compile(r"[a-z_]+=[^=,]+(,[a-z_]+=[^=,]+)*")


def check_cells(cells: Sequence[str]) -> None:
    """Raises UsageError for one that is of neither form."""
    for cell in cells:
        if not (SHORT.fullmatch(cell) or PAIRS.fullmatch(cell)):
            raise UsageError(
                f"--cells {cell!r}: expected SAMPLER:STEPS such as ddim:50, or ddim:50:0.5, or flags of sampling such "
                "as temperature=0.8"
            )


def pairs_of(cell: str) -> dict[str, str]:
    """Flags of sampling and their values, as they were written."""
    if short := SHORT.fullmatch(cell):
        named = zip(("sampler", "sampling_timesteps", "grid_power"), short.groups(), strict=True)
        return {flag: value for flag, value in named if value is not None}
    return dict(pair.split("=") for pair in cell.split(","))


def title(cell: str) -> str:
    """What a cell is called in tables, and in folders with _ for a space."""
    return cell.replace(":", " ")


def dial_of(cell: str) -> tuple[str, str, float | None]:
    """What a cell keeps fixed, the flag that is turned (its last one; of the short form the steps), and its value."""
    pairs = pairs_of(cell)
    dial = "sampling_timesteps" if SHORT.fullmatch(cell) else list(pairs)[-1]
    turned = pairs.pop(dial)
    fixed = ", ".join(value if flag == "sampler" else f"{flag} {value}" for flag, value in pairs.items())
    try:
        return fixed, dial, float(turned)
    except ValueError:  # a name
        return fixed, dial, None


def by_cell(options: Options, cell: str) -> Options:
    """The options of a run that is sampled in another way; UsageError or DiffusionError where it has no such way."""
    pairs, usual, method = pairs_of(cell), options.sampling, options.method.method
    known = {field.name for field in fields(SamplingOptions)}
    if unknown := pairs.keys() - known:
        raise UsageError(f"--cells {cell}: {min(unknown)} is no flag of sampling; expected {', '.join(sorted(known))}")
    if pairs.get("sampler", usual.sampler) not in ("default", *METHODS[method].samplers):
        raise UsageError(f"--cells {cell}: --method {method} has the samplers {', '.join(METHODS[method].samplers)}")
    (asked,) = parse([SamplingOptions], [f"--{flag}={value}" for flag, value in pairs.items()])
    sampling = replace(usual, **{flag: getattr(asked, flag) for flag in pairs})
    chosen = replace(options, sampling=sampling, given=frozenset(pairs))
    check_flags(chosen)
    return chosen


def with_cell(system: System, cell: str) -> System:
    """The same run sampled in another way, as `by_cell` has it."""
    chosen = replace(system, options=by_cell(system.options, cell))
    _ = chosen.times  # refuses a number of steps that the process cannot take
    return chosen


def place_of(folder: Path, cell: str, strategy: str, usual: str) -> Path:
    """The folder of a cell, which is named by how its texts are written too where that is not the usual way."""
    return folder / (title(cell).replace(" ", "_") + ("" if strategy == usual else f",{strategy}"))


def asked_of_cell(chosen: System, same: Asked, cell: str, strategy: str) -> Asked:
    """What a cell is asked: `chosen` is the run sampled its way, `same` are the run's `identities`."""
    return asked_of(chosen.options) | same | {"cell": cell, "strategy": strategy}


def score_cell(system: System, chosen: System, seed: int, asked: Asked, place: Path) -> dict[str, Scores]:
    """The rows of a cell under one seed, from its folder where that holds them already.

    `chosen` is the run sampled its way; `system`, which the cells share, loads the models of the metrics once.
    """
    if not is_whole(place):
        if place.exists():
            shutil.rmtree(place)
        strategy, test = asked["strategy"], system.corpus.test
        evaluation = evaluate(chosen, system.suite(test, seed), seed, system.sources(test, seed), [strategy])
        seconds = evaluation.made.seconds[strategy] / len(evaluation.made.first)
        evaluation.rows[strategy]["seconds_per_sample"] = seconds
        evaluation.write(place)
        mark_whole(place, asked)
    return scores(place / "scores.json")


def read_cell(place: Path) -> tuple[Asked, dict[str, Scores]] | None:
    """What a cell was asked and its rows under one seed; None for what is none, or so old that it has no name."""
    if is_whole(place):
        asked, rows = read_asked(place), scores(place / "scores.json")
    elif (place / OLD).is_file():
        asked, rows = read(place / OLD, _of_before)
    else:
        return None
    if asked.get("cell") is None:
        return None
    return (asked, rows) if asked.get("strategy") in rows else None


def _of_before(found: dict) -> tuple[Asked, dict[str, Scores]]:
    """The same of a record of before asked.json."""
    asked = found["asked"]
    flags = {**asked["sampling"], **asked["metrics"], "num_samples": asked["samples"], "strategy": asked["strategy"]}
    return {"cell": found.get("cell"), **flags}, as_scores(found["rows"])
