"""Quality against diversity: what runs gave as a flag was turned, compared where texts are as varied as people's.

    python -m scripts.step_curves --resume_dir RUN --cells temperature=0.6 temperature=0.7 ...   # each run
    python -m scripts.frontier RUN [RUN ...] [--output_dir FOLDER]

A perplexity can always be bought with sameness, so a single number compares nothing. Every run's cells make curves, one
for each flag that was turned; where a curve passes the entropy of human text its other scores are read off, between its
two nearest cells. Writes frontier.html, frontier.md and frontier.json.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite, log, nan
from pathlib import Path
from typing import NamedTuple

from diffusion.training.files import write_text
from offline_metrics import report
from offline_metrics.metric_info import info_of
from offline_metrics.scores import Scores
from scripts.composition.checks import check_writable
from scripts.evaluation.asked import Asked
from scripts.evaluation.cells import dial_of, pairs_of, read_cell
from scripts.evaluation.evaluation import HUMAN
from scripts.job.console import note
from scripts.job.errors import PlainParser, UsageError, run
from scripts.report.charts import HUMAN_STYLE, Axis, Point, Series, Style, chart, swatch
from scripts.report.curves import figures, label, legend
from scripts.report.document import document
from scripts.report.markup import Html, el
from scripts.report.runs import found_in
from scripts.report.settings import spread
from scripts.report.tables import score_table

FROM_HERE = Path("saved_models/frontier")
ENTROPY = "pooled_unigram_entropy"
MATCHED = ("corpus_perplexity", "mauve", "length_ks", "bigram_js", "diversity", "rep_4", "rep_4_per_text",
           "memorization", "acceptance")  # fmt: skip
SHOWN = (ENTROPY, "unigram_entropy", *MATCHED, "seconds_per_sample")
AXES = ((ENTROPY, "corpus_perplexity"), (ENTROPY, "mauve"), ("diversity", "mauve"), ("diversity", "corpus_perplexity"),
        (ENTROPY, "rep_4"), ("diversity", "memorization"))  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The rows of one run as one flag was turned, by its value."""

    name: str
    dial: str
    rows: dict[float, Scores]

    def at(self, entropy: float) -> Scores | None:
        """Its scores where the pooled entropy is so much, between the two cells around it; None where it never is."""
        for (_, a), (_, b) in pairwise(sorted(self.rows.items())):
            low, high = a.get(ENTROPY, nan), b.get(ENTROPY, nan)
            if min(low, high) <= entropy <= max(low, high) and low != high:
                share = (entropy - low) / (high - low)
                both = [name for name in MATCHED if name in a and name in b]
                return Scores({name: _between(name, a[name], b[name], share) for name in both})
        return None


def _between(name: str, a: float, b: float, share: float) -> float:
    """Along a straight line; of perplexities in their logarithms."""
    if name.endswith("perplexity"):
        return exp(log(a) + share * (log(b) - log(a)))
    return a + share * (b - a)


class Cell(NamedTuple):
    """One point of a curve under one seed: where it lies, at which value of the dial, what it was asked, its rows."""

    place: Path
    value: float
    asked: Asked
    rows: dict[str, Scores]

    def goes_with(self, other: Cell) -> bool:
        """Whether both were asked the same but for what a cell says; what one does not tell is no difference."""
        both = self.asked.keys() & other.asked.keys() - pairs_of(self.asked["cell"]).keys() - {"cell"}
        return all(self.asked[flag] == other.asked[flag] for flag in both)


def curves_of(run_dir: Path, name: str) -> tuple[list[Curve], Scores | None, set[int]]:
    """The curves of a run, the human row beside the first, and on how many texts they rest."""
    turned: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    newest = max(run_dir.glob("evaluation/curves_step_*"), default=run_dir)
    for place in sorted(newest.glob("*/seed_*")):
        if (found := read_cell(place)) is None:
            continue
        fixed, dial, value = dial_of(found[0]["cell"])
        if value is None:
            note(f"warning: {place}: {dial} has no number to draw it at; left out")
        else:
            turned[found[0]["strategy"], fixed, dial].append(Cell(place, value, *found))
    several = len({strategy for strategy, *_ in turned}) > 1
    curves, human, bases = [], None, set()
    for (strategy, fixed, dial), cells in turned.items():
        cells = _alike(cells)
        rows = {
            value: report.aggregate([cell.rows[strategy] for cell in cells if cell.value == value])
            for value in dict.fromkeys(cell.value for cell in cells)
        }
        title = ", ".join(part for part in (name, strategy if several else "", fixed, dial) if part)
        curves.append(Curve(title, dial, rows))
        human = human or report.aggregate([cell.rows[HUMAN] for cell in cells if cell.value == cells[0].value])
        bases |= {cell.asked["num_samples"] for cell in cells}
    return curves, human, bases


def _alike(cells: list[Cell]) -> list[Cell]:
    """Those of a curve that were asked alike, the most there are; the others are named."""
    model = max(cells, key=lambda cell: sum(map(cell.goes_with, cells)))
    if others := [cell for cell in cells if not model.goes_with(cell)]:
        names = ", ".join(str(cell.place.relative_to(cell.place.parents[1])) for cell in others)
        note(f"warning: {model.place.parents[1]}: {names} were asked otherwise than the rest of the curve; left out")
    return [cell for cell in cells if model.goes_with(cell)]


def tables(curves: list[Curve], human: Scores) -> list[list[list[str]]]:
    """At human entropy, and all cells: line by line."""
    matched = {curve.name: row for curve in curves if (row := curve.at(human[ENTROPY])) is not None}
    every = {f"{curve.name} {value:g}": row for curve in curves for value, row in curve.rows.items()}
    printed = []
    for rows, columns in ((matched, MATCHED), (every, SHOWN)):
        rows = {HUMAN: human, **rows}
        lines, _ = report.cells(rows, [name for name in columns if any(name in row for row in rows.values())])
        printed.append(lines)
    return printed


def page(curves: list[Curve], human: Scores, words: str, cells: list[list[list[str]]]) -> str:
    """The whole file."""
    styles = {curve.name: Style.of(i, i) for i, curve in enumerate(curves)}
    drawn: list[Html | None] = []
    for x, y in AXES:
        series = []
        for curve in curves:
            points = []
            for value, row in sorted(curve.rows.items()):
                if isfinite(row.get(x, nan) + row.get(y, nan)):
                    told = f"{curve.name} {value:g}: {label(y)} {row[y]:.4g}, {label(x)} {row[x]:.4g}"
                    points.append(Point(row[x], row[y], told, spread(row, x), spread(row, y)))
            series.append(Series(curve.name, points, styles[curve.name]))
        if x in human and y in human:
            series.append(Series("human text", [Point(human[x], human[y])], HUMAN_STYLE, joined=False))
        drawn.append(chart(series, Axis(label(x)), Axis(label(y), (), y.endswith("perplexity")), label(y)))
    names = [("human text", swatch(HUMAN_STYLE, line=False)), *((name, swatch(each)) for name, each in styles.items())]
    sections = [
        el("section", el("h2", "Curves"), legend(names), figures(drawn)),
        el("section", el("h2", "Where texts are as varied as people's"), score_table(cells[0], "At human entropy")),
        el("section", el("h2", "All cells"), score_table(cells[1], "All cells")),
    ]
    title = "Quality against diversity"
    return document(title, el("header", el("h1", title), el("p", words)), el("main", *sections))


def main() -> None:
    parser = PlainParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of several runs")
    parser.add_argument("--output_dir", type=Path, default=FROM_HERE, help=f"where the files go ({FROM_HERE})")
    options = parser.parse_args()
    check_writable("output_dir", options.output_dir)
    titles, empty = found_in(list(dict.fromkeys(options.runs)))
    for place, message in empty:
        note(f"warning: {place} {message}")
    curves, mark, bases = [], None, set()
    for path, name in titles.items():
        found, own, on = curves_of(path, name)
        if not found:
            note(f"warning: {path}: no cells; run python -m scripts.step_curves --resume_dir {path} --cells ... first")
        curves, mark, bases = curves + found, mark or own, bases | on
        if own is not None and own.get("total_words") != mark.get("total_words"):
            note(f"warning: {path}: scored beside other human texts than those before; compare runs on the same texts")
    if not curves:
        raise UsageError("no run has cells; expected what scripts.step_curves writes, with one flag turned")
    if len(bases) > 1:
        note(f"warning: cells rest on {' and '.join(map(str, sorted(bases)))} texts: compare with care")
    if ENTROPY not in mark:
        raise UsageError(f"the human row has no {info_of(ENTROPY).label}; score the cells again")
    cells = tables(curves, mark)
    unmet = [curve.name for curve in curves if curve.at(mark[ENTROPY]) is None]
    words = f"Human text has a pooled entropy of {mark[ENTROPY]:.3f} nats a token."
    if unmet:
        words += f" No cell of these curves reaches it, or all lie beyond: {'; '.join(unmet)}."
    record = {curve.name: {f"{value:g}": row for value, row in curve.rows.items()} for curve in curves}
    report.write_json(options.output_dir / "frontier.json", {HUMAN: mark, "curves": record})
    write_text(options.output_dir / "frontier.md", "\n\n".join([words, *map(report.markdown, cells)]) + "\n")
    write_text(options.output_dir / "frontier.html", page(curves, mark, words, cells))
    print(f"{options.output_dir}\n\n{words}\n\n{report.markdown(cells[0])}", flush=True)


if __name__ == "__main__":
    run(main)
