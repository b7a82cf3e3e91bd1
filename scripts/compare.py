"""One table of several runs: likelihood, sample quality, time and size, beside the human row.

    python -m scripts.compare --runs saved_models/e2e/A saved_models/e2e/B [--output_dir FOLDER]

Reads what --eval_test and --ppl_eval wrote into each run folder; evaluate first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.training import checkpoint
from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.composition.checks import check_writable
from scripts.composition.options import parse
from scripts.evaluation.evaluation import HUMAN, write_rows
from scripts.evaluation.run_folder import COLUMNS, parameters, scores, seconds_per_sample
from scripts.job.console import note
from scripts.job.errors import UsageError, run


@dataclass
class CompareOptions:
    _argument_group_name: ClassVar[str] = "comparison"

    runs: list[str] = field(default_factory=list, metadata={"help": "run folders, in the order of the rows"})
    output_dir: str | None = field(default=None, metadata={"help": "also write scores.json and table.md there"})

    def __post_init__(self):
        if not self.runs:
            raise UsageError("expected --runs, the folders to compare")


def titles(runs: list[Path]) -> list[str]:
    """What each run is called: its folder, or its path where two folders have one name."""
    names = [path.absolute().name for path in runs]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(runs, names, strict=True)]


def rows_of(run_dir: Path, title: str) -> dict[str, Scores]:
    """The rows of a run, named by its title and the way of writing texts; the human row under its own name."""
    newest = checkpoint.find_checkpoint(run_dir, groups=("ema",))
    step = checkpoint.step_of(newest)
    scored = run_dir / "evaluation" / f"test_step_{step:08d}"
    rows = scores(scored / "scores.json")
    if HUMAN not in rows:
        raise UsageError(f"{scored}: no scores; run --eval_test --resume_dir {run_dir} first")
    likelihood = scores(run_dir / "evaluation" / f"likelihood_step_{step:08d}" / "scores.json")
    bounds = next(iter(likelihood.values()), Scores())
    facts = {"parameters": parameters(newest) / 1e6}
    named = {HUMAN: rows.pop(HUMAN)}
    for name, row in rows.items():
        own = title if len(rows) == 1 else f"{title}, {name}"
        seconds = seconds_per_sample(scored, name)
        named[own] = Scores({**bounds, **row, **facts, **seconds}, {**bounds.notes, **row.notes})
    return named


def main() -> None:
    (options,) = parse([CompareOptions], description=__doc__)
    if options.output_dir is not None:
        check_writable("output_dir", options.output_dir)
    runs = [Path(each) for each in options.runs]
    rows: dict[str, Scores] = {}
    for run_dir, title in zip(runs, titles(runs), strict=True):
        found = rows_of(run_dir, title)
        if rows.setdefault(HUMAN, found[HUMAN]).get("total_words") != found[HUMAN].get("total_words"):
            note(f"warning: {run_dir}: scored beside other human texts than {runs[0]}; evaluate both on the same texts")
        rows |= {**found, HUMAN: rows[HUMAN]}
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    print(report.table(rows, columns, human=HUMAN))
    if options.output_dir is not None:
        write_rows(Path(options.output_dir), rows)


if __name__ == "__main__":
    run(main)
