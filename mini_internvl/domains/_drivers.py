"""Driver policies and the situations they are put in.

A driver follows the centre line (pure pursuit) at the speed that its style allows: never above its cruising speed,
never above what the bends ahead allow at its sideways acceleration, and to a standstill at a red light. A situation
(:class:`Clip`) says where and how a clip starts, so that braking for a bend, pulling away or leaving the road happens
while the images are taken. What the clip is then labelled with is read from the simulated states, not from the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mini_internvl.domains._road import Road

NOSE = 2.6  # metres from the car's centre to its front
LIGHT_IN_VIEW = (-3.0, 34.0)  # a stop line shows while it is so far from the car's front (metres)
SIGHT = np.arange(0.0, 61.0, 1.5)  # metres ahead at which a driver looks at the road


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a kind of driver drives, in metres and seconds; each clip draws its cruising speed from the range."""

    cruise: tuple[float, float]
    sideways: float  # acceleration taken in bends
    gain: float
    brake: float
    weave: float  # size of slow wandering about the chosen line


STYLES: Mapping[str, Style] = {
    "cautious": Style(cruise=(5.0, 9.0), sideways=3.0, gain=2.0, brake=3.0, weave=0.1),
    "normal": Style(cruise=(9.0, 15.0), sideways=4.5, gain=3.5, brake=5.0, weave=0.2),
    "brisk": Style(cruise=(15.0, 21.0), sideways=7.0, gain=5.5, brake=7.0, weave=0.3),
    "aggressive": Style(cruise=(20.0, 27.0), sideways=11.0, gain=8.0, brake=10.0, weave=0.6),
}

SITUATIONS: Mapping[str, float] = {
    "straight": 0.14,
    "bend": 0.14,
    "before_bend": 0.18,
    "after_bend": 0.13,
    "red_light": 0.12,
    "waiting": 0.06,
    "turned_green": 0.08,
    "green_light": 0.04,
    "leaving_road": 0.06,
    "returning": 0.05,
}
"""Share of each situation."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One situation: who drives, where the clip starts, and what happens; in metres, and seconds after the first frame.

    ``start`` and ``speed`` are those at the start of the warm-up. The driver keeps ``offset`` to the left of the centre
    line and moves to ``offset_to`` from ``move_at`` on.
    """

    situation: str
    style: str
    cruise: float
    start: float
    speed: float
    offset: float
    offset_to: float
    move_at: float
    move_rate: float
    wander: tuple[float, float, float]  # about that line: size, period, phase (radians)
    line: float | None  # position of a stop line along the centre line
    green_at: float  # when its light turns green; infinite for a light that stays red

    def line_offset(self, time: float) -> float:
        """The offset that the driver aims for at ``time``."""
        size, period, phase = self.wander
        moved = min(max(time - self.move_at, 0.0) * self.move_rate, abs(self.offset_to - self.offset))
        return (
            self.offset
            + math.copysign(moved, self.offset_to - self.offset)
            + size * math.sin(2 * math.pi * time / period + phase)
        )

    def light_at(self, time: float, s: float, road: Road) -> tuple[str | None, float | None]:
        """Colour and distance (m, from the car's front at ``s``) of the stop light, or None while it is out of view."""
        distance = math.inf if self.line is None else _ahead(self.line - s, road.lap) - NOSE
        if not LIGHT_IN_VIEW[0] <= distance <= LIGHT_IN_VIEW[1]:
            return None, None
        return ("green" if time >= self.green_at else "red"), round(distance, 4)


class Driver:
    """Follows the centre line by a clip's plan."""

    REACTION = 0.15  # seconds between green and the first press on the gas
    WHEEL_BASE = 3.24  # metres between the axles

    def __init__(self, road: Road, clip: Clip) -> None:
        self.road, self.clip, self.style = road, clip, STYLES[clip.style]

    def control(self, time: float, x: float, y: float, heading: float, speed: float) -> tuple[float, float, str]:
        """Angle of the front wheels (radians), acceleration (m/s^2) and what limits the speed, as in CarState."""
        s, offset = self.road.project(x, y)
        target, limit = self._target_speed(time, s, offset)
        change = 4.0 * (target - speed)
        acceleration = max(-1.3 * self.style.brake, min(self.style.gain, change))
        return self._steer(time, s, x, y, heading, speed), acceleration, limit

    def _target_speed(self, time: float, s: float, offset: float) -> tuple[float, str]:
        """The lowest of the speeds that cruising, the bends ahead and a red light allow."""
        choices = [(self.clip.cruise, "cruise"), (bend_speed(self.road, self.style, s), "bend")]
        if abs(offset) > self.road.HALF_WIDTH:
            choices.append((min(self.clip.cruise, 9.0), "cruise"))
        if self.clip.line is not None and time < self.clip.green_at + self.REACTION:
            room = _ahead(self.clip.line - s, self.road.lap) - NOSE - 1.5
            if room > -NOSE - 2.0:
                choices.append((math.sqrt(2 * self.style.brake * max(room, 0.0)), "light"))
        return min(choices)

    def _steer(self, time: float, s: float, x: float, y: float, heading: float, speed: float) -> float:
        """Pure pursuit: the wheel angle of the arc through a point ahead on the driver's line; 0 while standing."""
        if speed < 0.1:
            return 0.0
        reach = min(max(0.45 * speed, 4.5), 12.0)
        aim_x, aim_y = self.road.point(s + reach, self.clip.line_offset(time))
        dx, dy = aim_x - x, aim_y - y
        left = -math.cos(heading) * dx - math.sin(heading) * dy
        return math.atan2(2 * self.WHEEL_BASE * left, dx * dx + dy * dy)


