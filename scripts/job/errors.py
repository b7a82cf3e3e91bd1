"""What a user can do wrong ends in one line and a non-zero exit, never in a traceback."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch

from diffusion.process import DiffusionError
from diffusion.training.signals import Stopped, listening
from latent_models.codec import ModelError, first_line
from latent_models.corpora import CorpusError
from offline_metrics.errors import MetricError
from scripts.job.console import quiet_libraries, shown


class UsageError(Exception):
    """A wrong option or a wrong file, told in one line."""


class Problems(Exception):
    """Several things wrong at once, one line each."""

    def __init__(self, lines: list[str]):
        super().__init__("; ".join(lines))
        self.lines = lines


class PlainParser(argparse.ArgumentParser):
    """A parser without dataclasses whose complaints are one line each."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


USER_ERRORS = (UsageError, CorpusError, ModelError, DiffusionError, MetricError)
EXIT_USER_ERROR = 2
FULL = (
    "the memory of the GPU is full: take a smaller --train_batch_size with as many more --gradient_accumulation_steps, "
    "which trains alike; for sampling a smaller --eval_batch_size, for scores a smaller --metric_batch_size"
)
EXIT_UNREAD = 128 + signal.SIGPIPE  # what a shell says of programs that such a reader ends


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a user's error becomes one line on standard error and exit status 2.

    Status 75: a signal asked to stop what is `going_on`, and the same command, or --resume_training, goes on. 130:
    Ctrl-C did; 138 and 143: SIGUSR1 or SIGTERM did, and the same command begins anew. 141: whoever read the output
    stopped reading.
    """
    quiet_libraries()
    try:
        with listening():  # so that whatever is stopped clears away what it had begun
            main()
            print(end="", flush=True)  # that nobody reads it is to be found here, not as Python leaves
    except USER_ERRORS as error:
        _leave(str(error))
    except Problems as problems:
        _leave(*problems.lines)
    except BrokenPipeError:  # whoever reads what is printed, `head` say, has seen enough
        with suppress(OSError, ValueError):  # what is still to be printed at the end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_UNREAD) from None
    except OSError as error:  # a full disk, a folder without permission: nothing that we could foresee
        if error.strerror is None:
            raise
        _leave(f"{error.filename or 'reading or writing failed'}: {error.strerror}; check the disk and permissions")
    except Stopped as stopped:
        left = "what was done is on disk" if stopped.goes_on else "the same command begins anew"
        print(f"stopped by a signal; {left}", file=sys.stderr)
        gc.freeze()  # else seconds go by while Python looks for garbage in all libraries, and someone waits
        raise SystemExit(stopped.status) from None
    except torch.OutOfMemoryError as error:
        _leave(f"{FULL} ({first_line(error)})")
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        _leave(f"--compile: the trunk cannot be compiled here ({first_line(error)}); leave it out")


@contextmanager
def going_on() -> Iterator[None]:
    """For what keeps as it goes what it has done: stopped within, the same command, or --resume_training, goes on."""
    try:
        yield
    except Stopped as stopped:
        stopped.goes_on = True
        raise


def _leave(*messages: str) -> NoReturn:
    for message in messages:
        print(f"error: {shown(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)
