"""Rows of results as a table, over several runs as mean and spread, and as JSON on disk.

The spread printed after ± is `<key>_std`. For likelihoods that is the standard error over texts. In the row of one run
it is else the spread over MAUVE's clustering seeds; in a row made by `aggregate` it is the spread over runs, and the
former is kept as `<key>_clustering_std`.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from offline_metrics.errors import MetricError
from offline_metrics.files import write_whole
from offline_metrics.metric_info import COUNTS, LIKELIHOOD, METRICS, MetricInfo, info_of
from offline_metrics.scores import Scores

WIDTH = 100  # of a terminal
ARROWS = {True: " ↑", False: " ↓", None: ""}
NO_VALUE = "–"
SPREAD = "_std"
CLUSTERING_SPREAD = "_clustering_std"
ERROR_LEGEND = "± of nats and bits: standard error over texts."
SPREAD_LEGEND = (
    "±: sample standard deviation, over the runs where a row gathers several, else over MAUVE's clustering seeds."
)


def table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str] | None = None,
    human: str | None = "human",
    infos: Mapping[str, MetricInfo] | None = None,
) -> str:
    """Markdown table of rows by name: ↑ or ↓ says which way is better, the row named `human` is printed as human text.

    All metrics found are printed, one below the other where a terminal is too narrow for them side by side, or those in
    `columns`; `infos` tells how to print metrics that are not built in. A value that could not be computed is –, with
    its reason below the table.
    """
    layout = _fitting if columns is None else markdown
    columns = list(_columns(rows) if columns is None else columns)
    lines, reasons = cells(rows, columns, human, infos)
    spread = {name for row in lines[1:] for name, cell in zip(columns, row[1:], strict=True) if "±" in cell}
    footnotes = [ERROR_LEGEND] if spread & set(LIKELIHOOD) else []
    footnotes += [SPREAD_LEGEND] if spread - set(LIKELIHOOD) else []
    footnotes += [f"[{number}] {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n\n".join([layout(lines), *footnotes]) + "\n"


def cells(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    human: str | None = "human",
    infos: Mapping[str, MetricInfo] | None = None,
) -> tuple[list[list[str]], list[str]]:
    """What `table` prints, cell by cell with its line of titles first, and the reasons that [1], [2], ... stand for."""
    column_infos = [(infos or {}).get(name) or info_of(name) for name in columns]
    reasons: list[str] = []
    lines = [["texts from", *(info.label + ARROWS[info.higher_is_better] for info in column_infos)]]
    for title, row in rows.items():
        printed = [_cell(row, name, info, reasons) for name, info in zip(columns, column_infos, strict=True)]
        lines.append(["human text" if title == human else title, *printed])
    return lines, reasons


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table of columns of equal width, the first to the left and the numbers to the right."""
    lines = [[_one_cell(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        for first, *rest in lines
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [printed[0], rule, *printed[1:]])


def _fitting(lines: list[list[str]]) -> str:
    """The Markdown table of lines, or of their columns where that is narrower and the former does not fit."""
    printed, turned = markdown(lines), markdown([list(column) for column in zip(*lines, strict=True)])
    widths = [len(each.partition("\n")[0]) for each in (printed, turned)]
    return turned if widths[0] > WIDTH and widths[1] < widths[0] else printed


def _one_cell(text: str) -> str:
    """Text that neither ends its cell nor its line."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def aggregate(rows: Sequence[Mapping[str, float]]) -> Scores:
    """Mean `<key>` and sample standard deviation `<key>_std` over runs, with their number as `runs`.

    The mean clustering spread of the runs goes to `<key>_clustering_std`. A value that is NaN in any run is NaN, and
    its note says in how many; one that is infinite in some has no spread. One row alone keeps its values, clustering
    spread included. Raises MetricError for none.
    """
    if not rows:
        raise MetricError("aggregate: no rows given; expected the results of at least one run")
    if len(rows) == 1:
        return Scores({**rows[0], "runs": 1.0}, _notes(rows[0]))
    result = Scores()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name, nan) for row in rows]
        missing = sum(map(isnan, values))
        if name.endswith(SPREAD):
            result[name.removesuffix(SPREAD) + CLUSTERING_SPREAD] = nan if missing else fmean(values)
        elif missing:
            reason = next((note for row in rows if (note := _notes(row).get(name))), "not measured")
            result.add({name: nan, name + SPREAD: nan}, f"missing in {missing} of {len(rows)} runs: {reason}")
        else:
            spread = stdev(values) if all(map(isfinite, values)) else nan
            result.add({name: fmean(values), name + SPREAD: spread}, "infinite in some run")
    return Scores({**result, "runs": float(len(rows))}, result.notes)


def as_json(payload: Any) -> str:
    """JSON in which values that are not finite are null and `Scores` keep their notes."""
    return json.dumps(_plain(payload), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, payload: Any) -> None:
    """Write `as_json` whole or not at all."""
    write_whole(Path(path), as_json(payload).encode())


def _columns(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Built-in metrics in the order of their table, then further ones; neither counts nor spreads."""
    found = dict.fromkeys(name for row in rows.values() for name in row)
    further = [name for name in found if name not in METRICS and name not in COUNTS and not name.endswith(SPREAD)]
    return [name for name in METRICS if name in found] + further


def _cell(row: Mapping[str, float], name: str, info: MetricInfo, reasons: list[str]) -> str:
    """One printed value; a new reason for a missing one is appended to `reasons`."""
    value = row.get(name)
    if value is None:
        return ""
    if isnan(value):
        reason = _notes(row).get(name)
        if reason is None:
            return NO_VALUE
        reason = f"{info.label}: {reason}"
        if reason not in reasons:
            reasons.append(reason)
        return f"{NO_VALUE} [{reasons.index(reason) + 1}]"
    spread = row.get(name + SPREAD, nan)
    return format(value, info.format) + ("" if isnan(spread) else f" ± {format(spread, info.format)}")


def _notes(row: Mapping[str, float]) -> Mapping[str, str]:
    return getattr(row, "notes", {})


def _plain(value: Any) -> Any:
    """What JSON can hold: mappings, lists, text, finite numbers, null."""
    if isinstance(value, Scores):
        value = value.as_record()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