def bend_speed(road: Road, style: Style, s: float) -> float:
    """Highest speed (m/s) at ``s`` from which every bend in sight can still be taken."""
    sharp = np.maximum(np.abs(road.curvatures(s + SIGHT)), 1e-4)
    return float(np.sqrt(style.sideways / sharp + 2 * style.brake * SIGHT).min())


def _ahead(distance: float, lap: float) -> float:
    """A distance along the loop as the nearest signed one, in (-lap / 2, lap / 2]."""
    return (distance + lap / 2) % lap - lap / 2


def plan_clip(road: Road, rng: np.random.Generator, *, warm_up: float) -> Clip:
    """Draws a situation and a place where it can happen on this road."""
    names = list(SITUATIONS)
    situation = names[int(rng.choice(len(names), p=list(SITUATIONS.values())))]
    name = list(STYLES)[int(rng.choice(len(STYLES), p=[0.2, 0.3, 0.3, 0.2]))]
    style = STYLES[name]
    cruise = float(rng.uniform(*style.cruise))
    differing = getattr(_Places(road, rng, style, cruise, warm_up), situation)()
    differing["start"] %= road.lap
    offset = float(np.clip(rng.normal(0, 1.2), -3, 3))
    plain = {
        "cruise": cruise,
        "speed": min(cruise, bend_speed(road, style, differing["start"])),
        "offset": offset,
        "offset_to": offset,
        "move_at": 0.0,
        "move_rate": 1.0,
        "line": None,
        "green_at": math.inf,
        "wander": (style.weave * float(rng.random()), float(rng.uniform(2.5, 5.0)), float(rng.uniform(0, 6.28))),
    }
    return Clip(situation=situation, style=name, **{**plain, **differing})


class _Places:
    """Where each situation can happen; every method returns the fields of Clip that differ from a plain drive."""

    def __init__(self, road: Road, rng: np.random.Generator, style: Style, cruise: float, warm_up: float) -> None:
        self.road, self.rng, self.style, self.cruise, self.warm_up = road, rng, style, cruise, warm_up
        self.s = np.arange(0.0, road.lap, 3.0)
        self.bent = np.abs(road.curvatures(self.s))
        ahead = (self.s[:, None] + np.arange(0.0, 46.0, 3.0)) % road.lap  # (N, 16)
        self.bent_ahead = np.abs(road.curvatures(ahead.ravel())).reshape(ahead.shape)

    def _pick(self, mask: np.ndarray) -> float:
        """A random position where ``mask`` holds, or any where it never does."""
        return float(self.rng.choice(self.s[mask] if mask.any() else self.s))

    def _draw(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def straight(self) -> dict[str, float]:
        return {"start": self._pick(self.bent_ahead.max(1) < 0.008)}

    def bend(self) -> dict[str, float]:
        return {"start": self._pick(self.bent_ahead[:, :8].mean(1) > 0.025)}

    def before_bend(self) -> dict[str, float]:
        entry = self._pick((self.bent < 0.015) & (self.bent_ahead[:, 1:6].max(1) > 0.045))
        slow = math.sqrt(self.style.sideways / 0.06)
        braking = max(self.cruise**2 - slow**2, 0.0) / (2 * self.style.brake)
        return {"start": entry - braking - self.cruise * (self.warm_up + self._draw(-0.6, 0.9))}

    def after_bend(self) -> dict[str, float]:
        leaving = self._pick((self.bent > 0.03) & (self.bent_ahead[:, 4:12].max(1) < 0.015))
        slow = min(self.cruise, math.sqrt(self.style.sideways / 0.06))
        return {"start": leaving - slow * self._draw(0.0, 1.0), "speed": slow}

    def _gentle(self) -> np.ndarray:
        """Places before a fairly straight piece, where a stop line can stand."""
        return self.bent_ahead[:, :14].max(1) < 0.02

    def red_light(self) -> dict[str, float]:
        brake = self.style.brake
        left = self._draw(0.3, 3.2)  # seconds to the standstill, from the first frame
        speed = min(self.cruise, brake * (left + self.warm_up))
        start = self._pick(self._gentle())
        room = speed**2 / (2 * brake) + max(left + self.warm_up - speed / brake, 0.0) * speed * 0.5
        return {"start": start, "speed": speed, "line": start + room + NOSE + 1.5}

    def waiting(self) -> dict[str, float]:
        start = self._pick(self._gentle())
        return {"start": start, "speed": 0.0, "line": start + NOSE + self._draw(0.5, 1.5)}

    def turned_green(self) -> dict[str, float]:
        return {**self.waiting(), "green_at": self._draw(-0.4, 0.6)}

    def green_light(self) -> dict[str, float]:
        start = self._pick(self._gentle())
        return {
            "start": start,
            "line": start + self.cruise * self.warm_up + self._draw(8.0, 34.0) + NOSE,
            "green_at": -math.inf,
        }

    def leaving_road(self) -> dict[str, float]:
        slow = min(self.cruise, 18.0)
        return {**self._sideways(self._side(), (2.0, 4.5), (9.0, 11.0), latest=0.2), "cruise": slow, "speed": slow}

    def returning(self) -> dict[str, float]:
        side, speed = self._side(), self._draw(5.0, 9.0)
        return {**self._sideways(side, (8.5, 11.5), (0.0, 4.0), latest=0.3), "speed": speed}

    def _side(self) -> float:
        return float(self.rng.choice([-1.0, 1.0]))

    def _sideways(
        self, side: float, begin: tuple[float, float], end: tuple[float, float], *, latest: float
    ) -> dict[str, float]:
        """From one range of offsets to another, on one side of the centre line."""
        return {
            "start": self._pick(self._gentle()),
            "offset": side * self._draw(*begin),
            "offset_to": side * self._draw(*end),
            "move_at": self._draw(-0.5, latest),
            "move_rate": self._draw(4.0, 8.0),
        }
