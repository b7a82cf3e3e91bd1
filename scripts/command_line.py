"""The command line: dataclasses parsed into one flat list of flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import HfArgumentParser

from scripts.errors import UsageError

# Flags that the reference system reads and then ignores; here they would be as dead, so they are refused.
REFUSED = {
    "amp": "it never had an effect; use --mixed_precision bf16 or fp16",
    "corruption_prob": "it never had an effect; leave it out",
}


class OneLineParser(HfArgumentParser):
    """An HfArgumentParser whose complaints are one line each and name the choices."""

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")


def parse(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None) -> tuple:
    """Parses `argv` into one object per dataclass; a wrong value, an unknown or a shortened flag raises UsageError."""
    summary = (description or "").split("\n\n")[0]
    parser = OneLineParser(dataclass_types, description=summary, allow_abbrev=False)
    argv = sys.argv[1:] if argv is None else list(argv)
    for flag in given_flags(argv) & REFUSED.keys():
        raise UsageError(f"--{flag} is refused: {REFUSED[flag]}")
    *parsed, unknown = parser.parse_args_into_dataclasses(
        argv,
        return_remaining_strings=True,
        look_for_args_file=False,  # a file of flags lying beside the script must not change a run unseen
    )
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r}; expected the flags that --help lists")
    return tuple(parsed)


def given_flags(argv: Sequence[str]) -> set[str]:
    """Names of the flags on a command line."""
    return {token[2:].split("=")[0].replace("-", "_").removeprefix("no_") for token in argv if token.startswith("--")}
