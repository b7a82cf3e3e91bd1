"""Files and folders that appear whole or not at all, and the checksums that tell whether they still are whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

Sums = dict[str, dict[str, Any]]  # path within the folder -> {"bytes": size, "sha256": checksum}


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A path beside `place`: the file or folder made there takes its place once it is on the disk; else nothing stays.

    A folder takes only a free place. An OSError, of a full disk for one, names the file as it would have been called.
    What a killed process of this host left of the same file is removed.
    """
    if place.is_symlink():
        place = place.resolve()
    if place.exists() and not (place.is_file() or place.is_dir()):  # a pipe, /dev/null: nothing to be replaced
        yield place
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    own = f".{place.name}.{socket.gethostname()}-"
    for left_over in place.parent.glob(f"{escape(own)}*"):
        if not _is_another(left_over.name.removeprefix(own)):
            _remove(left_over)
    beside = place.with_name(f"{own}{os.getpid()}")
    try:
        yield beside
        _to_disk(beside)
        os.replace(beside, place)
        _to_disk(place.parent, alone=True)
    except OSError as error:
        if error.strerror is not None:
            error.filename = str(error.filename or place).replace(str(beside), str(place))
        raise
    finally:
        _remove(beside)


def write_text(place: Path, text: str) -> None:
    """Writes a file of UTF-8, whole or not at all."""
    with replacing(place) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file; OSError where the disk does not take it."""
    with disk_errors(path):
        save_file(tensors, path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError that safetensors hides, where the disk does not take what is written at `path`."""
    try:
        yield
    except SafetensorError as error:
        reason = re.search(r"\(os error (\d+)\)", str(error))
        if reason is None:
            raise
        raise OSError(int(reason[1]), os.strerror(int(reason[1])), str(path)) from error


def _is_another(process: str) -> bool:
    """Whether another process of this number runs here; True for what is no number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return int(process) != os.getpid()  # in containers, one dead process after the other had our number


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path, alone: bool = False) -> None:
    """Waits until a file, or a folder and (unless `alone`) all in it, would survive the machine."""
    inside = [] if alone or not path.is_dir() else sorted(path.rglob("*"), reverse=True)
    for each in (*inside, path):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:
            if not each.is_dir():  # which some file systems cannot sync
                raise
        finally:
            os.close(handle)


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
