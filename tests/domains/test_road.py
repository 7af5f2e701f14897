"""The centre line: positions, headings, curvatures, projection."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mini_internvl.domains._road import Road

RADIUS, POINTS = 50.0, 120


def circle(*, reverse: bool = False) -> Road:
    """A counter-clockwise circle about the origin, starting at (RADIUS, 0) heading along +y."""
    angle = 2 * math.pi * np.arange(POINTS) / POINTS
    return Road(RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1), reverse=reverse)


def test_circle_has_constant_curvature_left_positive() -> None:
    road = circle()
    assert road.lap == pytest.approx(2 * math.pi * RADIUS, rel=1e-3)
    s = np.linspace(0, 2 * road.lap, 77)
    np.testing.assert_allclose(road.curvatures(s), 1 / RADIUS, rtol=1e-3)
    np.testing.assert_allclose(circle(reverse=True).curvatures(s), -1 / RADIUS, rtol=1e-3)


def test_heading_is_counter_clockwise_from_y() -> None:
    road = circle()
    assert road.heading(0.0) == pytest.approx(0.0, abs=1e-6)
    assert road.heading(road.lap / 4) == pytest.approx(math.pi / 2, abs=1e-3)


def test_project_is_the_inverse_of_point() -> None:
    road = circle()
    for s in (1.0, 40.0, 200.0, road.lap - 0.5):
        for offset in (-6.0, 0.5, 6.0):
            where, aside = road.project(*road.point(s, offset))
            assert where == pytest.approx(s, abs=0.2)
            assert aside == pytest.approx(offset, abs=0.05)


def test_left_of_a_left_hand_circle_is_inside() -> None:
    x, y = circle().point(0.0, 5.0)
    assert math.hypot(x, y) == pytest.approx(RADIUS - 5.0, abs=0.01)


def test_strongest_keeps_the_sign() -> None:
    right = circle(reverse=True)
    assert right.strongest(10.0, 30.0) == pytest.approx(-1 / RADIUS, rel=1e-3)
