"""Captions follow from the recorded states alone."""

from __future__ import annotations

from typing import Any

import pytest

from mini_internvl.domains._car_racing import CarState
from mini_internvl.domains._driving_words import (
    ACTIONS,
    PATHS,
    PLACES,
    REASONS,
    action_of,
    captions,
    place_of,
    reason_of,
    turn_of,
)


def states(*changes: dict[str, Any]) -> list[CarState]:
    """States 0.4 s apart, on a straight road at 12 m/s where nothing else is said."""
    plain = dict.fromkeys(
        ("x", "y", "heading", "yaw_rate", "steering", "gas", "brake", "curvature", "curvature_ahead", "offset"), 0.0
    )
    rest = {"speed": 12.0, "on_grass": False, "limit": "cruise", "light": None, "light_distance": None}
    return [CarState(time=0.4 * step, **{**plain, **rest, **change}) for step, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("first", "last", "action"),
    [
        (0.0, 0.1, "standing"),
        (5.0, 0.1, "stopping"),
        (0.0, 3.0, "starting"),
        (12.0, 11.9, "steady"),
        (5.0, 5.1, "slow"),
        (22.0, 22.0, "fast"),
        (12.0, 10.5, "slowing"),
        (12.0, 6.0, "braking"),
        (10.0, 12.0, "accelerating"),
        (10.0, 16.0, "surging"),
    ],
)
def test_action(first: float, last: float, action: str) -> None:
    clip = states({"speed": first}, {}, {}, {"speed": last})
    assert action_of(clip) == action


@pytest.mark.parametrize(
    ("heading", "turn"), [(3, "straight"), (10, "left"), (-10, "right"), (30, "sharp left"), (-30, "sharp right")]
)
def test_turn(heading: float, turn: str) -> None:
    assert turn_of(states({}, {"heading": heading})) == turn


@pytest.mark.parametrize(
    ("first", "last", "place"),
    [
        (0, 1, "road"),
        (3, 5, "drifting"),
        (5, 8, "leaving"),
        (8, 8.2, "grass"),
        (9, 7, "returning"),
        (8, 5, "returning"),
    ],
)
def test_place(first: float, last: float, place: str) -> None:
    edge = 6.67
    clip = states({"offset": first, "on_grass": first > edge}, {"offset": last, "on_grass": last > edge})
    assert place_of(clip) == place


def test_reasons_name_what_the_image_shows() -> None:
    red, green = {"light": "red"}, {"light": "green"}
    assert reason_of(states({**red, "speed": 0.0}, {**red, "speed": 0.0})) == "red"
    assert reason_of(states({**red, "speed": 12.0}, {**red, "speed": 10.0})) == "red ahead"
    assert reason_of(states({**red, "speed": 0.0}, {**green, "speed": 2.0})) == "turned green"
    assert reason_of(states(green, green)) == "green"
    assert reason_of(states({}, {})) == "clear"
    assert reason_of(states({}, {"speed": 10.0, "curvature_ahead": 0.06})) == "bend ahead"
    assert reason_of(states({}, {"curvature_ahead": 0.06})) == "before bend"
    assert reason_of(states({"curvature": 0.03}, {"heading": 15.0, "curvature": 0.03})) == "in bend"
    assert reason_of(states({"curvature": 0.03}, {"speed": 14.0, "curvature": 0.03})) == "after bend"


def test_caption_words_follow_the_sides() -> None:
    clip = states({"curvature": -0.06}, {"heading": -30.0, "curvature": -0.06})
    description, reason = captions(clip, seed=0)
    assert description.endswith("turns sharply to the right.")
    assert "sharp" in reason
    assert "right" in reason


def test_seed_changes_wording_not_meaning() -> None:
    clip = states({}, {"speed": 10.5, "curvature_ahead": 0.06})
    seen = {captions(clip, seed) for seed in range(60)}
    assert captions(clip, 5) == captions(clip, 5)
    assert 3 <= len(seen) <= 9
    assert all("left" in reason and ("slow" in text or "reduces" in text) for text, reason in seen)


def test_every_wording_can_be_filled() -> None:
    words = {"path": "", "ahead": "", "side": "left", "sharp": "", "sharply": "", "way": "to the left"}
    for table in (ACTIONS, PLACES, REASONS):
        for wordings in table.values():
            assert all(wording.format(**words).endswith(".") for wording in wordings)
    assert all(not path or path.startswith(" ") for path in PATHS.values())
