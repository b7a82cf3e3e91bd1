"""A record of files: the size and SHA-256 of each, so that a damaged or foreign one is told from what was put there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.errors import UsageError
from scripts.reading import read_json

Sums = dict[str, dict[str, Any]]  # path within the folder -> {"bytes": size, "sha256": checksum}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path, names: Iterable[str]) -> Sums:
    """Size and checksum of the named files of a folder."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in sorted(names)}


def faults(folder: Path, expected: Sums) -> list[str]:
    """What is wrong with the files of a folder, a line for each file that is not as expected."""
    found = []
    for name, its in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif (size := path.stat().st_size) != its["bytes"]:
            found.append(f"{path}: has {size:,} bytes; expected {its['bytes']:,}")
        elif sha256(path) != its["sha256"]:
            found.append(f"{path}: SHA-256 is not {its['sha256']}")
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record that holds `files`: Sums; whole or not at all."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


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
