"""Charts: every line lies inside the canvas, values can be read, colours come from the page."""

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
    ],
)
def test_lines_lie_on_the_canvas(points: list[tuple[float, float]]) -> None:
    found = places(chart(Series(name="line", points=points)))
    assert len(found) == len(points)
    assert all(svg.LEFT <= x <= svg.WIDTH - svg.RIGHT for x, _ in found)
    assert all(svg.TOP - 0.1 <= y <= svg.HEIGHT - svg.BOTTOM + 0.1 for _, y in found)


def test_higher_values_stand_higher() -> None:
    (_, low), (_, high) = places(chart(Series(name="line", points=[(0, 1.0), (1, 9.0)])))
    assert high < low


def test_no_points_no_chart() -> None:
    assert svg.line_chart(title="x", x_title="x", y_title="y", series=[Series(name="a", points=[])]) == ""


def test_titles_ticks_borders_and_words_for_screen_readers() -> None:
    drawn = chart(Series(name="training", points=[(1, 3.0), (450, 0.42)]), borders=[(200.0, "read & see")])
    texts = [text.text for text in drawn.iter("text")]
    assert {"step", "loss", "0", "1", "2", "3", "0.42", "read & see"} <= set(texts)
    assert drawn.attrib["aria-label"] == "Loss. training: from 3 to 0.42 at step 450, between 0.42 and 3"


@pytest.mark.parametrize("ends", [(0.0, 0.001), (0.0, 0.0), (5.0, 4.9), (0.0, 5.0)])
def test_last_values_stand_apart_and_above_the_axis(ends: tuple[float, float]) -> None:
    drawn = chart(*(Series(name=str(i), points=[(1, 5.0), (2, end)]) for i, end in enumerate(ends)))
    heights = sorted(float(text.attrib["y"]) - 4 for text in drawn.iter("text") if "value" in text.attrib["class"])
    assert heights[1] - heights[0] >= svg.LABEL_GAP - 0.11
    assert heights[1] <= svg.HEIGHT - svg.BOTTOM


def test_small_ticks_have_no_spare_zeros() -> None:
    drawn = chart(Series(name="lr", points=[(1, 1e-3), (2, 0.0)]))
    assert {"0", "2.5e-4", "5e-4", "7.5e-4", "0.001"} <= {text.text for text in drawn.iter("text")}


def test_colours_come_from_the_page() -> None:
    line = Series(name="d", points=[(1, 1), (2, 2)], dots=True)
    text = svg.line_chart(title="a", x_title="b", y_title="c", series=[line])
    assert not re.search(r"#[0-9a-f]{3}|fill=|stroke=|style=|font-family", text)


def test_error_bars_stay_inside() -> None:
    drawn = ElementTree.fromstring(svg.error_bars([("other", 95.0, 10.0), ("this", math.nan, 3.0)], 100.0))
    widths = {bar.attrib["class"]: float(bar.attrib["width"]) for bar in drawn.iter("rect")}
    assert widths == {"track": 200.0, "bar other": 190.0, "bar this": 0.0}
    assert [path.attrib["d"][:15] for path in drawn.iter("path")] == ["M170.0 5.5H200."]  # none for a missing value


def test_values_that_differ_by_rounding_alone_are_one() -> None:
    low = 10.0
    points = [(1.0, low), (2.0, math.nextafter(low, 11))]
    drawn = svg.line_chart(title="t", x_title="x", y_title="y", series=[svg.Series(name="a", points=points)])
    assert ">10<" in drawn
