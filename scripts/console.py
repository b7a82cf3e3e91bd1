"""What is said to the person at the terminal."""

import sys

from scripts.processes import is_main


def note(message: str) -> None:
    """One line for the person at the terminal or the job's log, from one of the processes."""
    if is_main():
        print(message, file=sys.stderr, flush=True)
