"""One table of several runs: likelihood, sample quality, time and size, beside the human row.

    python -m scripts.compare --runs saved_models/e2e/A saved_models/e2e/B [--output_dir FOLDER]

Reads what --eval_test and --ppl_eval wrote into each run folder; evaluate first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from safetensors import safe_open

from diffusion.training import checkpoint
from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.errors import UsageError, run
from scripts.evaluation import HUMAN, write_rows
from scripts.options import parse

COLUMNS = (
    "nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character", "bleu", "rouge_l", "div_4",
    "candidate_self_bleu4", "corpus_perplexity", "unigram_entropy", "mauve", "diversity", "self_bleu4", "memorization",
    "acceptance", "mean_words", "seconds_per_sample", "parameters",
)  # fmt: skip


@dataclass
class CompareOptions:
    _argument_group_name: ClassVar[str] = "comparison"

    runs: list[str] = field(default_factory=list, metadata={"help": "run folders, in the order of the rows"})
    output_dir: str | None = field(default=None, metadata={"help": "also write scores.json and table.md there"})

    def __post_init__(self):
        if not self.runs:
            raise UsageError("expected --runs, the folders to compare")


def rows_of(run_dir: Path) -> dict[str, Scores]:
    """The rows of a run, named by the folder and the way of writing texts; the human row under its own name."""
    newest = checkpoint.find_checkpoint(run_dir)
    step = checkpoint.step_of(newest)
    scored = run_dir / "evaluation" / f"test_step_{step:08d}"
    rows = _scores(scored / "scores.json")
    if not rows:
        raise UsageError(f"{scored}: no scores; run --eval_test --resume_dir {run_dir} first")
    bounds = next(iter(_scores(run_dir / "evaluation" / f"likelihood_step_{step:08d}" / "scores.json").values()), {})
    facts = {"parameters": _parameters(newest) / 1e6, "seconds_per_sample": _seconds(scored)}
    own = {name: row for name, row in rows.items() if name != HUMAN}
    named = {}
    for name, row in own.items():
        title = run_dir.name if len(own) == 1 else f"{run_dir.name}, {name}"
        named[title] = Scores({**bounds, **row, **facts}, row.notes)
    return {HUMAN: rows[HUMAN], **named}


def _scores(path: Path) -> dict[str, Scores]:
    return {name: Scores.from_record(record) for name, record in _json(path).items()} if path.is_file() else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); evaluate the run again") from None


def _parameters(newest: Path) -> int:
    with safe_open(newest / "model.safetensors", "pt") as tensors:
        return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())


def _seconds(folder: Path) -> float:
    """Seconds a sample over all seeds."""
    timings = [_json(path) for path in sorted(folder.glob("seed_*/timing.json"))]
    made = sum(timing["samples"] for timing in timings)
    return sum(timing["seconds"] for timing in timings) / made if made else float("nan")


def main() -> None:
    (options,) = parse([CompareOptions], description=__doc__)
    rows: dict[str, Scores] = {}
    for each in options.runs:
        for name, row in rows_of(Path(each)).items():
            rows.setdefault(name, row)
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    print(report.table(rows, columns, human=HUMAN))
    if options.output_dir is not None:
        write_rows(Path(options.output_dir), rows)


if __name__ == "__main__":
    run(main)
