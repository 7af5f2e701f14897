"""Boxes: to thousandths and back, their text form, overlap, drawing."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.inputs import boxes

side = st.integers(1, 5000)
share = st.floats(0, 1)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(width=side, height=side, shares=st.tuples(share, share, share, share))
def test_pixels_survive_the_way_there_and_back(width, height, shares):
    x1, x2 = sorted((shares[0] * width, shares[1] * width))
    y1, y2 = sorted((shares[2] * height, shares[3] * height))
    there = boxes.to_thousand((x1, y1, x2, y2), width, height)
    assert all(0 <= value <= 1000 and isinstance(value, int) for value in there)
    back = boxes.to_pixels(there, width, height)
    for before, after, length in zip((x1, y1, x2, y2), back, (width, height) * 2, strict=True):
        assert abs(before - after) <= length / 2000 + 1e-6


def test_boxes_outside_the_image_are_clipped():
    assert boxes.to_thousand((-5, -5, 500, 500), 100, 200) == (0, 0, 1000, 1000)
    assert boxes.to_pixels((0, 0, 1200, 1000), 100, 200) == (0, 0, 100, 200)


@pytest.mark.parametrize("box", [(3, 1, 2, 4), (1, 5, 2, 4), (1, 2, 3)])
def test_swapped_corners_and_missing_numbers_are_refused(box):
    with pytest.raises(ValueError, match="a box is x1, y1, x2, y2 with x1 <= x2"):
        boxes.to_thousand(box, 10, 10)


def test_text_and_back():
    text = boxes.render("the red car", [(1, 2, 3, 4), (5, 6, 700, 1000)])
    assert text == "<ref>the red car</ref><box>[[1, 2, 3, 4], [5, 6, 700, 1000]]</box>"
    assert boxes.parse(f"See {text} there.") == [("the red car", [(1, 2, 3, 4), (5, 6, 700, 1000)])]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<box>[[1,2,3,4]]</box>", [("", [(1, 2, 3, 4)])]),
        ("<box>[1, 2, 3, 4]</box>", [("", [(1, 2, 3, 4)])]),
        ("<ref>a</ref><box>[[1, 2, 3]]</box>", []),
        ("<ref>a</ref><box>[[1, 2, 3, 4], [5]]</box>", [("a", [(1, 2, 3, 4)])]),
        ("<ref>a</ref><box>[[1, 2</box>", []),
        ("<ref>a</ref><box>[]</box>", []),
        ("<box>[[null, 1, 2, 3]]</box>", []),
        ("no box", []),
        (
            "<ref>a</ref><box>[[1, 2, 3, 4]]</box> and <ref>b</ref> <box>[[5, 6, 7, 8]]</box>",
            [("a", [(1, 2, 3, 4)]), ("b", [(5, 6, 7, 8)])],
        ),
    ],
)
def test_what_is_no_box_is_left_out(text, found):
    assert boxes.parse(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[[1, 2, 3, 4]]", [("", [(1, 2, 3, 4)])]),
        ("the red car[[1, 2, 3, 4], [5, 6, 7, 8]]", [("the red car", [(1, 2, 3, 4), (5, 6, 7, 8)])]),
        ("Yes:\na[[1, 2, 3, 4]]b[[5, 6, 7, 8.5]]", [("a", [(1, 2, 3, 4)]), ("b", [(5, 6, 7, 8.5)])]),
        ("<ref>a</ref>[[1, 2, 3, 4]]", [("a", [(1, 2, 3, 4)])]),
        ("[1, 2, 3, 4]", []),
        ("[[1, 2, 3]]", []),
    ],
)
def test_boxes_whose_tags_were_dropped_are_read(text, found):
    assert boxes.parse(text) == found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text("[],12 <>refbox/\n", max_size=60))
def test_any_text_can_be_read(text):
    for _, rows in boxes.parse(text):
        assert rows
        assert all(len(row) == 4 for row in rows)


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0.0),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),
    ],
)
def test_intersection_over_union(first, second, overlap):
    assert boxes.iou(first, second) == pytest.approx(overlap)
    assert boxes.iou(second, first) == pytest.approx(overlap)


def test_drawing_leaves_the_image_alone():
    image = Image.new("RGB", (60, 40), "white")
    drawn = boxes.draw(image, [(10, 10, 50, 30)], ["car"])
    assert image.getextrema() == ((255, 255),) * 3
    assert drawn.getpixel((10, 20)) != (255, 255, 255)
    assert drawn.getpixel((5, 5)) == (255, 255, 255)


corner = st.integers(0, 1000) | st.floats(0, 1000).map(lambda value: round(value, 2))


@given(st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=3), st.text(max_size=9))
def test_boxes_in_order_are_the_same_boxes_with_corners_in_order(found, said):
    said = said.replace("<", "").replace("[", "")
    text = f"{said}<ref>a</ref><box>[{', '.join(str(list(box)) for box in found)}]</box> [[9, 9, 1, 1]]{said}"
    ordered = boxes.in_order(text)
    ((_, again),) = boxes.parse(ordered)
    assert again == [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in found]
    assert boxes.in_order(ordered) == ordered
    assert ordered.startswith(said)
    assert ordered.endswith(f" [[9, 9, 1, 1]]{said}")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("[[1, 2, 3, 4]]", [(1, 2, 3, 4)]),
        ("[[1,2,3,4],[5, 6, 7.5, 8]]", [(1, 2, 3, 4), (5, 6, 7.5, 8)]),
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("[[1, 2, 3]]", None),
        ("[[1, 2, 3, 4], [5, 6]]", None),
        ("the left one", None),
        ("", None),
    ],
)
def test_a_box_tag_holds_lists_of_four_numbers_or_nothing_known(body, found):
    assert boxes.rows(body) == found
