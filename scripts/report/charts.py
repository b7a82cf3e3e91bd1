"""Charts as inline SVG: lines and points with error bars, drawn by class names that the page's style gives colours.

No plotting library: a page that follows the reader's light or dark theme needs colours from its style sheet, and text
that is text. A chart is small, for a phone's width; a page shows several side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, floor, log10
from typing import NamedTuple

from scripts.report.markup import Html, el, join

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 28, 36
SHOWN_POINTS = 250  # of a line; a screen has no more
TOLD_POINTS = 40  # of a line that say their value when pointed at; as many, at most, have a marker
COLOURS = 8
DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "star")
LARGEST = 1e100  # what is larger, or not a number, is left out of a drawing
LOGARITHMIC_FROM = 20  # ratio of the largest to the smallest value


class Point(NamedTuple):
    """A value, what it says when pointed at (else its numbers), and how far its error bars reach to either side."""

    x: float
    y: float
    title: str = ""
    x_spread: float | None = None
    y_spread: float | None = None


@dataclass(frozen=True)
class Style:
    """How a series looks: the class of its colour, its dashes and its marker, so that no two need colour to differ."""

    colour: str
    dash: str | None = None
    marker: str = "circle"

    @classmethod
    def of(cls, colour: int, number: int) -> Style:
        """A style by two counters, of its colour and of its form; forms repeat after 35."""
        marker, dash = MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
        return cls(f"c{colour % COLOURS}", dash, marker)


HUMAN_STYLE = Style("human", "1 4", "human")


@dataclass(frozen=True)
class Series:
    """Points of one look, by rising x where they are joined by a line."""

    label: str
    points: Sequence[Point]
    style: Style
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis says, and values that it must reach."""

    label: str
    reach: tuple[float, ...] = ()
    may_be_logarithmic: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing, and the values to be named."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False
    form: Callable[[float], str] = field(default=str)

    def __call__(self, value: float) -> float:
        low, high, value = (log10(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def chart(series: Iterable[Series], x: Axis, y: Axis, title: str) -> Html | None:
    """The series in one frame; None where nothing can be drawn."""
    series = [drawn for each in series if (drawn := _finite(each)).points]
    if not series:
        return None
    points = [point for each in series for point in each.points]
    across = scale([_reach(p.x, p.x_spread) for p in points], x, LEFT, WIDTH - RIGHT, not any(s.joined for s in series))
    up = scale([_reach(p.y, p.y_spread) for p in points], y, HEIGHT - BOTTOM, TOP, True)
    return el(
        "svg",
        _frame(across, up, x, y),
        *(_line(each, across, up) for each in series if each.joined),
        *(_points(each, across, up, x.label) for each in series),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        cls="chart",
    )


def _finite(series: Series) -> Series:
    return replace(series, points=[p for p in series.points if abs(p.x) < LARGEST and abs(p.y) < LARGEST])


def _reach(value: float, spread: float | None) -> tuple[float, float, float]:
    """A value between the ends of its error bar."""
    return value - (spread or 0.0), value, value + (spread or 0.0)


# --- axes -------------------------------------------------------------------------------------------------------------


def scale(reaches: Sequence[tuple[float, float, float]], axis: Axis, start: float, end: float, padded: bool) -> Scale:
    """A scale that holds values and error bars; logarithmic where values span decades and the axis allows it."""
    lows, values, highs = zip(*reaches, strict=True)
    if axis.may_be_logarithmic and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM:
        low, high = min(values) / 1.3, max(highs) * 1.1  # an error bar may reach below zero: it is cut
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        for steps in ((1, 2, 5), (1,)):
            ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
            if len(ticks) <= 7:
                break
        return Scale(low, high, start, end, tuple(ticks), True, "{:,.6g}".format)
    low, high = min([*lows, *axis.reach]), max([*highs, *axis.reach])
    if high == low:
        low, high = low - (abs(low) * 0.5 or 1.0), high + (abs(high) * 0.5 or 1.0)
    elif padded:
        margin = 0.05 * (high - low)
        low, high = (edge if edge in axis.reach else edge + way * margin for edge, way in ((low, -1), (high, 1)))
    step = _round_step((high - low) / 5)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Scale(low, high, start, end, ticks, False, _form(step, max(abs(low), abs(high))))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... that is no smaller."""
    power = 10.0 ** floor(log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _form(step: float, largest: float) -> Callable[[float], str]:
    """How numbers of this step are written: as many decimals as it has, powers of ten for very small and large ones."""
    power = floor(log10(step) + 1e-9)
    if not 1e-3 <= largest < 1e6:
        return lambda value: "0" if abs(value) < step / 2 else _in_powers(value)
    decimals = max(0, (round(step / 10.0**power, 6) == 2.5) - power)
    return lambda value: f"{value:,.{decimals}f}".replace("-", "−")


def _in_powers(value: float) -> str:
    power = floor(log10(abs(value)) + 1e-9)
    return f"{value / 10.0**power:.3g}e{power}".replace("-", "−")


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> Html:
    grid, words = [], []
    for tick in up.ticks:
        at = f"{up(tick):.1f}"
        grid.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        words.append(el("text", up.form(tick), x=LEFT - 7, y=f"{up(tick) + 4:.1f}", text_anchor="end"))
    for tick in across.ticks:
        at = across(tick)
        grid.append(el("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, cls="tick"))
        words.append(el("text", across.form(tick), x=f"{at:.1f}", y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    grid.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, cls="tick"))
    words.append(el("text", y.label + (" (log)" if up.log else ""), x=2, y=13, cls="name"))
    words.append(el("text", x.label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end", cls="name"))
    return join(el("g", *grid, cls="grid"), el("g", *words, cls="words"))


# --- series -----------------------------------------------------------------------------------------------------------


def thinned(points: Sequence[Point], count: int = SHOWN_POINTS) -> list[Point]:
    """At most about `count` of the points: first and last, and the lowest and highest of each stretch between."""
    if len(points) <= count:
        return list(points)
    stretches = max(1, (count - 2) // 2)
    edges = [1 + round(i * (len(points) - 2) / stretches) for i in range(stretches + 1)]
    kept = [points[0]]
    for start, end in pairwise(edges):
        stretch = range(start, end)
        extremes = {min(stretch, key=lambda i: points[i].y), max(stretch, key=lambda i: points[i].y)} if stretch else ()
        kept += [points[i] for i in sorted(extremes)]
    return [*kept, points[-1]]


def _line(series: Series, across: Scale, up: Scale) -> Html:
    places = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in series.points)
    return el("polyline", points=places, cls=f"line {series.style.colour}", stroke_dasharray=series.style.dash)


def _points(series: Series, across: Scale, up: Scale, x_label: str) -> Html:
    told = [series.points[i] for i in _spread_out(len(series.points))] if series.joined else series.points
    marked = series.marked and len(series.points) <= TOLD_POINTS
    drawn = []
    for p in told:
        x, y = across(p.x), up(p.y)
        parts = [
            el("title", p.title or f"{series.label}: {p.y:.4g} at {x_label} {p.x:,.6g}"),
            el("circle", cx=_n(x), cy=_n(y), r=8),
        ]
        parts += _bars(p, x, y, across, up)
        if marked:
            parts.append(marker(series.style.marker, x, y))
        drawn.append(el("g", *parts, cls="point"))
    return el("g", *drawn, cls=f"points {series.style.colour}")


def _spread_out(length: int) -> list[int]:
    """Numbers of at most TOLD_POINTS points, first and last among them."""
    if length <= TOLD_POINTS:
        return list(range(length))
    return [round(i * (length - 1) / (TOLD_POINTS - 1)) for i in range(TOLD_POINTS)]


def _bars(p: Point, x: float, y: float, across: Scale, up: Scale) -> list[Html]:
    bars = []
    if p.y_spread:
        low, high = (up(max(edge, up.low)) for edge in (p.y - p.y_spread, p.y + p.y_spread))
        path = f"M{_n(x)} {_n(low)}V{_n(high)}M{_n(x - 3)} {_n(low)}h6M{_n(x - 3)} {_n(high)}h6"
        bars.append(el("path", d=path, cls="bar"))
    if p.x_spread:
        left, right = (across(edge) for edge in (p.x - p.x_spread, p.x + p.x_spread))
        path = f"M{_n(left)} {_n(y)}H{_n(right)}M{_n(left)} {_n(y - 3)}v6M{_n(right)} {_n(y - 3)}v6"
        bars.append(el("path", d=path, cls="bar"))
    return bars


SHAPES = {
    "square": "M-3.6 -3.6h7.2v7.2h-7.2z",
    "triangle": "M0 -4.8L4.6 3.4H-4.6z",
    "down": "M0 4.8L4.6 -3.4H-4.6z",
    "diamond": "M0 -5.2L4.6 0L0 5.2L-4.6 0z",
    "plus": "M-1.4 -4.6h2.8v3.2h3.2v2.8h-3.2v3.2h-2.8v-3.2h-3.2v-2.8h3.2z",
    "star": "M-4.8 -1.2L-1.2 -1.2L0 -5.2L1.2 -1.2L4.8 -1.2L2 1.2L3 5L0 2.8L-3 5L-2 1.2z",
    "human": "M0 -9L2.6 -2.6L9 0L2.6 2.6L0 9L-2.6 2.6L-9 0L-2.6 -2.6z",
}


def marker(shape: str, x: float, y: float) -> Html:
    """One of MARKERS, or the star of human text, at a place of the drawing."""
    if shape == "circle":
        return el("circle", cx=_n(x), cy=_n(y), r=4, cls="marker")
    return el("path", d=SHAPES[shape], transform=f"translate({_n(x)} {_n(y)})", cls="marker")


def swatch(style: Style, *, line: bool = True, point: bool = True) -> Html:
    """What a series looks like, for the legend."""
    drawn = []
    if line:
        drawn.append(el("polyline", points="1,7 35,7", cls=f"line {style.colour}", stroke_dasharray=style.dash))
    if point:
        drawn.append(el("g", marker(style.marker, 18, 7), cls=f"points {style.colour}"))
    return el("svg", *drawn, viewBox="0 -2 36 18", cls="swatch", aria_hidden="true")


def interval(middle: float, low: float, high: float, reach: float) -> Html:
    """A mean with its interval on a scale from -reach to reach, zero in the middle, for a cell of a table."""
    half, y = 60, 7
    place = [half + value / reach * (half - 4) for value in (low, middle, high)]
    drawn = [
        el("line", x1=half, x2=half, y1=0, y2=14, cls="zero"),
        el("path", d=f"M{_n(place[0])} {y}H{_n(place[2])}M{_n(place[0])} 4v6M{_n(place[2])} 4v6", cls="bar"),
        el("circle", cx=_n(place[1]), cy=y, r=3, cls="marker"),
    ]
    return el("svg", *drawn, viewBox=f"0 0 {2 * half} 14", cls="interval", aria_hidden="true")


def _n(value: float) -> str:
    return f"{value:.1f}"
