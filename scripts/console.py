"""What is said to the person at the terminal."""

import sys


def note(message: str) -> None:
    """One line for the person at the terminal or the job's log."""
    print(message, file=sys.stderr, flush=True)
