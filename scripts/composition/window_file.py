"""window.json of scripts.measure_window, which training reads for --time_density and keeps in its run folder."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from diffusion.window import Levels
from offline_metrics import report
from scripts.job.errors import UsageError
from scripts.job.reading import read_json

WINDOW = "window.json"
EXPECTED = "a window.json that scripts.measure_window wrote"


def levels_of(window: str | None, run_dir: Path | None) -> Levels | None:
    """What times are drawn by, where a --window is named: an earlier run has its own copy."""
    return None if window is None else read_levels(Path(window) if run_dir is None else run_dir / WINDOW)


def read_levels(path: Path) -> Levels:
    """What was measured; UsageError where the file does not say it."""
    found = read_json(path, EXPECTED)
    try:
        start = _number(found["window"]["start"])
        gamma, errors = ([_number(each[name]) for each in found["levels"]] for name in ("gamma", "squared_error"))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read ({error!r}); expected {EXPECTED}") from None
    if sum(g >= start for g in gamma) < 2 or any(b <= a for a, b in pairwise(gamma)) or min(errors) < 0:
        raise UsageError(f"{path}: levels do not rise, or fewer than two lie above the start; expected {EXPECTED}")
    if errors[-1] <= errors[0]:
        raise UsageError(f"{path}: the error at the highest noise is no larger than at the lowest; expected {EXPECTED}")
    return Levels(*(torch.tensor(each, dtype=torch.float64) for each in (gamma, errors)), start)


def write_levels(path: Path, levels: Levels) -> None:
    """The part of a window.json that `read_levels` reads."""
    pairs = zip(levels.gamma.tolist(), levels.squared_error.tolist(), strict=True)
    rows = [{"gamma": gamma, "squared_error": error} for gamma, error in pairs]
    report.write_json(path, {"window": {"start": levels.start}, "levels": rows})


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)
