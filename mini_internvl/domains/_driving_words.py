"""True states of a driving clip -> what the car does and why, in BDD-X's manner.

Unusual: the meaning is a pure function of the recorded states, with thresholds on what the frames show (change of speed
and heading from the first frame to the last, place on the road, colour of the light). Only the wording is drawn: each
meaning has up to three phrasings with shares 70 / 20 / 10, so that a caption is predictable but not a constant.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mini_internvl.domains._car_racing import CarState

STANDING = 0.3  # m/s below which the car counts as standing
CHANGING = 1.2  # m/s^2 from which it counts as speeding up or slowing down
HARD = 4.2  # m/s^2 from which it does so hard
TURNING = 6.0  # degrees of heading, first frame to last, from which it counts as turning
SHARP_TURN = 24.0  # degrees from which the turn is sharp
BENT = 0.012  # 1/m from which the road counts as bending (radius 83 m)
SHARP_BEND = 0.05  # 1/m from which the bend is sharp (radius 20 m)
DRIFTING = 0.8  # metres away from or back to the centre line, first frame to last, that count as moving sideways
EDGE = 3.4  # metres from the centre line from which the car counts as near the edge

SHARES = (0.7, 0.2, 0.1)

ACTIONS: Mapping[str, Sequence[str]] = {
    "standing": ("The car is stopped.", "The car is standing still.", "The car is not moving."),
    "stopping": ("The car comes to a stop.", "The car slows to a stop.", "The car is stopping."),
    "starting": ("The car starts moving.", "The car pulls away from a standstill.", "The car begins to drive forward."),
    "braking": ("The car brakes hard{path}.", "The car slows down quickly{path}.", "The car is braking{path}."),
    "slowing": ("The car is slowing down{path}.", "The car slows down{path}.", "The car reduces its speed{path}."),
    "surging": ("The car accelerates quickly{path}.", "The car speeds up quickly{path}."),
    "accelerating": ("The car accelerates{path}.", "The car is speeding up{path}.", "The car gains speed{path}."),
    "slow": ("The car drives slowly{ahead}{path}.", "The car moves slowly{ahead}{path}."),
    "steady": ("The car drives{ahead} at a steady speed{path}.", "The car is driving{ahead}{path}."),
    "fast": ("The car drives fast{ahead}{path}.", "The car is driving{ahead} at high speed{path}."),
}
PATHS: Mapping[str, str] = {
    "straight": "",
    "left": " and turns to the left",
    "right": " and turns to the right",
    "sharp left": " and turns sharply to the left",
    "sharp right": " and turns sharply to the right",
}
PLACES: Mapping[str, Sequence[str]] = {
    "drifting": ("The car drifts to the {side} edge of the road.", "The car moves to the {side} edge of the road."),
    "leaving": ("The car leaves the road on the {side}.", "The car drifts off the road to the {side}."),
    "grass": ("The car drives on the grass to the {side} of the road.", "The car is off the road on the {side}."),
    "returning": ("The car steers back to the road from the {side}.", "The car returns to the road from the {side}."),
}
REASONS: Mapping[str, Sequence[str]] = {
    "red": ("because the light is red.", "since the light is red.", "as it waits for the red light."),
    "red ahead": ("because the light ahead is red.", "for the red light ahead.", "since it is coming to a red light."),
    "turned green": ("because the light has turned green.", "since the light turned green.", "as the light is green."),
    "green": ("because the light is green.", "since the light ahead is green."),
    "bend ahead": (
        "because the road bends {sharply}{way} ahead.",
        "for the {sharp}bend {way} ahead.",
        "as a {sharp}bend {way} is coming.",
    ),
    "before bend": ("because the {sharp}bend {way} is still ahead.", "as it has not reached the bend {way} yet."),
    "in bend": (
        "because the road bends {sharply}{way}.",
        "to follow the {sharp}bend {way}.",
        "as the road curves {sharply}{way}.",
    ),
    "after bend": ("because it is leaving the bend.", "as the road straightens.", "since the bend is behind it."),
    "open bend": ("because the bend {way} allows more speed.", "as the bend {way} is not tight."),
    "clear": ("because the road ahead is straight.", "as the road is straight and clear.", "since the way is clear."),
    "calm": ("to keep a calm speed.",),
    "drift": ("because it does not follow the road.", "as it steers too far to the {side}."),
    "off road": ("because it has left the road.", "since it is off the road."),
    "get back": ("to get back on the road.", "because it has left the road."),
}


def turn_of(states: Sequence[CarState]) -> str:
    """A key of PATHS, from the change of heading between the first and the last of ``states``."""
    change = states[-1].heading - states[0].heading
    if abs(change) < TURNING:
        return "straight"
    side = "left" if change > 0 else "right"
    return f"sharp {side}" if abs(change) >= SHARP_TURN else side


def action_of(states: Sequence[CarState]) -> str:
    """A key of ACTIONS, from the speeds of ``states``."""
    first, last = states[0].speed, states[-1].speed
    if last < STANDING:
        return "standing" if first < STANDING else "stopping"
    if first < STANDING:
        return "starting"
    gain = (last - first) / (states[-1].time - states[0].time)
    if abs(gain) >= HARD:
        return "surging" if gain > 0 else "braking"
    if abs(gain) >= CHANGING:
        return "accelerating" if gain > 0 else "slowing"
    return "slow" if last < 9 else "fast" if last > 18 else "steady"


def place_of(states: Sequence[CarState]) -> str:
    """``"road"`` or a key of PLACES, from the car's distance to the centre line."""
    first, last = states[0], states[-1]
    outwards = abs(last.offset) - abs(first.offset)
    if first.on_grass and (not last.on_grass or outwards < -DRIFTING):
        return "returning"
    if last.on_grass:
        return "grass" if first.on_grass else "leaving"
    return "drifting" if outwards > DRIFTING and abs(last.offset) > EDGE else "road"


