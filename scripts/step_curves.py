"""Quality against ways of sampling: samples of a trained run by several samplers, steps and dials, scored alike.

    python -m scripts.step_curves --resume_dir RUN --cells ddim:250 ddim:25 ancestral:25:0.5 [--num_samples 1000]
    python -m scripts.step_curves --resume_dir RUN --cells temperature=0.7 temperature=0.8 temperature=0.9

A cell that was scored before is kept: a call that was cut short goes on, and one of other flags is refused.
scripts.frontier draws what several runs gave as curves of quality against diversity, beside human text.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.process import check_seed
from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.composition.build import load_system, strategy_of
from scripts.composition.dry_run import dry_run
from scripts.composition.options import GROUPS, Options, parse, reading_a_run
from scripts.evaluation.asked import check_alike, identities
from scripts.evaluation.cells import asked_of_cell, by_cell, check_cells, place_of, score_cell, title, with_cell
from scripts.evaluation.evaluation import HUMAN, TEST_SEEDS, write_rows
from scripts.job.console import note
from scripts.job.errors import UsageError, going_on, run

COLUMNS = ("mauve", "corpus_perplexity", "diversity", "memorization", "acceptance", "mean_words", "seconds_per_sample")


@dataclass
class CurveOptions:
    """Which samplers at how many steps, over which seeds."""

    _argument_group_name: ClassVar[str] = "curves"

    cells: list[str] = field(
        default_factory=list,
        metadata={"help": "ways to sample: SAMPLER:STEPS, SAMPLER:STEPS:GRID_POWER, or FLAG=VALUE[,FLAG=VALUE ...]"},
    )
    strategy: str | None = field(
        default=None, metadata={"help": "how latents are decoded: beam (default), nucleus or greedy"}
    )
    seeds: list[int] = field(default_factory=lambda: list(TEST_SEEDS), metadata={"help": "seeds of each cell"})

    def __post_init__(self):
        if not self.cells:
            raise UsageError("expected --cells, such as ddim:50 or temperature=0.8")
        check_cells(self.cells)
        for seed in self.seeds:
            check_seed("seeds", seed)


@going_on()
def main() -> None:
    argv = reading_a_run(sys.argv[1:], "eval_test")
    *groups, curves = parse([*GROUPS, CurveOptions], argv, __doc__)
    options = Options.from_groups(groups, argv)
    strategy = strategy_of(options, curves.strategy)
    for cell in curves.cells:
        by_cell(options, cell)
    if options.run.dry_run:
        return dry_run(options, [])
    system, step = load_system(options)
    run_options = system.options.run
    folder = Path(run_options.output_dir or run_options.resume_dir) / "evaluation" / f"curves_step_{step:08d}"
    cells, same = {}, identities(system)
    for cell in curves.cells:  # all of which can be, and were not made otherwise, before any is sampled
        chosen = with_cell(system, cell)
        asked = asked_of_cell(chosen, same, cell, strategy)
        place = place_of(folder, cell, strategy, system.space.strategies[0])
        check_alike(place, asked)
        cells[cell] = chosen, asked, place
    rows: dict[str, Scores] = {}
    for cell, (chosen, asked, place) in cells.items():
        by_seed = []
        for seed in curves.seeds:
            note(f"{cell}, seed {seed}")
            by_seed.append(score_cell(system, chosen, seed, asked, place / f"seed_{seed}"))
        rows.setdefault(HUMAN, report.aggregate([found[HUMAN] for found in by_seed]))
        rows[title(cell)] = report.aggregate([found[strategy] for found in by_seed])
        write_rows(folder, rows)
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    print(f"{folder}\n\n{report.table(rows, columns, human=HUMAN)}", flush=True)


if __name__ == "__main__":
    run(main)
