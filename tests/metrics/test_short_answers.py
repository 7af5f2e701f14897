"""Relaxed accuracy, ANLS, OCRBench's substring rule, and lists in texts: the traps."""

from __future__ import annotations

import pytest

from mini_internvl.metrics.anls import anls, label_names, similarity
from mini_internvl.metrics.list_text import read_list
from mini_internvl.metrics.ocrbench import contains_gold
from mini_internvl.metrics.relaxed import exact_right, relaxed_right, vlmevalkit_golds


@pytest.mark.parametrize(
    ("answer", "gold", "to_answer", "to_gold"),
    [
        ("44.2", "42", True, False),
        ("39.95", "42", False, True),
        ("105", "100", True, True),  # exactly 5% of the gold answer counts
        ("0", "0.0", False, False),  # a target of 0 is compared as text
        ("0.01", "0", False, False),
        ("0", "0.01", False, False),
        ("0%", "0", False, False),
        ("12", "12%", False, False),
        ("0.12", "12%", True, True),
        ("12%%", "12%", True, True),
        ("1,200", "1200", False, False),
        ("1_200", "1200", True, True),
        ("nan", "nan", False, False),
        ("inf", "inf", False, False),
        (" Norway\n", "norway", True, True),
        ("Norway", " Norway", False, False),
        ("2015", "2016", True, True),
        ("", "", True, True),
    ],
)
def test_relaxed(answer, gold, to_answer, to_gold):
    assert relaxed_right(answer, gold, relative_to="answer") is to_answer
    assert relaxed_right(answer, gold, relative_to="gold") is to_gold


def test_relaxed_with_several_gold_answers():
    assert relaxed_right("10", ["9", "10.4"], relative_to="answer")
    assert not relaxed_right("10", [], relative_to="gold")
    assert vlmevalkit_golds("[2001, '2003']") == ["2001", "2003"]
    assert vlmevalkit_golds("[2001, '2003']", texts_only=True) == []
    assert vlmevalkit_golds("['2003']", texts_only=True) == ["2003"]
    assert vlmevalkit_golds("[]") == []
    assert vlmevalkit_golds("[a, b]") == ["[a, b]"]
    assert vlmevalkit_golds(["x"]) == ["x"]


def test_exact():
    assert exact_right(" b\n", "B")
    assert exact_right("x", ["y", "X "])
    assert not exact_right("B.", "B")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', \"don't\"]", ["a", "don't"]),
        (r"['\d']", [r"\d"]),
        ("(1, 2)", None),
        ("1, 2", None),
        ("{'a': [1]}", None),
        ("[__import__('os')]", None),
        ("[1](2)", None),
        ("[" * 5000, None),
        ("[\0]", None),
        ("", None),
    ],
)
def test_lists_in_texts(text, value):
    assert read_list(text) == value


def test_anls():
    assert anls("ab", ["abcd"]) == 0.5  # exactly one half stays
    assert anls("a", ["abc"]) == 0.0
    assert similarity("a", ["abc"]) == pytest.approx(1 / 3)
    assert similarity("  a  ", ["b"]) == pytest.approx(0.8)  # spare spaces raise it
    assert similarity("straße", ["STRASSE"]) == pytest.approx(5 / 7)
    assert anls("", [""]) == 1.0
    assert anls("x", []) == 0.0


def test_labels_have_printed_names_and_unknown_ones_keep_their_own():
    assert label_names("answer_type", ["single span", "image span"]) == ["single span", "Image-Span"]
    assert label_names("new", ["image span"]) == ["image span"]


def test_ocrbench_rule():
    assert contains_gold("Answer: b", "a", formula=False)
    assert contains_gold("anything", ["", "x"], formula=False)
    assert contains_gold("OPEN\n24h", "open 24H", formula=False)
    assert not contains_gold("a  b", "a b", formula=False)
    assert contains_gold("3\n\\times 4", "3 \\times 4", formula=True)
    assert not contains_gold("x+1", "X+1", formula=True)
    assert not contains_gold("x", [], formula=True)
