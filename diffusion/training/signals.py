"""Signals that ask a job to stop in a way that it can go on from: SIGTERM and SIGUSR1 of batch systems, and Ctrl-C.

Imports nothing that takes time: the entry scripts hear from their first line on, before the libraries are loaded.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not done, try again
SAME_REQUEST = 1.0  # seconds; a batch system tells every process of a job, a parent passes it on to its child


class Stopped(BaseException):
    """The job was asked to stop. No Exception: what goes on after errors shall not go on after this.

    `number` is the signal; None: another process was told. `goes_on`: the same command begins where this one ended.
    """

    def __init__(self, number: int | None = None, goes_on: bool = False):
        self.number, self.goes_on = number, goes_on

    @property
    def status(self) -> int:
        """What the process ends with: a batch system may queue it again where it goes on, and only there."""
        if self.number is None or (self.goes_on and self.number != signal.SIGINT):
            return EXIT_STOPPED
        return 128 + self.number  # as shells say it


class StopSignals:
    """Which signal has asked to stop: ends work at once by raising Stopped, but waits while it is `deferred`.

    Without `listening` nothing is ever asked. A second signal ends the process as if nobody had listened.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._asked_at = 0.0
        self._is_deferred = False

    @contextmanager
    def deferred(self, is_deferred: bool = True) -> Iterator[None]:
        """Within it a signal only sets `asked`; or, where `is_deferred` is False, raises again, an earlier one too."""
        before, self._is_deferred = self._is_deferred, is_deferred
        try:
            if self.asked and not is_deferred:
                raise Stopped(self.asked)
            yield
        finally:
            self._is_deferred = before

    def hear(self, number: int, frame: object = None) -> None:
        """The handler of the signals."""
        if not self.asked:
            self.asked, self._asked_at = number, time.monotonic()
            if not self._is_deferred:
                raise Stopped(number)
            if number == signal.SIGINT:  # someone waits at the terminal
                os.write(2, b"\nstopping when what is done is on disk; Ctrl-C once more stops at once\n")
        elif time.monotonic() - self._asked_at > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def listening() -> Iterator[StopSignals]:
    """Hears the signals while it lasts; outside the main thread, where Python allows none, it hears nothing.

    Within another one it is that one, for whom a request told twice is still the same.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, StopSignals):
        yield outer
        return
    stop, before = StopSignals(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop.hear) for number in STOP_SIGNALS if not _is_ignored(number)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_when_asked() -> None:
    """Until something else listens a signal ends the process, with the status of one that goes on: nothing is begun."""
    for number in STOP_SIGNALS:
        if not _is_ignored(number):
            signal.signal(number, lambda number, frame: os._exit(Stopped(number, goes_on=True).status))


def _is_ignored(number: int) -> bool:
    """Whether Ctrl-C is not meant for this process: a shell starts those in the background so."""
    return number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN
