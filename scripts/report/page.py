"""The page of the report: sections of what there is, one file that needs nothing else and asks for nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offline_metrics.report import as_json
from offline_metrics.report import markdown as markdown_table
from scripts.report import curves, tables
from scripts.report.document import document
from scripts.report.film import Frame
from scripts.report.markup import Html, el, join, plain
from scripts.report.runs import SEED, Run
from scripts.report.settings import ASIDE, CONFIDENCE, Comparison, Setting, baseline, compare, differing

TEXTS_SHOWN = 40  # sample texts of each kind
RUNS_OPEN = 4  # as many runs, at most, have their curves in sight at once
MASKS = re.compile(r"(\[MASK\]|<mask>|\[mask\])")


@dataclass(frozen=True)
class Report:
    """Everything that the page tells."""

    title: str
    runs: list[Run]
    settings: list[Setting]
    problems: list[tuple[str, str]]  # of what, and what is wrong
    films: Mapping[str, list[list[Frame]]] | None = None  # by setting; None: not asked for

    def comparisons(self) -> tuple[list[Comparison], list[str]]:
        """How settings differ from the baseline, and why some cannot be compared with it."""
        found, reasons, base = [], [], baseline(self.settings)
        metrics = [
            name for name in tables.metrics_of(tables.score_rows(self.settings)) if name not in tables.NOT_COMPARED
        ]
        for setting in self.settings:
            if base is None or setting is base or not setting.scored:
                continue
            result = compare(setting, base, metrics)
            if isinstance(result, str):
                reasons.append(f"{setting.name} − {base.name}: {result}")
            else:
                found += result
        return found, reasons


@dataclass(frozen=True)
class Section:
    """A part of the page; what is said in its place where it has no content."""

    id: str
    title: str
    content: Html | None
    otherwise: str


def page(report: Report) -> str:
    """The whole file."""
    sections = [
        Section("scores", "Scores", _scores(report), "No run has scores."),
        Section("quality", "Quality against diversity", _quality(report), "No run has scores of both."),
        Section("differences", "Paired differences", _differences(report), "Fewer than two settings have scores."),
        Section("training", "Training", _training(report), "No run has curves."),
        Section("steps", "Metrics over steps", _steps(report), "No run was scored in training."),
        Section("texts", "Sample texts", _texts(report), "No run has sample texts."),
        Section(
            "film",
            "From noise to sentence",
            _films(report),
            "Not asked for; --film_strip N shows N texts."
            if report.films is None
            else "The reasons stand at the top of the page.",
        ),
        Section("runs", "Runs and options", _runs(report), ""),
    ]
    links = el("nav", *(el("a", each.title, href=f"#{each.id}") for each in sections), aria_label="Sections")
    header = el("header", el("h1", report.title), el("p", _summary(report)), links)
    main = el("main", _problems(report), *map(_section, sections))
    return document(f"Report: {report.title}", header, main)


def _section(section: Section) -> Html:
    content = el("p", section.otherwise, cls="note") if section.content is None else section.content
    return el("section", el("h2", section.title), content, id=section.id)


def _summary(report: Report) -> str:
    scored = sum(run.evaluation is not None for run in report.runs)
    counts = ((len(report.runs), "run"), (len(report.settings), "setting"))
    parts = [f"{n} {word}{'s' * (n != 1)}" for n, word in counts]
    return " · ".join([*parts, f"{scored} with scores"])


def _problems(report: Report) -> Html | None:
    if not report.problems:
        return None
    lines = [el("li", el("b", what), ": ", message) for what, message in report.problems]
    return el("aside", el("h2", "Missing or doubtful"), el("ul", *lines), cls="missing")


# --- sections ---------------------------------------------------------------------------------------------------------


def _scores(report: Report) -> Html | None:
    if not any(setting.scored for setting in report.settings):
        return None
    lines, reasons = tables.score_cells(report.settings)
    table = tables.score_table(lines, "Scores")
    return join(table, el("p", tables.LEGEND, cls="foot"), tables.numbered(reasons))


def _quality(report: Report) -> Html | None:
    return curves.quality_against_diversity(tables.score_rows(report.settings), report.settings)


def _differences(report: Report) -> Html | None:
    comparisons, reasons = report.comparisons()
    lines = [el("p", reason, cls="foot") for reason in reasons]
    if not comparisons:
        return join(*lines) if lines else None
    return join(el("p", difference_legend(comparisons)), tables.difference_table(comparisons), *lines)


def difference_legend(comparisons: Sequence[Comparison]) -> str:
    """How to read the differences."""
    text = (
        "Mean difference and 95 % t interval over pairs of the same seed; bold where it leaves out zero. Each interval "
        "is of one comparison: of twenty between settings that are alike, one is expected to leave out zero."
    )
    if any(each.unit == "sampling seeds" for each in comparisons):
        text += (
            " Pairs of sampling seeds compare one trained model with one other; how much another training seed would "
            "change is not in their intervals."
        )
    return text


def _training(report: Report) -> Html | None:
    drawn = [(run, charts) for run in report.runs if (charts := curves.training_charts(run)) is not None]
    if not drawn:
        return None
    each = [join(el("h3", run.title) if len(report.runs) > 1 else None, charts) for run, charts in drawn]
    note = "The training loss is over T_k of the noise levels, validation losses are over all of them, on one batch."
    panels = join(el("p", note, cls="note"), curves.training_legend(), *each)
    if len(report.runs) > 1:
        panels = el(
            "details", el("summary", f"Curves of each run ({len(drawn)})"), panels, open=len(drawn) <= RUNS_OPEN
        )
    return join(curves.training_comparison(report.settings), panels)


def _steps(report: Report) -> Html | None:
    return curves.metrics_over_steps(report.settings)


def _texts(report: Report) -> Html | None:
    columns = {}
    for setting in report.settings:
        first = next((run for run in setting.runs if run.texts), None)
        for name, texts in ({} if first is None else first.texts).items():
            columns[setting.title(name)] = texts[:TEXTS_SHOWN]
    if not columns:
        return None
    heads = [el("th", "#", scope="col"), *(el("th", title, scope="col") for title in columns)]
    body = [
        el("tr", el("th", i + 1, scope="row"), *(_text(texts, i) for texts in columns.values()))
        for i in range(max(map(len, columns.values())))
    ]
    found = el("output", id="found", cls="note")
    search = el("input", id="search", type="search", placeholder="a word or a phrase", autocomplete="off")
    return el(
        "div",
        el(
            "p",
            "The first texts of the first seed; in a line, those of one sample seed.",
            cls="note",
        ),
        el("label", "Search ", search, found, cls="search", hidden=True),
        tables.scrolling(el("table", el("thead", el("tr", *heads)), el("tbody", *body)), "Sample texts"),
        cls="texts",
    )


def _text(texts: list[str], i: int) -> Html:
    if i >= len(texts):
        return el("td")
    return el("td", texts[i]) if texts[i].strip() else el("td", el("span", "(empty)", cls="empty"))


def _films(report: Report) -> Html | None:
    if not report.films:
        return None
    strips = [
        el("figure", el("figcaption", name), el("ol", *map(_frame, strip), cls="film"))
        for name, strips in report.films.items()
        for strip in strips
    ]
    note = "The text after some of the sampling steps: t falls from 1, noise, to 0. Latents are decoded as they stand."
    return join(el("p", note, cls="note"), el("div", *strips, cls="films"))


def _frame(frame: Frame) -> Html:
    said = [el("span", part, cls="mask") if MASKS.fullmatch(part) else part for part in MASKS.split(frame.text)]
    return el("li", el("span", frame.place, cls="place"), el("span", *said, cls="said"))


def _runs(report: Report) -> Html:
    known = [run for run in report.runs if run.options is not None]
    keys = differing(known, ASIDE - {SEED})
    heads = ["run", "setting", "step", "scored on", *keys]
    body = []
    for setting, run in [(each, run) for each in report.settings for run in each.runs]:
        on = "–" if run.evaluation is None else f"{run.evaluation.split}, step {run.evaluation.step:,}"
        values = [setting.name, f"{run.step:,}", on, *(_value(run, key) for key in keys)]
        body.append(el("tr", el("th", run.title, title=run.path, scope="row"), *(el("td", value) for value in values)))
    head = el("thead", el("tr", *(el("th", title, scope="col") for title in heads)))
    table = tables.scrolling(el("table", head, el("tbody", *body), cls="words"), "Runs")
    if not known:
        return table
    pairs = [el("div", el("dt", key), el("dd", _value(known[0], key))) for key in known[0].options]
    options = el("details", el("summary", f"All options of {known[0].title}"), el("dl", *pairs, cls="options"))
    return join(table, options)


def _value(run: Run, key: str) -> object:
    value = None if run.options is None else run.options.get(key)
    return "–" if value is None else value


# --- the same in Markdown ---------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The tables of the page, and what is missing; names and messages make neither lines nor links nor images."""
    parts = [f"# {one_line(report.title)}", _summary(report)]
    if any(setting.scored for setting in report.settings):
        lines, reasons = tables.score_cells(report.settings)
        parts += [markdown_table(lines), tables.LEGEND]
        parts += [f"[{i}] {one_line(reason)}" for i, reason in enumerate(reasons, 1)]
    comparisons, reasons = report.comparisons()
    if comparisons:
        parts += [
            "## Paired differences",
            difference_legend(comparisons),
            markdown_table(tables.difference_cells(comparisons)),
        ]
    parts += map(one_line, reasons)
    if report.problems:
        told = (one_line(f"{what}: {message}") for what, message in report.problems)
        parts += ["## Missing or doubtful", "\n".join(f"- {line}" for line in told)]
    text = html.escape(plain("\n\n".join(parts)), quote=False) + "\n"
    return text.replace("![", "!\\[").replace("](", "]\\(")


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- and for scripts --------------------------------------------------------------------------------------------------


def numbers(report: Report) -> str:
    """The numbers of the tables as JSON: rows of scores with spreads and notes, differences with their intervals."""
    comparisons, reasons = report.comparisons()
    differences = [
        {
            "setting": each.title,
            "baseline": each.against,
            "pairs": each.unit,
            "metrics": {
                name: {"n": d.n, "mean": d.mean, "low": d.low, "high": d.high} for name, d in each.differences.items()
            },
        }
        for each in comparisons
    ]
    found = {
        "rows": tables.score_rows(report.settings),
        "seeds": {setting.title(way): setting.counts for setting in report.settings for way in setting.strategies},
        "confidence": CONFIDENCE,
        "differences": differences,
        "not_compared": reasons,
        "missing": [f"{what}: {message}" for what, message in report.problems],
    }
    return plain(as_json(found))
