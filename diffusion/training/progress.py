"""Progress bars that know whether someone watches them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS_IN_A_LOG = 30  # between two drawings of a bar, each of which is a line there


def progress_bar(items: Iterable | None, title: str, **settings) -> tqdm:
    """A bar on standard error: as often as tqdm draws it on a terminal, now and then in a log.

    Unless TQDM_MININTERVAL, which tqdm reads, says how often.
    """
    if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
        settings["mininterval"] = SECONDS_IN_A_LOG
    return tqdm(items, title, file=sys.stderr, **settings)
