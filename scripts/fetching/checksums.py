"""A record of files: the size and SHA-256 of each, so that a damaged or foreign one is told from what was put there."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from diffusion.training.files import write_text
from scripts.job.errors import UsageError
from scripts.job.reading import read_json


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record that holds `files`: Sums; whole or not at all."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path, *texts: str) -> dict[str, Any] | None:
    """A record that also holds `texts`, None where there is none; raises UsageError for a damaged one."""
    if not os.path.lexists(path):
        return None
    expected = "a record of files: restore it, or the whole folder"
    record = read_json(path, expected)
    try:
        complete = all(_is_content(name, its) for name, its in record["files"].items())
        complete = complete and all(isinstance(record[key], str) for key in texts)
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UsageError(f"{path}: not as it should be; expected {expected}")
    return record


def _is_content(name: str, its: Any) -> bool:
    """Whether a line of a record tells of a file within the folder."""
    within = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\0" not in name
    return within and type(its["bytes"]) is int and isinstance(its["sha256"], str)
