"""A folder that many processes may want and one of them makes: it appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Whose unfinished folder it is: locks of some file systems reach no further than one host.
OWNER = f"{socket.gethostname()}-{os.getuid()}"


@contextmanager
def claimed(place: Path, first_file: str, waiting: str) -> Iterator[BinaryIO | None]:
    """`first_file`, empty and open, in a hidden folder that becomes `place` in the end; None if another made it.

    The file stays locked (flock) meanwhile: a second process of this host says `waiting` on standard error and waits.
    The system drops the lock of a process that dies, however it dies, so the next one to make a folder here uses or
    removes what it left. On several hosts at once, or without locks, each makes its own and the first done stays; what
    was left by another host, by another user or without locks is not told from what is in use, and stays too.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    shared = place.with_name(f".{place.name}.{OWNER}")
    _remove_left_over(shared, first_file)
    try:
        with _open_locked(shared, first_file, waiting) as file:
            hidden = Path(file.name).parent
            try:
                if place.is_dir():
                    yield None
                else:
                    file.truncate()
                    yield file
                    file.flush()
                    _move(hidden, place)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:  # of a full disk, for one, which does not say where
        if error.strerror is not None:
            error.filename = str(error.filename or place).replace(str(shared), str(place))
        raise


def _open_locked(shared: Path, name: str, waiting: str) -> BinaryIO:
    """The file of the shared folder, once no other process has it; where nothing can be locked, one of its own."""
    while True:
        with suppress(FileNotFoundError):  # whoever had the folder has moved or removed it
            with suppress(FileExistsError):  # which exist_ok would raise if the folder has just been moved
                shared.mkdir()
            (shared / name).touch()
            file = (shared / name).open("r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(waiting, file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                file.close()
                shutil.rmtree(shared, ignore_errors=True)
                own = shared.with_name(f"{shared.name}-{os.getpid()}")
                own.mkdir(exist_ok=True)
                return (own / name).open("w+b")
            if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                return file
            file.close()


def _remove_left_over(shared: Path, name: str) -> None:
    """Removes what dead processes of this host left of other folders; that of `shared` will be used."""
    for hidden in shared.parent.glob(f".*.{OWNER}"):
        if hidden != shared:
            with suppress(OSError), (hidden / name).open("r+b") as file:  # locked: someone is at work there
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(hidden)


def _move(hidden: Path, place: Path) -> None:
    """Renames the folder when all of it is on the disk, so that no crash leaves half of it; the first one stays."""
    for path in (*hidden.iterdir(), hidden):
        to_disk(path)
    try:
        os.replace(hidden, place)
    except OSError:
        if not place.is_dir():  # else another host was faster
            raise
    to_disk(place.parent)


def to_disk(path: Path) -> None:
    """Waits until a file or a folder (not what is in it) would survive the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # which some file systems cannot sync
            raise
    finally:
        os.close(handle)
