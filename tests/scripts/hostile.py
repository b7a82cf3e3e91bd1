"""Damage as disks, editors, transfers and strangers do it."""

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

SECONDS = 30  # of the processor that any one input may take
WAIT = 600  # seconds of the clock, for what waits: a suite may be paused, or share its machine

PIECES = [
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"\x0b", b"\x1b[2J",
    "\u2028".encode(), "\x85".encode(), b" ", b"\t", b'"', b'""', b"'", b"\\", b"\\u0000", b"\\ud800",
    b"\\ud83d\\ude00", b"{", b"}", b"[", b"]", b",", b":", b"|", b"||", b"=", b"null", b"true", b"[]", b"{}",
    b"-1", b"0", b"1.5", b"NaN", b"-Infinity", b"1e999", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 4000, b"[" * 3000,
    b'{"a":' * 3000, b"../", b"/",
]  # fmt: skip
VALUE = re.compile(rb'(?<=": )("[^"]*"|-?[0-9.e-]+|true|false|null|\[\]|\{\})')
VALUES = [b"null", b"-1", b"0", b"1", b"7", b"99999", b"1e9", b"1.5", b"true", b'""', b'"x"', b"[]", b'["a"]', b"{}",
          b'{"a": 1}', b'"../../x"', b"[[0, 1]]"]  # fmt: skip
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp500")


class Hostile:
    """Unpickled as a pickle may be, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@contextmanager
def in_time() -> Iterator[None]:
    """TimeoutError where what is within hangs."""

    def late(number, frame):
        raise TimeoutError(f"still at it after {SECONDS} s of work, or {WAIT} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAIT))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@st.composite
def damaged(draw, content: bytes, near: int = 4000) -> bytes:
    """`content` with bytes flipped, lost, put in or cut off, `near` its start more often than not; or written anew."""
    if draw(st.integers(0, 9)) == 0:
        text = content.decode("utf-8", "replace")
        return draw(st.sampled_from([
            b"", b" \n\t\n", content + content, content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r"),
            *(text.encode(name, "replace") for name in ENCODINGS),
        ]))  # fmt: skip
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        reach = len(content) if draw(st.integers(0, 2)) == 0 else min(len(content), near)
        at = draw(st.integers(0, reach))
        how = draw(st.sampled_from(["put in", "flip", "lose", "cut off", "swap", "value"]))
        if how == "put in":
            content[at:at] = draw(st.sampled_from(PIECES))
        elif how == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "lose":
            del content[at : at + draw(st.integers(1, 40))]
        elif how == "cut off":
            del content[at:]
        elif how == "value" and (found := VALUE.search(content, at)):
            content[found.start() : found.end()] = draw(st.sampled_from(VALUES))
        else:
            content[at : at + draw(st.integers(1, 12))] = draw(st.sampled_from(PIECES))
    return bytes(content)


@st.composite
def damage(draw, folder: Path, names: tuple[str, ...]) -> tuple[str, str | bytes]:
    """What happens to one of the files of a folder: (its name, its new content or the kind of thing in its place)."""
    name = draw(st.sampled_from(names))
    if draw(st.integers(0, 9)) == 0:
        return name, draw(st.sampled_from(["gone", "folder", "loop"]))
    return name, draw(damaged((folder / name).read_bytes()))


def inflict(path: Path, what: str | bytes) -> None:
    """Does it to the file at `path`."""
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    elif what != "gone":
        path.write_bytes(what)


def copied(folder: Path, place: Path) -> Path:
    """The folder once more, under `place`."""
    return Path(shutil.copytree(folder, place / folder.name))
