"""The centre line of a simulated track, as the driver and the labels see it. Pure numpy.

Unusual: the loop is closed, so every position ``s`` (metres along the centre line) is taken modulo the lap; heading is
counter-clockwise from the world's y axis, as Box2D's body angles are, and left is positive.
"""

from __future__ import annotations

import math

import numpy as np


class Road:
    """A closed centre line with heading and curvature along it."""

    HALF_WIDTH = 40 / 6  # metres from the centre line to the edge (CarRacing's TRACK_WIDTH)

    def __init__(self, points: np.ndarray, *, reverse: bool = False) -> None:
        """``points`` (N, 2): the centre line in CarRacing's own direction; ``reverse`` drives it the other way."""
        self.points = points[::-1].copy() if reverse else points
        steps = np.roll(self.points, -1, axis=0) - self.points
        lengths = np.hypot(steps[:, 0], steps[:, 1])
        self.lap = float(lengths.sum())
        self._s = np.concatenate([[0.0], np.cumsum(lengths)])
        self._closed = np.concatenate([self.points, self.points[:1]])
        self._steps, self._lengths = steps, lengths

        # Heading at a point: halfway between the segments that meet there.
        segment = np.unwrap(np.arctan2(-steps[:, 0], steps[:, 1]))
        turn = np.mod(np.diff(segment, append=segment[0]) + math.pi, 2 * math.pi) - math.pi  # (N,) at the segment's end
        before = np.roll(turn, 1)
        heading = segment - before / 2
        self._heading = np.unwrap(np.concatenate([heading, heading[:1]]))
        raw = before / ((lengths + np.roll(lengths, 1)) / 2)
        smooth = (np.roll(raw, 1) + 2 * raw + np.roll(raw, -1)) / 4
        self._curvature = np.concatenate([smooth, smooth[:1]])

    def point(self, s: float, offset: float = 0.0) -> tuple[float, float]:
        """World position at ``s``, ``offset`` metres to the left of the centre line."""
        s = s % self.lap
        x, y = (float(np.interp(s, self._s, column)) for column in self._closed.T)
        heading = self.heading(s)
        return x - math.cos(heading) * offset, y - math.sin(heading) * offset

    def heading(self, s: float) -> float:
        """Radians."""
        return float(np.interp(s % self.lap, self._s, self._heading))

    def curvatures(self, s: float | np.ndarray) -> np.ndarray:
        """1/m at each ``s``, whatever its shape."""
        return np.interp(s % self.lap, self._s, self._curvature)

    def strongest(self, s: float, ahead: float) -> float:
        """The curvature of largest size within ``ahead`` metres after ``s``, sign kept."""
        values = self.curvatures(s + np.arange(0.0, ahead + 1.0, 1.0))
        return float(values[np.argmax(np.abs(values))])

    def project(self, x: float, y: float) -> tuple[float, float]:
        """World position -> (s, offset to the left of the centre line), by the nearest segment."""
        relative = np.array([x, y]) - self.points  # (N, 2)
        share = np.clip((relative * self._steps).sum(1) / self._lengths**2, 0.0, 1.0)
        away = relative - share[:, None] * self._steps
        index = int(np.argmin((away**2).sum(1)))
        step = self._steps[index]
        side = step[0] * away[index, 1] - step[1] * away[index, 0]
        distance = math.hypot(*away[index])
        return float(self._s[index] + share[index] * self._lengths[index]), math.copysign(distance, side)
