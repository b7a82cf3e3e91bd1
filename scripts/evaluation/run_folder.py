"""What evaluations leave in a run folder, read back: rows of scores, seconds a sample, size."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from latent_models.codec import first_line
from offline_metrics.scores import Scores
from scripts.job.errors import UsageError
from scripts.job.reading import read_json

IMPORTED = "imported.json"  # of a run made of published weights: where they are from
WRITTEN = "what an evaluation writes: remove it and evaluate again"

# What a comparison shows of a run, where it was measured.
COLUMNS = (
    "nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character", "bleu", "rouge_l", "div_4",
    "candidate_self_bleu4", "corpus_perplexity", "unigram_entropy", "pooled_unigram_entropy", "mauve", "diversity",
    "self_bleu4", "memorization", "acceptance", "mean_words", "seconds_per_sample", "parameters",
)  # fmt: skip


def scores(path: Path) -> dict[str, Scores]:
    """The rows of a scores file; none where there is no file."""
    return read(path, as_scores) if path.is_file() else {}


def as_scores(found: Any) -> dict[str, Scores]:
    """The rows of a record, for `read`."""
    rows = {_row_name(name): Scores.from_record(record) for name, record in found.items()}
    for value in (value for row in rows.values() for value in row.values()):
        if type(value) not in (int, float):
            raise TypeError(f"{value!r} is no number")
    for note in (note for row in rows.values() for note in row.notes.values()):
        if not isinstance(note, str):
            raise TypeError(f"{note!r} is no reason")
    return rows


def _row_name(name: str) -> str:
    """The way of writing texts that a row is of: their file is called by it too, and lies beside."""
    if name != Path(name).name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a row")
    return name


def seconds_per_sample(folder: Path, row: str) -> dict[str, float]:
    """Seconds a sample of a row over all seeds of an evaluation, where they were taken.

    They are those of making texts and writing them as the row has it; of older evaluations, of all rows together.
    """

    def timing(found: Any) -> tuple[float, int] | None:
        seconds, samples = found["seconds"], found["samples"]
        if isinstance(seconds, dict):
            if row not in seconds:
                return None
            seconds = seconds[row]
        if type(seconds) not in (int, float) or type(samples) is not int or seconds < 0 or samples < 1:
            raise TypeError(f"{seconds!r} seconds of {samples!r} samples")
        return seconds, samples

    timings = [read(path, timing) for path in sorted(folder.glob("seed_*/timing.json"))]
    if not timings or None in timings:
        return {}
    seconds, made = map(sum, zip(*timings, strict=True))
    return {"seconds_per_sample": seconds / made}


def read(path: Path, form: Callable[[Any], Any]) -> Any:
    """What `form` makes of a JSON file; UsageError for one that an evaluation did not write."""
    try:
        return form(read_json(path, WRITTEN))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read ({error!r}); expected {WRITTEN}") from None


def parameters(checkpoint: Path) -> int:
    """How many numbers the averaged weights are, which an exported run has too."""
    path = checkpoint / "ema.safetensors"
    try:
        with safe_open(path, "pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys() if key.startswith("ema_model.")]
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}); restore the run") from None
    return sum(map(prod, shapes))
