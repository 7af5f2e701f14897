"""Charts: every line is placed inside the canvas, labels are readable numbers and do not touch."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mini_internvl.report import svg
from mini_internvl.report.svg import Series


def chart(*series: Series, **settings: object) -> ElementTree.Element:
    """The parsed image of some lines."""
    named = {"title": "Loss", "x_title": "step", "y_title": "loss"} | settings
    return ElementTree.fromstring(svg.line_chart(series=series, **named))


def places(drawn: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = [pair for line in drawn.iter("polyline") for pair in line.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in pairs)]


@pytest.mark.parametrize(
    "points",
    [
        [(1, 3.0), (2, 1.0), (3, 2.0)],
        [(5, 0.0)],
        [(1, 7.0), (2, 7.0)],
        [(1, -3.0), (400, 1e6)],
        [(1, 1e-9), (2, 4e-4)],
        [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)],
        [(i, math.sin(i)) for i in range(5000)],
    ],
)
def test_lines_lie_on_the_canvas(points: list[tuple[float, float]]) -> None:
    drawn = chart(Series(name="line", points=points))
    found = places(drawn)
    assert 1 <= len(found) <= svg.MOST_POINTS + 1
    assert all(svg.LEFT <= x <= svg.WIDTH - svg.RIGHT for x, _ in found)
    assert all(svg.TOP - 0.1 <= y <= svg.HEIGHT - svg.BOTTOM + 0.1 for _, y in found)
    ticks = [text.text for text in drawn.iter("text") if text.attrib["class"] == "tick"]
    assert len(ticks) <= len(set(ticks)) + 5  # both axes may name the same numbers


@pytest.mark.parametrize(
    ("points", "across", "up"),
    [
        ([(1, 0.0), (2, 0.0)], ["1", "2"], ["0", "0.25", "0.50", "0.75", "1.00"]),
        ([(1, 6e-4), (3, 6e-4)], ["1", "2", "3"], ["0", "2e-4", "4e-4", "6e-4"]),
        ([(0, -2.0), (400, 8.0)], ["0", "100", "200", "300", "400"], ["-2.5", "0", "2.5", "5.0", "7.5", "10.0"]),
        ([(1, 4.0), (3, 2.9)], ["1", "2", "3"], ["2.5", "3.0", "3.5", "4.0"]),
    ],
)
def test_ticks_are_round(points: list[tuple[float, float]], across: list[str], up: list[str]) -> None:
    texts = [text for text in chart(Series(name="line", points=points)).iter("text") if text.attrib["class"] == "tick"]
    assert [text.text for text in texts if text.attrib.get("text-anchor") == "middle"] == across
    assert [text.text for text in texts if text.attrib["x"] == str(svg.LEFT - 6)] == up


def test_higher_values_stand_higher() -> None:
    (_, low), (_, high) = places(chart(Series(name="line", points=[(0, 1.0), (1, 9.0)])))
    assert high < low


def test_no_points_no_chart() -> None:
    assert svg.line_chart(title="x", x_title="x", y_title="y", series=[Series(name="a", points=[(1, math.nan)])]) == ""


def test_value_labels_do_not_touch() -> None:
    lines = [Series(name=str(i), points=[(0, 5.0), (1, 0.001 * i)], colour=i) for i in (1, 2)]
    drawn = chart(*lines)
    heights = [float(text.attrib["y"]) for text in drawn.iter("text") if text.attrib["class"].startswith("value")]
    assert abs(heights[0] - heights[1]) >= svg.LABEL_GAP - 0.1
    assert max(heights) <= svg.HEIGHT - svg.BOTTOM + 5


def test_titles_ticks_borders_and_words_for_screen_readers() -> None:
    drawn = chart(Series(name="training", points=[(1, 3.0), (450, 0.42)]), borders=[(200.0, "read & see")])
    texts = [text.text for text in drawn.iter("text")]
    assert {"step", "loss", "0", "1", "2", "3", "0.42", "read & see"} <= set(texts)
    assert drawn.attrib["role"] == "img"
    label = drawn.attrib["aria-label"]
    assert label.startswith("Loss. training: from 3 at step 1 to 0.42 at step 450, lowest 0.42 at 450, highest 3 at 1")


def test_colours_come_from_the_page() -> None:
    text = svg.line_chart(
        title="a", x_title="b", y_title="c", series=[Series(name="d", points=[(1, 1), (2, 2)], dots=True)]
    )
    assert not re.search(r"#[0-9a-f]{3}|fill=|stroke=|style=|font-family", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.42, "0.42"),
        (12.34, "12.3"),
        (1310.2, "1,310"),
        (4e-4, "4e-4"),
        (2.5e-5, "2.5e-5"),
        (-3, "-3"),
        (5.7, "5.70"),
        (0.05, "0.0500"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert svg.number(value) == text


def test_bars_show_shares() -> None:
    drawn = ElementTree.fromstring(svg.bars(50.0, 120.0, 100.0))
    widths = [float(bar.attrib["width"]) for bar in drawn.iter("rect") if "bar" in bar.attrib["class"].split()]
    assert widths == [100.0, 200.0]


def test_error_bars_stay_inside() -> None:
    drawn = ElementTree.fromstring(svg.error_bars([("other", 95.0, 10.0), ("this", math.nan, 3.0)], 100.0))
    widths = {bar.attrib["class"]: float(bar.attrib["width"]) for bar in drawn.iter("rect")}
    assert widths == {"track": 200.0, "bar other": 190.0, "bar this": 0.0}
    whiskers = [path.attrib["d"] for path in drawn.iter("path")]
    assert len(whiskers) == 1  # a value that is missing has none
    assert whiskers[0].startswith("M170.0 5.5H200.0")


@pytest.mark.parametrize(("most", "end"), [(0, 1), (0.7, 0.8), (1, 1), (101, 200), (754, 800), (1000, 1000)])
def test_bars_end_at_round_numbers(most: float, end: float) -> None:
    assert svg.round_end(most) == pytest.approx(end)