def reason_of(states: Sequence[CarState]) -> str:
    """A key of REASONS: what in the image explains the action."""
    place, action = place_of(states), action_of(states)
    if place != "road":
        return {"drifting": "drift", "leaving": "drift", "grass": "off road", "returning": "get back"}[place]
    if light := _light_reason(states, action):
        return light
    now, ahead = (abs(value) for value in _bends(states))
    if action in ("slowing", "braking"):
        return "bend ahead" if ahead >= BENT else "in bend" if now >= BENT else "calm"
    if action in ("starting", "accelerating", "surging"):
        if now >= BENT and ahead < abs(states[0].curvature):
            return "after bend"
        return "open bend" if ahead >= BENT else "clear"
    if turn_of(states) != "straight":
        return "in bend"
    if ahead >= SHARP_BEND:
        return "bend ahead" if action == "slow" else "before bend"
    return "clear"


def _light_reason(states: Sequence[CarState], action: str) -> str | None:
    """The reason, where a stop light in view explains the action."""
    lights = [state.light for state in states]
    if lights[-1] == "red" and action in ("standing", "stopping"):
        return "red"
    if lights[-1] == "red" and action in ("slowing", "braking", "slow"):
        return "red ahead"
    if "green" in lights and action not in ("slowing", "braking"):
        return "turned green" if action == "starting" or "red" in lights else "green"
    return None


def _bends(states: Sequence[CarState]) -> tuple[float, float]:
    """Curvatures (1/m): the strongest beside the car, and the strongest ahead of it at last."""
    return max((state.curvature for state in states), key=abs), states[-1].curvature_ahead


def captions(states: Sequence[CarState], seed: int) -> tuple[str, str]:
    """(description, justification) of the kept frames' ``states``; ``seed`` draws the wording only."""
    rng = random.Random(seed)
    action, place, turn, reason = action_of(states), place_of(states), turn_of(states), reason_of(states)
    side = "left" if max(states, key=lambda state: abs(state.offset)).offset > 0 else "right"
    wordings = ACTIONS[action] if place == "road" else PLACES[place]
    ahead = " forward" if turn == "straight" else ""
    description = _draw(wordings, rng).format(path=PATHS[turn], ahead=ahead, side=side)

    beside, coming = _bends(states)
    bend = beside if reason == "in bend" else coming
    sharp, sharply = ("sharp ", "sharply ") if abs(bend) >= SHARP_BEND else ("", "")
    way = "to the left" if bend > 0 else "to the right"
    return description, _draw(REASONS[reason], rng).format(sharp=sharp, sharply=sharply, way=way, side=side)


def _draw(wordings: Sequence[str], rng: random.Random) -> str:
    """One wording; the first ones are the more frequent ones."""
    return rng.choices(wordings, weights=SHARES[: len(wordings)])[0]
