"""The command line: dataclasses parsed into one flat list of flags."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser

from scripts.job.errors import USER_ERRORS, UsageError

# Flags that the reference system reads and then ignores; here they would be as dead, so they are refused.
REFUSED = {
    "amp": "it never had an effect; use --mixed_precision bf16 or fp16",
    "corruption_prob": "it never had an effect; leave it out",
}


class OneLineParser(HfArgumentParser):
    """An HfArgumentParser whose complaints are one line each and name the choices, and whose --no_x says what it is."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        for action in self._actions:
            if action.const is False:  # which has the help of --x, and would say that it is off by default
                action.help, action.default = f"--{action.dest} false, in short", SUPPRESS

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    problems: list[str] | None = None,
) -> tuple:
    """Parses `argv` into one object per dataclass; an unknown or a shortened flag raises UsageError.

    So does a wrong value; with `problems` all of them are told there, and left at their defaults.
    """
    summary = (description or "").split("\n\n")[0]
    parser = OneLineParser(dataclass_types, description=summary, allow_abbrev=False)
    argv = sys.argv[1:] if argv is None else list(argv)
    for flag in given_flags(argv) & REFUSED.keys():
        raise UsageError(f"--{flag} is refused: {REFUSED[flag]}")
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r}; expected the flags that --help lists")
    return tuple(
        _group(kind, {each.name: getattr(values, each.name) for each in fields(kind)}, problems)
        for kind in dataclass_types
    )


def _group(kind: type, values: dict[str, Any], problems: list[str] | None) -> Any:
    try:
        return kind(**values)
    except USER_ERRORS as error:
        right = {name: value for name, value in values.items() if name not in re.findall(r"--(\w+)", str(error))}
        if problems is None or len(right) == len(values):
            raise
        problems.append(str(error))
        return _group(kind, right, problems)


def flags(values: dict[str, Any]) -> list[str]:
    """Options as a command line."""
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value that a command line gives a flag; None where it gives none."""
    found = None
    for token, following in zip(argv, [*argv, None][1:], strict=True):
        name, is_one, value = token.partition("=")
        if name == f"--{flag}":
            found = value if is_one else following
    return found


def given_flags(argv: Sequence[str]) -> set[str]:
    """Names of the flags on a command line."""
    return {token[2:].split("=")[0].replace("-", "_").removeprefix("no_") for token in argv if token.startswith("--")}
