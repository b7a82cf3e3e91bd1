"""Results that rest on fixed texts alone, kept on disk: each in a file named by a checksum of all that made it.

The files may be deleted at any time, one or all; what is missing is made anew.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from offline_metrics.files import write_whole

Arrays = dict[str, np.ndarray]
DIGEST = 32  # a file is the SHA-256 of an .npz without pickle, then the .npz
LIBRARIES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "mauve-text", "faiss-cpu", "scikit-learn", "numpy",
    "scipy", "spacy",
)  # fmt: skip


class ResultStore:
    """Named arrays, kept in `folder`; nowhere if that is None. What is wrong with a file is told to `note`, not raised.

    Any number of processes may share a folder: a file appears whole or not at all.
    """

    def __init__(self, folder: Path | None = None, note: Callable[[str], None] = warnings.warn) -> None:
        self.folder = folder
        self.note = note
        self._writable = True

    def arrays(self, kind: str, made_of: Any, make: Callable[[], Arrays]) -> Arrays:
        """What `make()` returned before for the same `kind` and `made_of` (anything JSON can hold), else returns now.

        This package's code and its libraries count as part of `made_of`; hardware and number of threads do not, so
        that results made elsewhere may differ by their rounding.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{kind}-{checksum([CODE_VERSION, made_of])[:32]}.arrays"
        found = self._read(path)
        if found is None:
            found = make()
            if self._writable:
                self._write(path, found)
        return found

    def _read(self, path: Path) -> Arrays | None:
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(f"{path}: cannot be read ({error.strerror}); made anew")
            return None
        digest, arrays = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(arrays).digest() != digest:
            self.note(f"{path}: damaged; made anew")
            return None
        try:
            with np.load(BytesIO(arrays), allow_pickle=False) as file:
                return dict(file)
        except Exception:  # whatever a foreign file makes numpy raise, such as an array that would have to be unpickled
            self.note(f"{path}: not written by this program; made anew")
            return None

    def _write(self, path: Path, arrays: Arrays) -> None:
        content = BytesIO()
        np.savez(content, **arrays)
        try:
            write_whole(path, hashlib.sha256(content.getbuffer()).digest(), content.getbuffer())
        except OSError as error:
            self._writable = False
            self.note(f"{self.folder}: cannot be written to ({error.strerror}); what is computed now is not kept")


def checksum(value: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def code_version(folder: Path) -> str:
    """Checksum of the code in a folder and of the versions of the libraries that its numbers come from."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    return checksum([sources, {name: _version(name) for name in LIBRARIES}])


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # under another name, such as faiss-gpu, or not needed
        return None


# Taken when the code is loaded: a job of many hours runs what was there then.
CODE_VERSION = code_version(Path(__file__).parent)
