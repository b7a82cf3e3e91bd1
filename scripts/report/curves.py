"""The charts of the report: training, metrics over steps, quality against diversity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan
from statistics import fmean, stdev

from offline_metrics.metric_info import info_of
from offline_metrics.report import ARROWS
from offline_metrics.scores import Scores
from scripts.composition.methods import METHODS
from scripts.evaluation.evaluation import HUMAN
from scripts.report.charts import HUMAN_STYLE, Axis, Point, Series, Style, chart, swatch, thinned
from scripts.report.losses import apart
from scripts.report.markup import Html, el, join
from scripts.report.runs import Run
from scripts.report.settings import Setting, spread

STEP = Axis("step", (0,))
LOSSES = {
    "loss": ("training", Style("train")),
    "valid_loss": ("validation", Style("valid", "6 3")),
    "valid_loss_ema": ("validation, EMA", Style("ema")),
}
QUALITY = ("mauve", "corpus_perplexity", "acceptance", "bleu")
OVER_STEPS = (
    "corpus_perplexity", "mauve", "diversity", "memorization", "acceptance", "bleu", "rouge_l", "unigram_entropy",
    "mean_words",
)  # fmt: skip


def label(name: str) -> str:
    """A metric's name with its arrow."""
    info = info_of(name)
    return info.label + ARROWS[info.higher_is_better]


def styles_of(settings: Sequence[Setting]) -> dict[str, Style]:
    """A style for each title: settings have their colours, their ways of writing their forms."""
    ways = [(colour, setting.title(way)) for colour, setting in enumerate(settings) for way in setting.ways or [""]]
    return {title: Style.of(colour, number) for number, (colour, title) in enumerate(ways)}


def style_of(setting: Setting, styles: dict[str, Style]) -> Style:
    """The style of a setting as a whole: that of its usual way of writing."""
    return styles[setting.title(next(iter(setting.ways), ""))]


def figures(drawn: Iterable[Html | None]) -> Html | None:
    """Charts side by side; None for none."""
    drawn = [el("figure", each) for each in drawn if each is not None]
    return el("div", *drawn, cls="figures") if drawn else None


def legend(entries: Iterable[tuple[str, Html]]) -> Html:
    """What the lines and markers of the charts below it are."""
    return el("ul", *(el("li", drawn, name) for name, drawn in entries), cls="legend")


# --- training ---------------------------------------------------------------------------------------------------------


def _line(run: Run, key: str, name: str, style: Style) -> Series:
    points = thinned([Point(row["step"], row[key]) for row in run.training if key in row])
    return Series(name, points, style, marked=False)


def training_charts(run: Run) -> Html | None:
    """Losses, the range of noise levels and the learning rate of a run, each on an axis of its own."""
    charts = [
        ([_line(run, key, name, style) for key, (name, style) in LOSSES.items()], Axis("loss", (), True)),
        ([_line(run, "learning_rate", "learning rate", Style("c0"))], Axis("learning rate", (0,))),
    ]
    if run.options is None or not METHODS[run.options["method"]].causal:  # which knows no noise
        full = () if run.options is None else (run.options["timesteps"],)
        charts.insert(1, ([_line(run, "T", "T_k", Style("c0"))], Axis("T_k, noise levels in training", (0, *full))))
    return figures(chart(lines, STEP, y, f"{y.label} of {run.title}") for lines, y in charts)


def training_legend() -> Html:
    return legend((name, swatch(style, point=False)) for name, style in LOSSES.values())


