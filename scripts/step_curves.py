"""Quality against sampling steps: samples of a trained run by several samplers and numbers of steps, scored alike.

    python -m scripts.step_curves --resume_dir RUN --cells ddim:250 ddim:25 ancestral:25:0.5 [--num_samples 1000]

A cell that was scored before, with the same samples, is not made again: a call that was cut short goes on.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.build import System, load_system
from scripts.console import note
from scripts.dry_run import dry_run
from scripts.errors import UsageError, run
from scripts.evaluation import HUMAN, TEST_SEEDS, write_rows
from scripts.methods import METHODS
from scripts.options import GROUPS, Options, parse
from scripts.run_folder import as_scores, read
from scripts.sampling import sample

COLUMNS = ("mauve", "corpus_perplexity", "diversity", "memorization", "acceptance", "mean_words", "seconds_per_sample")


@dataclass
class CurveOptions:
    """Which samplers at how many steps, over which seeds."""

    _argument_group_name: ClassVar[str] = "curves"

    cells: list[str] = field(
        default_factory=list, metadata={"help": "what to sample with, each SAMPLER:STEPS or SAMPLER:STEPS:GRID_POWER"}
    )
    strategy: str | None = field(default=None, metadata={"help": "how latents are decoded: beam (default) or nucleus"})
    seeds: list[int] = field(default_factory=lambda: list(TEST_SEEDS), metadata={"help": "seeds of each cell"})

    def __post_init__(self):
        if not self.cells:
            raise UsageError("expected --cells, each SAMPLER:STEPS such as ddim:50")
        check_cells(self.cells)


def check_cells(cells: Sequence[str]) -> None:
    """Raises UsageError for one that is not SAMPLER:STEPS or SAMPLER:STEPS:GRID_POWER."""
    for cell in cells:
        if not re.fullmatch(r"[a-z_]+:[0-9]+(:[0-9]*\.?[0-9]+)?", cell):
            raise UsageError(f"--cells {cell!r}: expected SAMPLER:STEPS such as ddim:50, or ddim:50:0.5")


def with_cell(system: System, cell: str) -> System:
    """The same run sampled in another way; UsageError or DiffusionError for one that the method does not have."""
    name, steps, *power = cell.split(":")
    method, usual = system.options.method.method, system.options.sampling
    if name not in METHODS[method].samplers:
        raise UsageError(f"--cells {cell}: --method {method} has the samplers {', '.join(METHODS[method].samplers)}")
    grid_power = float(*power) if power else usual.grid_power
    sampling = replace(usual, sampler=name, sampling_timesteps=int(steps), grid_power=grid_power)
    chosen = replace(system, options=replace(system.options, sampling=sampling))
    _ = chosen.times  # refuses a number of steps that the process cannot take
    return chosen


def score_cell(system: System, chosen: System, seed: int, strategy: str, folder: Path) -> dict[str, Scores]:
    """The rows of a cell under one seed, from `folder` where it holds them already."""
    options = chosen.options
    asked = {"strategy": strategy, "samples": options.run.num_samples}
    asked |= {"sampling": vars(options.sampling), "metrics": vars(options.metrics)}
    made = folder / "cell.json"
    if made.is_file():
        asked_before, rows = read(made, lambda found: (found["asked"], as_scores(found["rows"])))
        if asked_before == asked:
            return rows
    started, count = time.monotonic(), asked["samples"]
    samples = sample(chosen, count, seed, strategies=[strategy])
    seconds = (time.monotonic() - started) / count
    suite = system.suite(system.corpus.test, seed)
    rows = {HUMAN: suite.human_row(count), strategy: suite.score(samples.texts[strategy])}
    rows[strategy]["seconds_per_sample"] = seconds
    samples.write_strategy(strategy, folder / f"{strategy}.jsonl")
    report.write_json(made, {"asked": asked, "rows": rows})
    return rows


def main() -> None:
    argv = [*sys.argv[1:], "--eval_test"]
    *groups, curves = parse([*GROUPS, CurveOptions], argv, __doc__)
    options = Options.from_groups(groups, argv)
    if options.run.dry_run:
        return dry_run(options, [])
    system, step = load_system(options)
    strategy = curves.strategy or system.space.strategies[0]
    if strategy not in system.space.strategies:
        raise UsageError(f"--strategy {strategy!r} is not one of: {', '.join(system.space.strategies)}")
    run_options = system.options.run
    folder = Path(run_options.output_dir or run_options.resume_dir) / "evaluation" / f"curves_step_{step:08d}"
    cells = {cell: with_cell(system, cell) for cell in curves.cells}
    rows: dict[str, Scores] = {}
    for cell, chosen in cells.items():
        by_seed = []
        for seed in curves.seeds:
            note(f"{cell}, seed {seed}")
            by_seed.append(score_cell(system, chosen, seed, strategy, folder / cell.replace(":", "_") / f"seed_{seed}"))
        rows.setdefault(HUMAN, report.aggregate([found[HUMAN] for found in by_seed]))
        rows[cell.replace(":", " ")] = report.aggregate([found[strategy] for found in by_seed])
        write_rows(folder, rows)
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    print(f"{folder}\n\n{report.table(rows, columns, human=HUMAN)}", flush=True)


if __name__ == "__main__":
    run(main)
