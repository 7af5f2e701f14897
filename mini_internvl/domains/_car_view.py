"""The image of a driving clip: what CarRacing shows, drawn small and readable with Pillow.

CarRacing's own image is drawn at 1000 x 800 and shrunk to 96 x 96, where its indicators are two pixels wide and a
metre per second is a twentieth of a pixel. This view keeps its content (car from above, always facing up; road tiles in
three greys, kerbs, grass in squares; indicators for true speed, steering and gyroscope) but draws the indicators as
bars as wide as the image and keeps the scale equal in both directions.

Layout for 112 pixels: 84 rows of scene, the car 24 rows above their end; below, on black, three bars of 104 pixels:
white, speed, 0 at the left to 32 m/s, a tick each 4 m/s; green, front wheel angle, left of the middle for left, full at
22.9 degrees; red, turning rate, left of the middle for left, full at 75 degrees a second.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from mini_internvl.domains._drivers import Clip
from mini_internvl.domains._road import Road

if TYPE_CHECKING:
    from mini_internvl.domains._car_racing import CarState

FULL_SPEED = 32.0  # m/s at the right end of the speed bar
FULL_STEERING = math.degrees(0.4)  # degrees at the ends of the steering bar
FULL_TURN = 75.0  # degrees per second at the ends of the gyroscope bar
METRES_ACROSS = 64.0  # width of the scene

GRASS, GRASS_SQUARE = (102, 204, 102), (118, 226, 118)
ROAD = ((96, 96, 96), (106, 106, 106), (116, 116, 116))
LAMP = {"red": (255, 40, 40), "green": (40, 255, 90)}
GRASS_CORNERS = np.array([(1, 0), (0, 0), (0, 1), (1, 1)])
OVERSAMPLE = 3
SIGHT = 62.0  # metres around the car within which anything is drawn; no part of the scene is farther away


class View:
    """Draws frames of one clip, with the track of a CarRacing environment that has just been reset."""

    def __init__(self, environment: Any, road: Road, clip: Clip, *, size: int) -> None:
        self._road, self._clip = road, clip
        self._side = size * OVERSAMPLE  # of the large canvas
        self._unit = self._side / 112  # one layout pixel
        self._quads = np.array([quad for quad, _ in environment.road_poly])  # (N, 4, 2)
        self._centres = self._quads.mean(1)
        greys = itertools.cycle(ROAD)  # kerbs carry tuples, road tiles arrays
        self._colours = [given if isinstance(given, tuple) else next(greys) for _, given in environment.road_poly]

    def draw(self, car: Any, state: CarState) -> Image.Image:
        """(size, size) RGB image of the world around the car with the indicators below it."""
        self._origin = np.array([state.x, state.y])
        self._turn = math.radians(state.heading)
        canvas = Image.new("RGB", (self._side, self._side), GRASS)
        pen = ImageDraw.Draw(canvas)
        self._draw_grass(pen)
        near = np.flatnonzero(((self._centres - self._origin) ** 2).sum(1) < SIGHT**2)
        self._polygons(pen, self._quads[near], [self._colours[index] for index in near])
        self._draw_light(pen, state)
        self._draw_car(pen, car)
        self._draw_indicators(pen, state)
        return canvas.reduce(OVERSAMPLE)

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 2) -> canvas points (..., 2); the car stands still, heading up."""
        cos, sin = math.cos(self._turn), math.sin(self._turn)
        # columns: right and down of the car
        turned = (points - self._origin) @ np.array([[cos, sin], [sin, -cos]])
        return turned * (self._side / METRES_ACROSS) + np.array([56, 60]) * self._unit

    def _polygons(self, pen: ImageDraw.ImageDraw, points: np.ndarray, colours: list[tuple[int, ...]]) -> None:
        """Filled polygons of equal length; (N, corners, 2) world points."""
        for corners, colour in zip(self._pixels(points).reshape(len(points), -1).tolist(), colours, strict=True):
            pen.polygon(corners, fill=colour)

    def _draw_grass(self, pen: ImageDraw.ImageDraw) -> None:
        """Lighter squares of CarRacing's grass pattern, every second one in both directions."""
        square = 2000 / 6 / 20
        low = np.floor((self._origin - SIGHT) / square / 2) * 2
        high = np.ceil((self._origin + SIGHT) / square)
        columns, rows = np.meshgrid(np.arange(low[0], high[0] + 1, 2), np.arange(low[1], high[1] + 1, 2))
        squares = np.stack([columns.ravel(), rows.ravel()], 1)[:, None] + GRASS_CORNERS  # (N, 4, 2)
        self._polygons(pen, squares * square, [GRASS_SQUARE] * len(squares))

    def _draw_light(self, pen: ImageDraw.ImageDraw, state: CarState) -> None:
        """A white stop line across the road with a lamp on either side."""
        if state.light is None or self._clip.line is None:
            return
        line, edge = self._clip.line, self._road.HALF_WIDTH
        corners = [(line - 0.6, -edge), (line - 0.6, edge), (line + 0.6, edge), (line + 0.6, -edge)]
        self._polygons(pen, np.array([[self._road.point(s, offset) for s, offset in corners]]), [(255, 255, 255)])
        for offset in (-edge - 2.2, edge + 2.2):
            x, y = self._pixels(np.array(self._road.point(line, offset))).tolist()
            for radius, colour in ((4.2, (20, 20, 20)), (3.0, LAMP[state.light])):
                reach = radius * self._unit
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _draw_car(self, pen: ImageDraw.ImageDraw, car: Any) -> None:
        """Wheels, then the body, from the simulator's own shapes."""
        for body in car.drawlist:
            colour = (204, 0, 0) if body is car.hull else (0, 0, 0)
            for fixture in body.fixtures:
                points = [body.transform * vertex for vertex in fixture.shape.vertices]
                self._polygons(pen, np.array([[(point[0], point[1]) for point in points]]), [colour])

    def _draw_indicators(self, pen: ImageDraw.ImageDraw, state: CarState) -> None:
        """The three bars; see the head of this file."""
        unit = self._unit

        def box(left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
            """A rectangle in layout pixels, right and bottom excluded."""
            if (right - left) * unit > 1:
                pen.rectangle((left * unit, top * unit, right * unit - 1, bottom * unit - 1), fill=colour)

        box(0, 84, 112, 112, (0, 0, 0))
        box(4, 86, 4 + 104 * min(state.speed / FULL_SPEED, 1.0), 93, (255, 255, 255))
        for x in range(4, 112, 13):
            box(x - 0.5, 93, x + 0.5, 95, (150, 150, 150))
        steering, turn = state.steering / FULL_STEERING, state.yaw_rate / FULL_TURN
        for top, value, colour in ((96, steering, (0, 255, 0)), (104, turn, (255, 0, 0))):
            end = 56 - 52 * max(-1.0, min(1.0, value))
            box(min(56, end), top, max(56, end), top + 7, colour)
            box(55.5, top, 56.5, top + 7, (150, 150, 150))
