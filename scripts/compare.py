"""One table of several runs: likelihood, sample quality, time and size, beside the human row.

    python -m scripts.compare --runs saved_models/e2e/A saved_models/e2e/B [--output_dir FOLDER]

Reads what --eval_test and --ppl_eval wrote into each run folder; evaluate first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open

from diffusion.training import checkpoint
from offline_metrics import report
from offline_metrics.scores import Scores
from scripts.build import check_writable
from scripts.console import note
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


def titles(runs: list[Path]) -> list[str]:
    """What each run is called: its folder, or its path where two folders have one name."""
    names = [path.absolute().name for path in runs]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(runs, names, strict=True)]


def rows_of(run_dir: Path, title: str) -> dict[str, Scores]:
    """The rows of a run, named by its title and the way of writing texts; the human row under its own name."""
    newest = checkpoint.find_checkpoint(run_dir)
    step = checkpoint.step_of(newest)
    scored = run_dir / "evaluation" / f"test_step_{step:08d}"
    rows = _scores(scored / "scores.json")
    if HUMAN not in rows:
        raise UsageError(f"{scored}: no scores; run --eval_test --resume_dir {run_dir} first")
    likelihood = _scores(run_dir / "evaluation" / f"likelihood_step_{step:08d}" / "scores.json")
    bounds = next(iter(likelihood.values()), Scores())
    facts = {"parameters": _parameters(newest) / 1e6, **_seconds(scored)}
    named = {HUMAN: rows.pop(HUMAN)}
    for name, row in rows.items():
        own = title if len(rows) == 1 else f"{title}, {name}"
        named[own] = Scores({**bounds, **row, **facts}, {**bounds.notes, **row.notes})
    return named


def _scores(path: Path) -> dict[str, Scores]:
    """The rows of a scores file; none where there is no file."""
    return _read(path, _as_scores) if path.is_file() else {}


def _as_scores(found: Any) -> dict[str, Scores]:
    return {name: Scores.from_record(record) for name, record in found.items()}


def _seconds(folder: Path) -> dict[str, float]:
    """Seconds a sample over all seeds, where they were taken."""
    timings = [_read(path, itemgetter("seconds", "samples")) for path in sorted(folder.glob("seed_*/timing.json"))]
    if not timings:
        return {}
    seconds, made = map(sum, zip(*timings, strict=True))
    return {"seconds_per_sample": seconds / made}


def _read(path: Path, form: Callable[[Any], Any]) -> Any:
    """What `form` makes of a JSON file; UsageError for one that an evaluation did not write."""
    try:
        return form(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not what an evaluation writes ({error}); evaluate the run again") from None


def _parameters(newest: Path) -> int:
    """How many numbers the averaged weights are, which an exported run has too."""
    path = newest / "ema.safetensors"
    try:
        with safe_open(path, "pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys() if key.startswith("ema_model.")]
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); restore the run") from None
    return sum(map(prod, shapes))


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
