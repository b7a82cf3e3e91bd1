"""Who may work where: of several processes one, by a lock that the system drops however the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diffusion.training.checkpoint import checkpoints
from scripts.job.console import note
from scripts.job.errors import UsageError

TRAINING = ".training.lock"


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[BinaryIO | None]:
    """The lock file `path`, locked (flock) and there only meanwhile; a process that is killed leaves it unlocked.

    Where another process has it: says `waiting` and waits, or gives None if there is nothing to say. On a file system
    without locks nobody is kept from anything.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    yield None
                    return
                note(waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
            if _is_at(file, path):  # else whoever had it has removed it
                try:
                    yield file
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def training_in(run_dir: Path) -> Iterator[None]:
    """Nobody else trains in the run folder meanwhile, else UsageError; so is an OSError, which tells what is left."""
    with locked(run_dir / TRAINING) as lock:
        if lock is None:
            raise UsageError(f"{run_dir}: another process is training in it; wait for that, or choose another folder")
        try:
            yield
        except OSError as error:
            there = checkpoints(run_dir)
            if error.strerror is None or not there:
                raise
            raise UsageError(
                f"{error.filename or run_dir}: {error.strerror}; the last good checkpoint is {there[-1].name}: put "
                f"the disk right and go on with --resume_training --resume_dir {run_dir}"
            ) from error
