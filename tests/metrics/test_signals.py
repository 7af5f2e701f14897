"""Control-signal errors: single precision, strict thresholds, no wrap-around, dropped recordings."""

from __future__ import annotations

import numpy as np
import pytest

from mini_internvl.metrics.signals import recorded, signal_scores


def test_errors_are_single_precision_and_thresholds_strict():
    scores = signal_scores([5.1, 0.1], [5.0, 0.0])
    assert scores["A_0.1"] == 0.5  # 5.1 - 5.0 is just below 0.1 in float32, 0.1 - 0 is not below it
    assert signal_scores([1.0], [0.0])["A_1.0"] == 0
    assert scores["rmse"] == pytest.approx(0.1, rel=1e-5)


def test_angles_do_not_wrap():
    assert signal_scores([179.0], [-179.0])["rmse"] == 358


def test_samples_without_recording():
    assert recorded([(-1, -1), (-1, 0), (3, -1)]).tolist() == [False, True, True]
    assert recorded(np.full((2, 2, 4), -1.0)).tolist() == [False, False]


@pytest.mark.parametrize(("guessed", "true"), [([], []), ([1.0], [1.0, 2.0])])
def test_wrong_numbers_of_values(guessed, true):
    with pytest.raises(ValueError, match="predictions against"):
        signal_scores(guessed, true)
