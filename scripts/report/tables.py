"""The numbers of the report: scores and paired differences, cell by cell, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from offline_metrics import report
from offline_metrics.metric_info import info_of
from offline_metrics.scores import Scores
from scripts.evaluation.evaluation import HUMAN
from scripts.evaluation.run_folder import COLUMNS
from scripts.report.charts import interval
from scripts.report.markup import Html, el, join
from scripts.report.runs import Run
from scripts.report.settings import Comparison, Setting

LEGEND = (
    "Seeds: of training × of sampling. ±: standard deviation over training seeds where a row has several, else over "
    "sampling seeds (of nats and bits: standard error over texts; of MAUVE under one seed: over its clusterings)."
)
NOT_COMPARED = ("nats_per_word", "nats_per_sequence", "seconds_per_sample", "parameters")


def score_rows(settings: Sequence[Setting]) -> dict[str, Scores]:
    """The human row, one for each set of texts that runs are scored beside; then each setting's ways of writing."""
    first: dict[tuple, Run] = {}
    for run in (run for setting in settings for run in setting.scored):
        first.setdefault(run.evaluation.beside, run)
    rows = {
        HUMAN if len(first) == 1 else f"human text ({run.title}, {run.evaluation.split})": run.evaluation.rows[HUMAN]
        for run in first.values()
    }
    for setting in settings:
        rows |= {setting.title(way): setting.row(way) for way in setting.strategies}
    return rows


def metrics_of(rows: dict[str, Scores]) -> list[str]:
    """The columns that any row has."""
    return [name for name in COLUMNS if any(name in row for row in rows.values())]


def score_cells(settings: Sequence[Setting]) -> tuple[list[list[str]], list[str]]:
    """The table of scores, line by line, with the reasons of values that are missing."""
    rows = score_rows(settings)
    lines, reasons = report.cells(rows, metrics_of(rows), human=HUMAN)
    counts = {setting.title(name): setting.counts for setting in settings for name in setting.strategies}
    (titles, *names), *printed = lines
    return [
        [titles, "seeds", *names],
        *([name, counts.get(title, ""), *cells] for title, (name, *cells) in zip(rows, printed, strict=True)),
    ], reasons


# --- paired differences -----------------------------------------------------------------------------------------------


def difference_cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """The table of differences in words, line by line."""
    metrics = _compared(comparisons)
    titles = [info_of(name).label + report.ARROWS[info_of(name).higher_is_better] for name in metrics]
    lines = [["difference", "pairs", *titles]]
    for each in comparisons:
        cells = [_in_words(each, name) for name in metrics]
        lines.append([f"{each.title} − {each.against}", pairs(each), *cells])
    return lines


def _compared(comparisons: Sequence[Comparison]) -> list[str]:
    """The metrics that any comparison has."""
    return list(dict.fromkeys(name for each in comparisons for name in each.differences))


def pairs(comparison: Comparison) -> str:
    """How many pairs a line rests on."""
    n = max(each.n for each in comparison.differences.values())
    return f"{n} {comparison.unit if n > 1 else comparison.unit[:-1]}"


def _in_words(comparison: Comparison, name: str) -> str:
    if name not in comparison.differences:
        return report.NO_VALUE
    return " ".join(filter(None, _parts(comparison, name)))


def _parts(comparison: Comparison, name: str) -> tuple[str, str, str]:
    """A difference as its mean, its interval, and its own number of pairs where it has fewer than the others."""
    difference, form = comparison.differences[name], info_of(name).format
    most = max(each.n for each in comparison.differences.values())
    edges = f"[{_signed(difference.low, form)}, {_signed(difference.high, form)}]"
    reach = "" if isnan(difference.half_width) else edges
    return _signed(difference.mean, form), reach, f"n = {difference.n}" if difference.n < most else ""


def _signed(value: float, form: str) -> str:
    return format(value, f"+{form}").replace("-", "−")


def difference_table(comparisons: Sequence[Comparison]) -> Html:
    """The same as a table of a page, each interval drawn on the scale of its column."""
    (first, _, *titles), *_ = difference_cells(comparisons)
    metrics = _compared(comparisons)
    reach = {name: max((_far(each, name) for each in comparisons), default=0.0) or 1.0 for name in metrics}
    body = []
    for each in comparisons:
        cells = [el("th", each.title, el("small", f"− {each.against}"), el("small", pairs(each)), scope="row")]
        for name in metrics:
            if name not in each.differences:
                cells.append(el("td", report.NO_VALUE, cls="difference"))
                continue
            mean, edges, fewer = _parts(each, name)
            d = each.differences[name]
            drawn = interval(d.mean, d.low, d.high, reach[name]) if edges else None
            texts = [el("b", mean), *(el("small", text) for text in (edges, fewer) if text), drawn]
            cells.append(el("td", *texts, cls="difference clear" if d.is_clear else "difference"))
        body.append(el("tr", *cells))
    heads = [el("th", title, scope="col") for title in (first, *titles)]
    return scrolling(el("table", el("thead", el("tr", *heads)), el("tbody", *body)), "Paired differences")


def _far(comparison: Comparison, name: str) -> float:
    """The farthest that an interval goes from zero."""
    d = comparison.differences.get(name)
    if d is None:
        return 0.0
    return max(abs(edge) for edge in ((d.mean,) if isnan(d.half_width) else (d.low, d.high)))


# --- tables of a page -------------------------------------------------------------------------------------------------


def score_table(lines: list[list[str]], label: str) -> Html:
    """A table of which each number and its spread are columns of their own, so that both stand in line."""
    (first, *titles), *rows = lines
    spread = [any("±" in row[i] for row in rows) for i in range(1, len(lines[0]))]
    heads = [el("th", first, scope="col")]
    heads += [
        el("th", title, scope="col", colspan=2 if wide else None) for title, wide in zip(titles, spread, strict=True)
    ]
    body = []
    for name, *cells in rows:
        printed = [el("th", name, scope="row")]
        for cell, wide in zip(cells, spread, strict=True):
            value, _, own = cell.partition(" ± ")
            printed.append(el("td", value.replace("-", "−") if own else value, cls="number"))
            if wide:
                printed.append(el("td", f"± {own}" if own else "", cls="spread"))
        body.append(el("tr", *printed, cls="human" if name.startswith("human text") else None))
    return scrolling(el("table", el("thead", el("tr", *heads)), el("tbody", *body)), label)


def scrolling(table: Html, label: str) -> Html:
    """A table that scrolls within itself where the page is narrower."""
    return el("div", table, cls="scroll", role="region", aria_label=label, tabindex="0")


def numbered(reasons: Sequence[str]) -> Html | None:
    """The reasons that [1], [2], ... stand for."""
    lines = [el("p", f"[{number}] {reason}", cls="foot") for number, reason in enumerate(reasons, 1)]
    return join(*lines) if lines else None
