"""RSVQA and DIOR-RSVG against recorded results of the official scripts, cases and whole files."""

from __future__ import annotations

import json
import math

import pytest

from mini_internvl.metrics.grounding import grounding_right, iou, read_box
from mini_internvl.metrics.rsvqa import rsvqa_right, rsvqa_scores


def _read(golden, name):
    return json.loads((golden / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def test_rsvqa_cases(golden):
    data = _read(golden, "rsvqa")
    for case in data["cases"]:
        given = case["input"]
        right = rsvqa_right(given["question_type"], given["response"], given["gt_answer"])
        assert right == (case["expected"]["correct"] == 1), case["id"]  # what stops the script is wrong
    assert rsvqa_scores([case["input"] for case in data["cases"]]) == data["aggregate_cases"]


def test_rsvqa_suites(golden):
    for name, suite in _read(golden, "rsvqa")["suites"].items():
        assert rsvqa_scores(suite["items"]) == suite["scores"], name


def test_dior_rsvg_cases(golden):
    data = _read(golden, "dior_rsvg")
    for case in data["cases"]:
        given, wanted = case["input"], case["expected"]
        box = read_box(given["answer"], *given["image_size"])
        if isinstance(wanted["iou"], dict):  # no box, or none that can be compared
            assert box is None or not iou(box, given["gt_answers"]), case["id"]
        elif wanted["iou"] is None:
            assert box is None, case["id"]
        elif wanted["iou"] == "NaN":
            assert math.isnan(iou(box, given["gt_answers"])), case["id"]
        else:
            assert iou(box, given["gt_answers"]) == pytest.approx(float(wanted["iou"]), abs=1e-9), case["id"]
        right = grounding_right(given["answer"], given["gt_answers"], given["image_size"])
        assert right == bool(wanted["correct"]), case["id"]
    _check([case["input"] for case in data["cases"]], data["aggregate_cases"])


def test_dior_rsvg_suite(golden):
    suite = _read(golden, "dior_rsvg")["suite"]
    _check(suite["outputs"], suite["expected"])


def _check(rows, wanted):
    right = [grounding_right(row["answer"], row["gt_answers"], row["image_size"]) for row in rows]
    assert (sum(right), len(right) - sum(right), len(right)) == (
        wanted["correct"],
        wanted["incorrect"],
        wanted["Total"],
    )
    if right:  # without rows the script divides by 0
        assert sum(right) / len(right) == pytest.approx(wanted["Acc@0.5"], abs=1e-9)
