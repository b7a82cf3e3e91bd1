"""Where the numbers of a run go: always `metrics.jsonl`, and W&B (offline) when asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from diffusion.process import DiffusionError
from diffusion.training.files import write_text


class Tracker(Protocol):
    def log(self, step: int, scalars: Mapping[str, Any]) -> None: ...
    def log_texts(self, step: int, name: str, texts: Sequence[str]) -> None: ...
    def close(self) -> None: ...


def _json_safe(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(line: str) -> dict[str, Any]:
    """A row; one after all steps for a line that a crash has torn."""
    with suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict) and "step" in row:
            return row
    return {"step": math.inf}


def has_scores(path: Path, step: int) -> bool:
    """Whether metrics.jsonl has the row of scores of a step, which is written when all else of its evaluation is."""
    rows = map(_row, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return any(row["step"] == step and "loss" not in row for row in rows)


class JsonlTracker:
    """One JSON object a line, on the disk at once; on resume the lines after `last_step` are taken back.

    A row that the disk does not take is an OSError, and leaves the file as it was.
    """

    def __init__(self, path: Path, last_step: int = 0):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _row(line)["step"] <= last_step]
            write_text(path, "".join(line + "\n" for line in kept))
        self.file = path.open("ab", buffering=0)

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        row = {"step": step, **{key: _json_safe(value) for key, value in scalars.items()}}
        line, end = (json.dumps(row) + "\n").encode(), self.file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self.file.write(line) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(end)
            error.filename = str(self.path)
            raise

    def log_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Texts are files of their own in a run folder, so there is nothing to do."""

    def close(self) -> None:
        self.file.close()


class WandbTracker:
    """Weights & Biases in offline mode: files under the run folder, to be synchronised elsewhere."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise DiffusionError(
                f"--wandb_name needs the package wandb ({error}); pip install wandb, or leave the flag out"
            ) from error
        self.wandb = wandb
        settings = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(
            project="text-diffusion", name=name, dir=folder, config=dict(config), mode="offline", settings=settings
        )

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        self.run.log(dict(scalars), step=step)

    def log_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        table = self.wandb.Table(columns=["text"], data=[[text] for text in texts])
        self.run.log({name: table}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker):
        self.trackers = trackers

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(step, scalars)

    def log_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        for tracker in self.trackers:
            tracker.log_texts(step, name, texts)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
