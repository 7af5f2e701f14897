"""The simulator: physics, labels and images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mini_internvl.domains import _car_view
from mini_internvl.domains._car_racing import Rollout, quiet_environment, simulate


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return [simulate(seed, frames=4, interval=0.4) for seed in range(500, 508)]


def test_states_and_images_have_their_numbers_and_times(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        assert len(rollout.frames) == 4
        assert [state.time for state in rollout.states] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6])
        assert all(frame.size == (112, 112) and frame.mode == "RGB" for frame in rollout.frames)


def test_speed_is_metres_a_second(rollouts: list[Rollout]) -> None:
    """The way driven between two states fits the speeds at its ends."""
    for rollout in rollouts:
        for one, two in zip(rollout.states, rollout.states[1:], strict=False):
            way = math.hypot(two.x - one.x, two.y - one.y)
            low, high = sorted((one.speed, two.speed))
            assert 0.4 * low - 0.4 <= way <= 0.4 * high + 0.4


def test_yaw_rate_fits_the_change_of_heading(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for one, two in zip(rollout.states, rollout.states[1:], strict=False):
            rates = sorted((one.yaw_rate, two.yaw_rate))
            assert 0.4 * rates[0] - 6 <= two.heading - one.heading <= 0.4 * rates[1] + 6


def test_same_seed_same_clip_whatever_came_before() -> None:
    first = simulate(11)
    simulate(12)
    again = simulate(11)
    assert first.states == again.states
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, again.frames, strict=True))


def bar(image: np.ndarray, rows: slice, channel: int) -> tuple[float, float]:
    """Left and right end, in layout pixels, of a bar's lit part on black (channel ``channel`` strong)."""
    lit = image[rows, :, channel].mean(0) / 255
    lit[lit < 0.05] = 0
    columns = np.flatnonzero(lit)
    return (float(columns[0]), float(columns[0] + lit.sum())) if len(columns) else (0.0, 0.0)


def test_the_speed_can_be_read_from_the_image(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for state, frame in zip(rollout.states, rollout.frames, strict=False):
            left, right = bar(np.asarray(frame), slice(87, 92), 2)  # blue: white bar only
            assert (right - left) * _car_view.FULL_SPEED / 104 == pytest.approx(state.speed, abs=0.35)


def test_the_turning_rate_can_be_read_from_the_image(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for state, frame in zip(rollout.states, rollout.frames, strict=False):
            pixels = np.asarray(frame).astype(float)[105:110]
            red = np.clip(pixels[..., 0] - pixels[..., 1], 0, None).mean(0) / 255
            value = (red[:56].sum() - red[56:].sum()) * _car_view.FULL_TURN / 52
            assert value == pytest.approx(state.yaw_rate, abs=1.6)


def test_car_and_road_are_where_they_should_be(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for state, frame in zip(rollout.states, rollout.frames, strict=False):
            pixels = np.asarray(frame).astype(int)
            red, green, blue = pixels[60, 56]
            assert red > 150
            assert max(green, blue) < 80
            beside = pixels[60, 50]
            if abs(state.offset) < 2.5:
                assert max(beside) - min(beside) < 20, "grey road beside a car in the middle of the road"
            if abs(state.offset) > 11:
                assert beside[1] > beside[0] + 50, "green grass beside a car far off the road"


def test_lights_are_drawn_in_their_colour() -> None:
    seen = set()
    for seed in range(200, 260):
        rollout = simulate(seed, frames=1)
        light = rollout.states[0].light
        if light in seen or light is None:
            continue
        distance = rollout.states[0].light_distance
        if distance is None or not 2 < distance < 25:
            continue
        scene = np.asarray(rollout.frames[0]).astype(int)[:84]
        lamp = _car_view.LAMP[light]
        assert (abs(scene - lamp).sum(-1) < 30).sum() >= 10
        seen.add(light)
        if seen == {"red", "green"}:
            return
    raise AssertionError(f"only {seen} seen")


def test_steps_of_the_quiet_environment_are_carracings_own() -> None:
    quiet, loud = quiet_environment()(), quiet_environment().__base__()
    quiet.reset(seed=3)
    loud.reset(seed=3)
    action = np.array([0.1, 0.2, 0.0])
    for _ in range(5):
        quiet.step(action)
        loud.step(action)
    assert quiet.car.hull.position == loud.car.hull.position
    assert quiet.car.hull.linearVelocity == loud.car.hull.linearVelocity


def test_other_sizes_show_the_same_scene() -> None:
    small, large = simulate(21, frames=1, size=112), simulate(21, frames=1, size=224)
    shrunk = np.asarray(large.frames[0].reduce(2)).astype(int)
    assert np.abs(shrunk - np.asarray(small.frames[0])).mean() < 6
