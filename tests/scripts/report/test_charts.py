"""Charts and intervals: scales, thinning, and what is drawn where."""

import math
import random
import re

import pytest
from scipy import stats

from scripts.report.charts import DASHES, MARKERS, Axis, Point, Series, Style, chart, scale, thinned
from scripts.report.markup import Html, el, join
from scripts.report.settings import paired


def ticks_of(low, high, **axis):
    made = scale([(low, low, low), (high, high, high)], Axis("x", **axis), 0, 100, False)
    return made, [made.form(tick) for tick in made.ticks]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1000, ["0", "200", "400", "600", "800", "1,000"]),
        (0.06, 0.14, ["0.06", "0.08", "0.10", "0.12", "0.14"]),
        (-1, 1, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0, 0.002, ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]),
        (0, 1e-4, ["0", "2e−5", "4e−5", "6e−5", "8e−5", "1e−4"]),
        (0, 12, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 5e6, ["0", "1e6", "2e6", "3e6", "4e6", "5e6"]),
    ],
)
def test_ticks_are_round_and_written_alike(low, high, wanted):
    made, printed = ticks_of(low, high)
    assert printed == wanted
    assert (made(low), made(high)) == (0, 100)


@pytest.mark.parametrize("low, high", [(0, 0), (3, 3), (-7, -7), (1, 1 + 1e-12), (1e-300, 1), (-1e90, 1e90)])
def test_any_numbers_make_a_scale(low, high):
    made, printed = ticks_of(low, high)
    assert all(math.isfinite(made(value)) for value in (low, high, *made.ticks))
    assert 2 <= len(made.ticks) <= 7 and all(-1e-6 <= made(tick) <= 100 + 1e-6 for tick in made.ticks)


def test_a_logarithmic_scale_is_for_decades_alone():
    assert ticks_of(10, 1000, may_be_logarithmic=True)[1] == ["10", "20", "50", "100", "200", "500", "1,000"]
    assert not ticks_of(10, 190, may_be_logarithmic=True)[0].log
    assert not ticks_of(0, 1000, may_be_logarithmic=True)[0].log
    wide = scale([(-5, 1, 7), (999, 1000, 1001)], Axis("y", (), True), 100, 0, True)  # an error bar below zero
    assert wide.log and 0 < wide.low < 1 and wide.high > 1001


def test_thinning_keeps_ends_and_extremes():
    draw = random.Random(0)
    points = [Point(i, draw.gauss(0, 1)) for i in range(10_000)]
    points[4321] = Point(4321, 99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100 and kept[0] == points[0] and kept[-1] == points[-1]
    assert points[4321] in kept and min(points, key=lambda p: p.y) in kept
    assert [p.x for p in kept] == sorted({p.x for p in kept})
    assert thinned(points[:100], 100) == points[:100]


def test_a_point_lies_where_its_values_say():
    series = [Series("a", [Point(0, 10), Point(50, 20), Point(100, 30, "told", None, 5.0)], Style.of(0, 0))]
    drawn = chart(series, Axis("step"), Axis("loss", (0, 40)), "Loss")
    places = [tuple(map(float, place.split(","))) for place in re.search('points="([^"]+)"', drawn)[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.1)
    tick = {text: float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">(\d+)</text>', drawn)}
    assert y0 == pytest.approx(tick["10"] - 4, abs=0.1) and y2 == pytest.approx(tick["30"] - 4, abs=0.1)
    low, high = map(float, re.search(r' ([\d.]+)V([\d.]+)M', drawn).groups())
    assert (low, high) == pytest.approx((tick["30"] - 4 + (y0 - y2) / 4, tick["30"] - 4 - (y0 - y2) / 4), abs=0.2)
    assert "<title>a: 10 at step 0</title>" in drawn and "<title>told</title>" in drawn


def test_what_is_no_number_is_left_out():
    nothing = Series("a", [Point(0, math.nan), Point(1, math.inf), Point(2, 1e300)], Style.of(0, 0))
    assert chart([nothing], Axis("x"), Axis("y"), "") is None and chart([], Axis("x"), Axis("y"), "") is None
    drawn = chart([nothing, Series("b", [Point(0, 1)], Style.of(1, 1))], Axis("x"), Axis("y"), "")
    assert "inf" not in drawn and "nan" not in drawn


def test_no_two_of_many_series_need_colour_to_differ():
    forms = {(style.dash, style.marker) for style in (Style.of(0, i) for i in range(len(DASHES) * len(MARKERS)))}
    assert len(forms) == len(DASHES) * len(MARKERS) >= 35


def test_text_is_escaped_once():
    assert el("p", "<&>\"'", title='"<') == '<p title="&quot;&lt;">&lt;&amp;&gt;&quot;&#x27;</p>'
    assert join(el("b", "a"), None, Html("<i>"), 3, "\ud800\x07") == "<b>a</b><i>3\ufffd\ufffd"


# Paired differences


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_interval_is_that_of_the_paired_t_test(n):
    draw = random.Random(n)
    ours, theirs = ({seed: draw.gauss(1, 2) for seed in range(n)} for _ in range(2))
    found, expected = paired(ours, theirs), stats.ttest_rel(list(ours.values()), list(theirs.values()))
    reach = expected.confidence_interval(0.95)
    assert (found.n, found.mean) == (n, pytest.approx(sum(ours[i] - theirs[i] for i in range(n)) / n))
    assert (found.low, found.high) == (pytest.approx(reach.low), pytest.approx(reach.high))
    assert found.is_clear == (expected.pvalue < 0.05)


def test_pairs_are_seeds_that_both_have_a_number_for():
    found = paired({1: 2.0, 2: 4.0, 3: math.nan, 4: 9.0}, {2: 1.0, 1: 1.0, 3: 0.0, 5: 7.0})
    assert (found.n, found.mean) == (2, 2.0)
    alone = paired({1: 2.0}, {1: 1.5})
    assert (alone.n, alone.mean, alone.is_clear) == (1, 0.5, False) and math.isnan(alone.low)
    assert paired({1: 2.0}, {2: 1.5}) is None
