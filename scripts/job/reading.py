"""Small files as people and jobs leave them: UTF-8 text and JSON, read whole or refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from latent_models.strict_json import parse
from scripts.job.errors import UsageError


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a UTF-8 file, each ended by "\\n" or "\\r\\n"; a byte order mark is dropped.

    UsageError names the file, the line where one is at fault, and what was `expected`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would block for ever
            raise UsageError(f"{path}: cannot be read (not a file); expected {expected}")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); expected {expected}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        content, start = error.object, error.start  # without the byte order mark
        line = content.count(b"\n", 0, start) + 1
        raise UsageError(
            f"{path}:{line}: cannot be read (invalid UTF-8: byte 0x{content[start]:02x}); expected {expected}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"{path}:{line}: cannot be read (holds a NUL byte); expected {expected}")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path, expected: str) -> Any:
    """The value of a JSON file; UsageError as of `read_lines`."""
    text = "\n".join(read_lines(path, expected))
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected {expected}") from None
