"""Files that appear whole or not at all, whoever else writes them."""

import os
import socket
from glob import escape
from pathlib import Path
from threading import get_native_id


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the parts one after the other beside `path`, where the file appears once it is on the disk.

    Removes what a killed process of this host left of the same file. OSError, naming the file, where it cannot be
    written; what was there stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{path.name}.{socket.gethostname()}-"
    for left_over in path.parent.glob(f"{escape(own)}*"):
        if not _is_running(left_over.name.removeprefix(own)):
            left_over.unlink(missing_ok=True)
    beside = path.with_name(f"{own}{os.getpid()}-{get_native_id()}")
    try:
        with beside.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.strerror is not None:
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def _is_running(writer: str) -> bool:
    """Whether the process of "process-thread" runs here; True for what is no number."""
    try:
        os.kill(int(writer.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True
