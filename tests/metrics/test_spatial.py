"""Boxes, ranges, edit distance, DriveLM's points and averages: the corners that recorded cases may not reach."""

from __future__ import annotations

import math
import random

import pytest

from mini_internvl.metrics import average, drivelm, mathvista
from mini_internvl.metrics.edit_distance import edit_distance
from mini_internvl.metrics.grounding import first_brackets, grounding_right, iou, read_box
from mini_internvl.metrics.rsvqa import rsvqa_right, rsvqa_scores


def plain_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def test_edit_distance() -> None:
    draw = random.Random(0)
    for _ in range(300):
        one, two = ("".join(draw.choices("abcß圆", k=draw.randrange(12))) for _ in range(2))
        assert edit_distance(one, two) == plain_distance(one, two), (one, two)
    assert edit_distance("a" * 3000, "b" * 3000) == 3000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no", None),
        ("[1,2,3]", None),
        ("see [[1,2,3,4]] or [[5,6,7,8]]", "[[1,2,3,4]]"),
        ("[a] [[1,2,3,4]]", "[a] [[1,2,3,4]]"),
        ("[1,2,\n3,4]", None),
        ("[1,2\n[1,2,3,4]", "[1,2,3,4]"),
        ("[[1,2,3,4]]]]", "[[1,2,3,4]]]]"),
        ("[" * 50_000 + "," * 50_000, None),
    ],
)
def test_first_brackets(text: str, found: str | None) -> None:
    assert first_brackets(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "[[1e999,1e999,1e999,1e999,1]]",
        "[" * 100_000 + "1,2,3,4]",
        '[{"a":1,"b":2,"c":3,"d":4}]',
        "[[" + "9" * 5000 + ",1,2,3]]",
    ],
)
def test_odd_boxes_are_wrong_and_do_not_stop_the_scorer(text: str) -> None:
    assert read_box(text, 800, 800) is None
    assert not grounding_right(text, [0, 0, 1, 1], [800, 800])


def test_iou_conventions() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 5)) == 66 / 121
    assert iou((0, 0, 10, 10), (0, 0, 10, 5), inclusive=False) == 0.5
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 1
    assert iou((1, 1, 1, 1), (1, 1, 1, 1), inclusive=False) == 0
    assert math.isnan(iou((math.nan, 0, 1, 1), (0, 0, 1, 1)))


def test_rsvqa_corners() -> None:
    assert rsvqa_right("area", None, "0m2")
    assert not rsvqa_right("area", "1", "22m2")  # the gold number loses its twos
    assert not rsvqa_right("count", "9" * 5000, "5")
    assert not rsvqa_right("presence", None, "")
    assert rsvqa_scores([]) == {"type_scores": {}, "type_counts": {}, "total_score": 0.0, "total_score_useful": 0.0}


def test_coordinates_go_to_the_stitched_image_and_back() -> None:
    text = "is <c1,CAM_BACK_RIGHT,1088.3,497.5> near <c2,CAM_SIDE,1.0,2.0>?"
    stitched = drivelm.to_stitched(text)
    assert stitched == "is <c1,CAM_BACK_RIGHT,[893, 776]> near <c2,CAM_SIDE,1.0,2.0>?"
    assert drivelm.to_cameras(stitched) == "is <c1,CAM_BACK_RIGHT,1086.4,496.8> near <c2,CAM_SIDE,1.0,2.0>?"
    for camera in drivelm.CAMERAS:
        for x, y in ((3.0, 5.0), (1590.0, 890.0)):
            back = drivelm.to_cameras(drivelm.to_stitched(f"<c1,{camera},{x},{y}>"))
            [(left, top)] = drivelm.points(back)
            assert abs(left - x) <= 2.5
            assert abs(top - y) <= 1


def test_odd_texts_stay_as_they_are() -> None:
    for text in ("<c1,CAM_FRONT,[" + "9" * 5000 + ",1]>", "<c1,CAM_FRONT,[007,1]>", "<c"):
        assert drivelm.to_cameras(text) == text


def test_a_question_that_would_stop_the_script_counts_as_wrong() -> None:
    first = drivelm.Question(question="", gold="x", answer="x", tags=[drivelm.ACCURACY])
    odd = drivelm.Question(question="at 5.5?", gold="A", answer="A", tags=[0, 1, 2, 3])
    results = drivelm.collect([[first, odd]])
    assert results.accuracy == [1.0, 0.0]
    assert results.judged == results.match_judged == [None]
    assert results.language == [("", "A")]
    assert results.match == [0.0]
    assert results.broken == [1]
    assert drivelm.judge_scores(results.judged, lambda *_: 100.0) == [0.0]


def test_the_judge_is_asked_again_at_rising_temperature() -> None:
    problem = mathvista.Problem(question_type="free_form", answer_type="integer", answer="5")
    heard: list[float] = []

    def ask(temperature: float) -> str:
        heard.append(temperature)
        return "5" if temperature == 1.0 else mathvista.FAILED

    verdict = mathvista.vlmevalkit(problem, "five", ask)
    assert (verdict.hit, verdict.calls, heard) == (True, 3, [0.0, 0.5, 1.0])
    never = mathvista.vlmevalkit(problem, "five", lambda _: mathvista.FAILED)
    assert (never.hit, never.calls, never.result) == (False, 5, "")


def test_without_a_judge_only_open_replies_are_undecided() -> None:
    number = mathvista.Problem(question_type="free_form", answer_type="integer", answer="0")
    listed = mathvista.Problem(question_type="free_form", answer_type="list", answer="[1]")
    choice = mathvista.Problem(question_type="multi_choice", answer_type="text", answer="a", choices=["a", "b"])
    found = [
        mathvista.vlmevalkit(problem, text, None)
        for problem, text in (
            (number, "0"),
            (number, "7"),
            (number, "none"),
            (listed, "[1]"),
            (choice, "A or B"),
            (choice, ""),
        )
    ]
    assert [verdict.undecided for verdict in found] == [False, False, True, False, True, False]
    assert [verdict.hit for verdict in found] == [True, False, False, False, False, False]


def test_normalising_what_has_no_form() -> None:
    number = mathvista.Problem(question_type="free_form", answer_type="integer", answer="1")
    assert mathvista.normalise(number, "inf") is None
    real = mathvista.Problem(question_type="free_form", answer_type="float", answer="1.0")
    assert mathvista.normalise(real, "1") is None  # no precision is known
    bare = mathvista.Problem(question_type="multi_choice", answer_type="text", answer="a")
    assert mathvista.normalise(bare, "a") is None


def test_averages_leave_out_what_is_missing() -> None:
    assert average.mini_internvl_average({"OCRBench": 754, "MMMU": 36.7, "Other": 1}) == pytest.approx(
        (75.4 + 36.7) / 2
    )
    assert average.mini_internvl_average({}) is None
    assert average.leaderboard_average({"OCRBench": 500, "MMStar": None}) == 50.0
    assert average.share_of_76b(81.38888888888889) == pytest.approx(100)
