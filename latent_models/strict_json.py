"""JSON read strictly: what one reader takes for this and another for that is refused, with the reason."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

_INTEGERS = range(-(2**63), 2**64)  # which 64 bits hold, with or without a sign
_SHOWN = 40  # characters of what is at fault
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str) -> Any:
    """The value of a JSON text; ValueError that says in one line why there is none.

    Refused are also keys that stand twice, NaN and Infinity, numbers that neither 64 bits nor a float hold, halves of
    surrogate pairs and thousands of levels.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=_integer, parse_float=_finite, parse_constant=_no_number
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text else ""
        raise ValueError(f"{error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _SURROGATE.search(text):
        _check_pairs(value)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {ascii(doubled[:_SHOWN])} twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in _INTEGERS:
        _no_number(digits)
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        _no_number(digits)
    return value


def _no_number(digits: str) -> NoReturn:
    raise ValueError(f"{digits[:_SHOWN]} is no number that can be held")


def _check_pairs(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, \\u{ord(error.object[error.start]):04x}") from None
