"""The driving simulator: Gymnasium's CarRacing-v3 with drivers of our own, images taken only where they are kept.

Unusual:

* ``CarRacing.step`` draws an image on every physics step. :func:`quiet_environment` turns that off and leaves the rest
  of the step untouched, so the physics is the official one; kept frames are drawn by ``_car_view``.
* Box2D counts in metres, kilograms and seconds and the simulated car is 5.1 m long, so the world unit is taken as the
  metre: speeds are world units per second, written m/s.
* Angles are counter-clockwise: left is positive, in headings, yaw rates, steering angles, curvatures and offsets alike.
* CarRacing has no traffic. A clip may get a stop line with a light, which the driver obeys and the image shows; the
  physics does not know about it.

One clip is one fresh world on one track seed, so a clip depends on its seed alone and never on the clips before it.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_internvl.domains._drivers import Clip, Driver, plan_clip
from mini_internvl.domains._road import Road

STEP = 1 / 50  # seconds of one physics step (CarRacing's FPS)
WARM_UP = 0.6  # seconds driven before the first kept frame, so that the start leaves no trace
WHEEL_RADIUS = 0.54  # metres; CarRacing's WHEEL_R x SIZE
INERTIA = 29.2  # kilograms that the drive moves: body and wheels, 7.3, and four spinning wheels, 4 x 1.6 / 0.54^2
ENGINE_POWER = 40_000.0  # watts of one driven wheel at full gas; the two rear wheels are driven
BRAKE_POWER = 304.0  # m/s^2 lost at full brake: 15 rad/s a step on four wheels of moment 1.6, over INERTIA
MAX_STEER = 0.4  # radians; the front wheels' joint limit


@dataclass(frozen=True, kw_only=True)
class CarState:
    """True state of the car at one kept moment, in metres, degrees, and seconds after the first kept frame.

    Pedals are as commanded, 0..1. The light and its distance from the car's front are None while it is out of view.
    """

    time: float
    x: float
    y: float
    heading: float  # from the world's y axis, not wrapped
    speed: float
    yaw_rate: float
    steering: float  # angle of the front wheels against the body
    gas: float
    brake: float
    curvature: float  # of the road beside the car
    curvature_ahead: float  # the strongest of the next 30 m of road
    offset: float  # from the centre line to the car's centre
    on_grass: bool  # whether the car's centre is off the road
    limit: str  # what sets the driver's speed: ``"cruise"``, ``"bend"`` or ``"light"``
    light: str | None  # ``"red"`` or ``"green"``
    light_distance: float | None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One simulated clip, and the situation as it was planned."""

    clip: Clip
    states: tuple[CarState, ...]  # one per kept frame, then the state one interval later
    frames: tuple[Any, ...]  # PIL images, oldest first


@functools.cache
def quiet_environment() -> type:
    """CarRacing without its drawing (class); ValueError where gymnasium's Box2D environments are not installed."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import Box2D.b2  # noqa: F401  (for the absence of these two gymnasium has an error of its own)
            import pygame.gfxdraw  # noqa: F401
            from gymnasium.envs.box2d.car_racing import CarRacing
    except ImportError as error:
        raise ValueError('the driving simulator is missing; run: pip install "mini-internvl[sim]"') from error

    class QuietCarRacing(CarRacing):
        def _render(self, mode: str) -> None:
            return None

    return QuietCarRacing


def simulate(track_seed: int, *, frames: int = 4, interval: float = 0.4, size: int = 112) -> Rollout:
    """Drives the clip of a seed: ``frames`` images of ``size`` pixels, ``interval`` seconds (n times 0.02) apart."""
    from mini_internvl.domains._car_view import View

    environment = quiet_environment()()
    environment.reset(seed=track_seed)
    rng = np.random.default_rng([track_seed, 1])
    road = Road(np.array([row[2:4] for row in environment.track]), reverse=bool(rng.random() < 0.5))
    clip = plan_clip(road, rng, warm_up=WARM_UP)
    view = View(environment, road, clip, size=size)
    _place_car(environment, road, clip)

    driver = Driver(road, clip)
    every = round(interval / STEP)
    first = round(WARM_UP / STEP)
    states: list[CarState] = []
    images: list[Any] = []
    for step in range(first + every * frames + 1):
        time = (step - first) * STEP
        car = environment.car
        x, y = car.hull.position
        speed = float(car.hull.GetLocalVector(car.hull.linearVelocity)[1])
        angle, acceleration, limit = driver.control(time, float(x), float(y), float(car.hull.angle), speed)
        steer, gas, brake = _pedals(angle, acceleration, speed, float(car.wheels[2].omega))
        if step >= first and (step - first) % every == 0:
            states.append(_state(time, car, driver, limit, gas, brake))
            if len(images) < frames:
                images.append(view.draw(car, states[-1]))
        environment.step(np.array([-steer, gas, brake]))
    return Rollout(clip=clip, states=tuple(states), frames=tuple(images))


def _place_car(environment: Any, road: Road, clip: Clip) -> None:
    """Puts a new car where the clip starts, already rolling."""
    from gymnasium.envs.box2d.car_dynamics import SIZE, WHEELPOS, Car

    x, y = road.point(clip.start, clip.offset)
    heading = road.heading(clip.start)
    velocity = (-math.sin(heading) * clip.speed, math.cos(heading) * clip.speed)
    environment.car.destroy()
    environment.car = car = Car(environment.world, heading, x, y)
    car.hull.linearVelocity = velocity
    for wheel, (across, along) in zip(car.wheels, WHEELPOS, strict=True):
        wheel.position = car.hull.GetWorldPoint((across * SIZE, along * SIZE))
        wheel.linearVelocity = velocity
        wheel.omega = clip.speed / wheel.wheel_rad


def _pedals(angle: float, acceleration: float, speed: float, omega: float) -> tuple[float, float, float]:
    """Wheel angle (radians) and acceleration (m/s^2) -> steering, gas and brake commands."""
    gas = brake = 0.0
    if acceleration > 0:
        gas = acceleration * INERTIA * WHEEL_RADIUS * (abs(omega) + 5) / (2 * ENGINE_POWER)
    elif acceleration < 0:
        brake = -acceleration / BRAKE_POWER
    if speed < 0.4 and acceleration <= 0:
        brake = 0.5
    return max(-MAX_STEER, min(MAX_STEER, angle)), min(gas, 1.0), min(brake, 0.8)


def _state(time: float, car: Any, driver: Driver, limit: str, gas: float, brake: float) -> CarState:
    """Reads the true state; numbers are rounded to 4 decimals so that the file reads well."""
    road, hull = driver.road, car.hull
    x, y = hull.position
    along, offset = road.project(x, y)
    light, distance = driver.clip.light_at(time, along, road)
    return CarState(
        time=round(time, 4),
        x=round(float(x), 4),
        y=round(float(y), 4),
        heading=round(math.degrees(hull.angle), 4),
        speed=round(float(hull.linearVelocity.length), 4),
        yaw_rate=round(math.degrees(hull.angularVelocity), 4),
        steering=round(math.degrees(car.wheels[0].joint.angle), 4),
        gas=round(gas, 4),
        brake=round(brake, 4),
        curvature=round(float(road.curvatures(along)), 5),
        curvature_ahead=round(road.strongest(along, 30.0), 5),
        offset=round(offset, 4),
        on_grass=abs(offset) > road.HALF_WIDTH,
        limit=limit,
        light=light,
        light_distance=distance,
    )
