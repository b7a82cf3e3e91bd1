"""What evaluations leave in a run folder, read back: rows of scores, seconds a sample, size."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from offline_metrics.scores import Scores
from scripts.errors import UsageError

# What a comparison shows of a run, where it was measured.
COLUMNS = (
    "nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character", "bleu", "rouge_l", "div_4",
    "candidate_self_bleu4", "corpus_perplexity", "unigram_entropy", "mauve", "diversity", "self_bleu4", "memorization",
    "acceptance", "mean_words", "seconds_per_sample", "parameters",
)  # fmt: skip


def scores(path: Path) -> dict[str, Scores]:
    """The rows of a scores file; none where there is no file."""
    return _read(path, _as_scores) if path.is_file() else {}


def _as_scores(found: Any) -> dict[str, Scores]:
    rows = {name: Scores.from_record(record) for name, record in found.items()}
    for value in (value for row in rows.values() for value in row.values()):
        if not isinstance(value, int | float):
            raise TypeError(f"{value!r} is no number")
    return rows


def seconds_per_sample(folder: Path) -> dict[str, float]:
    """Seconds a sample over all seeds of an evaluation, where they were taken."""
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


def parameters(checkpoint: Path) -> int:
    """How many numbers the averaged weights are, which an exported run has too."""
    path = checkpoint / "ema.safetensors"
    try:
        with safe_open(path, "pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys() if key.startswith("ema_model.")]
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); restore the run") from None
    return sum(map(prod, shapes))
