"""The page of an information window: where information is lost, what schedules spend there, what the decoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from diffusion.schedules import NoiseSchedule
from diffusion.window import Levels, Window
from scripts.report.charts import HUMAN_STYLE, Axis, Point, Series, Style, chart, swatch
from scripts.report.curves import figures, legend
from scripts.report.document import document
from scripts.report.markup import el
from scripts.report.tables import score_table

BINS = 24


class Level(Protocol):
    gamma: float
    rate: float
    accuracy: float


def page(
    title: str,
    words: str,
    levels: Sequence[Level],
    measured: Levels,
    schedules: dict[str, NoiseSchedule],
    cells: Sequence[list[list[str]]],
) -> str:
    """The whole file."""
    nats = Window.of(measured).nats
    counted = [Point(each.gamma, each.rate / nats) for each in levels if each.gamma >= measured.start]
    top = 1.2 * max(point.y for point in counted)  # of a schedule that peaks, the rest would be flat
    styles = {name: Style.of(i, i) for i, name in enumerate(schedules)}
    lines = [Series("information", counted, HUMAN_STYLE, marked=False)]
    for name, schedule in schedules.items():
        density = [Point(p.x, min(p.y, top)) for p in _density(schedule, levels)]
        lines.append(Series(name, density, styles[name], marked=False))
    right = Series("decoder", [Point(each.gamma, each.accuracy) for each in levels], Style("c0"), marked=False)
    gamma = Axis("gamma = ln(σ²/α²)", (levels[0].gamma, levels[-1].gamma))
    drawn = [
        chart(lines, gamma, Axis("share a unit of gamma", (0,)), "Information and training times by noise level"),
        chart([right], gamma, Axis("tokens written right", (0, 1)), "What the decoder writes of noised latents"),
    ]
    names = [("information lost", swatch(HUMAN_STYLE, point=False))]
    names += [(name, swatch(style, point=False)) for name, style in styles.items()]
    sections = [
        el("section", el("h2", "Where the information is"), legend(names), figures(drawn)),
        el("section", el("h2", "What schedules spend on it"), score_table(cells[0], "Schedules")),
        el("section", el("h2", "Levels"), score_table(cells[1], "Levels")),
    ]
    return document(title, el("header", el("h1", title), el("p", words)), el("main", *sections))


def _density(schedule: NoiseSchedule, levels: Sequence[Level]) -> list[Point]:
    """How many of a schedule's times lie at each gamma, as shares a unit of gamma."""
    low, high = levels[0].gamma, levels[-1].gamma
    counts = torch.histc(schedule.gamma, BINS, low, high) / len(schedule.gamma)
    width = (high - low) / BINS
    return [Point(low + (i + 0.5) * width, count / width) for i, count in enumerate(counts.tolist())]
