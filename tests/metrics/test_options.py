"""Option inference, judges and circular evaluation: the traps."""

from __future__ import annotations

import pytest

from mini_internvl.metrics import mmmu
from mini_internvl.metrics.options import (
    VERSIONS,
    Rotation,
    answered_letters,
    ask_option,
    circular_hits,
    infer_option,
    internvl_answer,
    judge_prompt,
    multi_answer,
    through_table,
)

COLOURS = {"A": "red", "B": "dark red", "C": "blue", "D": "green"}


@pytest.mark.parametrize(
    ("answer", "october", "head"),
    [
        ("B.", "B", "B"),
        ("b", None, None),
        ("B。", None, None),
        ("选 B", "B", "B"),
        ("A or B", None, None),
        ("Z", "Z", "Z"),
        ("answer is b", None, "B"),
        ("The answer is dark red", None, "D"),  # no word end
        ("B, because it is the only option that fits", "B", None),  # not among the last four words, then too long
        ("blue", "C", "C"),
        ("dark red", None, None),  # two texts
        ("I can't process this file. B", "Z", "Z"),
        ("Failed to obtain answer via API. B", None, None),
        ("", None, None),
        ("\ud800 \x00 ⁠", None, None),
    ],
)
def test_infer_option(answer, october, head):
    assert [infer_option(answer, COLOURS, version=version) for version in VERSIONS] == [october, head]


def test_long_answers():
    assert infer_option("word " * 100_000 + "B", COLOURS, version="head") == "B"
    assert infer_option("blue " * 100_000, COLOURS, version="2024-10") == "C"


def test_internvl_answer():
    assert internvl_answer("Answer: B", COLOURS) == "A"
    assert internvl_answer(" (B) ", COLOURS) == "(B)"
    assert internvl_answer("b", COLOURS) == "b"
    assert internvl_answer("dark red", COLOURS) == "A"  # the first text that occurs
    assert internvl_answer(" \n", COLOURS) is None


def test_table():
    assert [through_table(text) for text in ("", "None", "NA", "no", " ")] == ["nan", "nan", "nan", "no", " "]


def test_judge():
    asked = []

    def judge(prompt):
        asked.append(prompt)
        return ["what?", "hm", "It is C."][len(asked) - 1]

    assert ask_option("Which?", COLOURS, "sky", judge=judge, version="2024-10") == "C"
    assert len(asked) == 3
    assert "Which?" in asked[0]
    assert "B. dark red" in asked[0]
    assert "Answer: sky\n" in asked[0]
    assert ask_option("Which?", COLOURS, "sky", judge=lambda prompt: "?", version="head") == "Z"
    assert "回答：蓝" in judge_prompt("哪一个？", COLOURS, "蓝")


def _rotations(*rows):
    return [Rotation(index=index, gold=gold, inferred=inferred) for index, gold, inferred in rows]


def test_circular_evaluation():
    rows = _rotations(
        (1, "A", "A"), (1_000_001, "B", "B"), (2, "A", "A"), (1_000_002, "B", None), (1_000_003, "A", "A")
    )
    assert circular_hits(rows) == {1: True, 2: False}  # no first row of 3
    assert circular_hits(rows, lambda row: "B") == {1: True, 2: True}
    wrong = _rotations((5, "A", None), (1_000_005, "B", "Z"))
    assert circular_hits(wrong, lambda row: pytest.fail("asked in vain")) == {5: False}


def test_several_right_options():
    assert answered_letters("A, C and C", COLOURS) == ["A", "C"]
    assert answered_letters("BD", COLOURS) == ["B", "D"]
    assert answered_letters("none", COLOURS) == []
    assert multi_answer(["A", "A", "B"], ["A", "C", "D"]) == (0.5, 1 / 3)
    assert multi_answer([], ["A"]) == (0.0, 0.0)


def test_mmmu_choice():
    options = {"A": "demand rises", "B": "demand falls", "C": "no change"}
    assert mmmu.parse_choice("(A) is wrong, (B) is right", options) == "B"
    assert mmmu.parse_choice("B)", options) is None
    assert mmmu.parse_choice("'C!'", options) is None
    assert mmmu.parse_choice("I think that in the end DEMAND FALLS", options) == "B"
    drawn = {name: mmmu.drawn_letter(name, options) for name in map(str, range(60))}
    assert set(drawn.values()) == set(options)
    assert drawn["7"] == mmmu.drawn_letter("7", options)


def test_mmmu_open():
    assert mmmu.parse_open(".5") == [5.0]
    assert set(mmmu.parse_open("1,234.5")) == {1234.5, 1234.0, 234.5}
    assert mmmu.parse_open("so it is 3\nthe result is 4.126") == [3.0, 4.13]
    assert mmmu.open_right(mmmu.parse_open("vitamin B"), "b")
    assert mmmu.open_right(mmmu.parse_open("5 or 6"), ["6", "7"])
    assert not mmmu.open_right(mmmu.parse_open("12"), "12%")
    assert mmmu.parse_open("") == [""]
    assert mmmu.as_choice({}, "18") == ({"A": "18", "B": "Other Answers"}, "A")
    assert mmmu.as_choice({"A": "x", "B": "y"}, "B") == ({"A": "x", "B": "y"}, "B")
