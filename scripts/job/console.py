"""What is said to the person at the terminal."""

import re
import sys

from scripts.job.processes import is_main

# Controls a terminal but newline and tab, or turns the direction of what follows.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Text with what would control the terminal written out, such as \\x1b."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def note(message: str) -> None:
    """One line for the person at the terminal or the job's log, from one of the processes."""
    if is_main():
        print(shown(message), file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """transformers shows a bar for each model it loads and a table of what a part of one leaves out.

    What is wrong with a model is told by those who load it. Commands that do without transformers are not to load it.
    """
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()


def say(text: str) -> None:
    """A result on standard output, texts of models among it: as it is, but for what a terminal would obey."""
    print(shown(text) if sys.stdout.isatty() else text, flush=True)