def training_comparison(settings: Sequence[Setting]) -> Html:
    """Validation losses of averaged weights (one chart for each kind of loss that settings share), and their T_k."""
    known = [setting for setting in settings if setting.runs[0].options is not None]
    keys = apart([setting.runs[0] for setting in known])
    kinds: dict[str, list[Setting]] = {}
    for setting in known:
        kind = ", ".join(f"{key} {setting.runs[0].options[key]}" for key in keys)
        kinds.setdefault(kind, []).append(setting)
    styles, drawn, shown = styles_of(settings), [], []
    for kind, members in kinds.items():
        if len(members) < 2:
            continue
        of_kind = f" ({kind})" if kind else ""
        lines = {
            key: [_line(run, key, run.title, style_of(each, styles)) for each in members for run in each.runs]
            for key in ("valid_loss_ema", "T")
        }
        title = f"validation loss, EMA{of_kind}"
        if (made := chart(lines["valid_loss_ema"], STEP, Axis(title, (), True), title)) is None:
            continue
        drawn.append(made)
        if len({each.runs[0].options["T_schedule"] for each in members}) > 1:
            drawn.append(chart(lines["T"], STEP, Axis(f"T_k{of_kind}", (0,)), "T_k"))
        shown += [(each.name, swatch(style_of(each, styles), point=False)) for each in members]
    told = f"Losses of settings that differ in {', '.join(keys)} are of different things and not drawn together."
    apart_why = el("p", told, cls="note") if keys else None
    return join(apart_why, el("div", legend(shown), figures(drawn)) if drawn else None)


# --- metrics over steps -----------------------------------------------------------------------------------------------


def metrics_over_steps(settings: Sequence[Setting]) -> Html | None:
    """Each metric of the evaluations in training: mean and spread over the runs of a setting that have the step."""
    styles, drawn, shown = styles_of(settings), [], set()
    for metric in OVER_STEPS:
        series = [
            _over_steps(setting, way, metric, styles[setting.title(way)])
            for setting in settings
            for way in setting.ways
        ]
        steps = [point.x for each in series for point in each.points]
        if steps:
            y = Axis(label(metric), (), metric.endswith("perplexity"))
            drawn.append(chart([*_human_line(settings, metric, steps), *series], STEP, y, label(metric)))
            shown |= {each.label for each in series if each.points}
    if not drawn:
        return None
    names = [(title, swatch(style)) for title, style in styles.items() if title in shown]
    return el("div", legend([("human text", swatch(HUMAN_STYLE, point=False)), *names]), figures(drawn))


def _over_steps(setting: Setting, way: str, metric: str, style: Style) -> Series:
    key, by_step = f"{way}/{metric}", {}
    for run in setting.runs:
        for row in run.scored:
            if key in row:
                by_step.setdefault(row["step"], []).append(row[key])
    name, points = setting.title(way), []
    for step, values in sorted(by_step.items()):
        mean, deviation = fmean(values), stdev(values) if len(values) > 1 else None
        over = f" ± {deviation:.2g} over {len(values)} training seeds" if deviation is not None else ""
        points.append(Point(step, mean, f"{name}: {mean:.4g}{over} at step {step:,.0f}", None, deviation))
    return Series(name, points, style)


def _human_line(settings: Sequence[Setting], metric: str, steps: list[float]) -> list[Series]:
    found = [row for setting in settings for run in setting.runs for row in run.scored if f"{HUMAN}/{metric}" in row]
    if not found:
        return []
    value = found[0][f"{HUMAN}/{metric}"]
    ends = [Point(step, value, f"human text: {value:.4g}") for step in sorted({0, max(steps)})]
    return [Series("human text", ends, HUMAN_STYLE, marked=False)]


# --- quality against diversity ----------------------------------------------------------------------------------------


def quality_against_diversity(rows: dict[str, Scores], settings: Sequence[Setting]) -> Html | None:
    """Every row as a point, human text as a star; the arrows say which way is better."""
    styles = styles_of(settings)
    named = {title: ("human text" if title == HUMAN else title, styles.get(title, HUMAN_STYLE)) for title in rows}
    drawn = []
    for metric in QUALITY:
        series = []
        for title, row in rows.items():
            x, y = row.get("diversity", nan), row.get(metric, nan)
            if not (isnan(x) or isnan(y)):
                name, style = named[title]
                told = f"{name}: {label(metric)} {y:.4g}, diversity {x:.4g}"
                point = Point(x, y, told, spread(row, "diversity"), spread(row, metric))
                series.append(Series(name, [point], style, joined=False))
        series.sort(key=lambda each: each.style is HUMAN_STYLE)  # drawn last, it stays in sight
        if series and series[0].style is not HUMAN_STYLE:
            y = Axis(label(metric), (), metric.endswith("perplexity"))
            drawn.append(chart(series, Axis(label("diversity")), y, label(metric)))
    if not drawn:
        return None
    names = [(name, swatch(style, line=False)) for name, style in named.values()]
    return el("div", legend(names), figures(drawn))
