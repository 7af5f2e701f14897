"""Answers by their shape: which one is found, and what counts as right."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_internvl.inputs import boxes
from mini_internvl.metrics.grounding import match_boxes
from mini_internvl.metrics.shapes import decimal_comma, find_shape, read_number, results, right

OPTIONS = "Which colour?\nA. red\n(B) dark blue\nC: green"


@pytest.mark.parametrize(
    ("answers", "shape"),
    [
        (["Yes", "no."], "yes_no"),
        (["true"], "yes_no"),
        (["是", "否。"], "yes_no"),
        (["yes", "no", "unknown"], "words"),
        (["3", "12", "1,200"], "count"),
        (["3", "12.5"], "number"),
        (["12 %", "3%"], "number"),
        (["007", "12"], "words"),
        (["01,234", "5"], "words"),
        (["4006381333931"], "words"),
        (["<ref>a</ref><box>[[1, 2, 3, 4]]</box>", "[[1, 2, 3, 4], [5, 6, 7, 8]]"], "boxes"),
        (["A"], "words"),
        (["red", "dark blue"], "words"),
        (["red"] * 19 + ["red with a thin white edge"], "words"),
        (["No parking from Monday to Friday"], "text"),
        (["one two three four five six seven eight nine ten eleven twelve thirteen"], "caption"),
        (["红色的船在湖上慢慢地向着远方的小岛驶去同时太阳正在下山"], "text"),
    ],
)
def test_the_shape_of_a_kind_is_found_from_its_answers(answers, shape):
    assert find_shape([("What?", answer) for answer in answers]) == shape


def test_letters_are_options_only_where_the_questions_list_them():
    assert find_shape([(OPTIONS, "B"), (OPTIONS, "(A)"), (OPTIONS, "C. green")]) == "option"
    assert find_shape([(OPTIONS, "B"), (OPTIONS, "D")]) == "words"


@pytest.mark.parametrize(
    ("shape", "gold", "answer", "expected"),
    [
        ("yes_no", "yes", "Yes, there is one.", True),
        ("yes_no", "Yes.", "no", False),
        ("yes_no", "no", "not at all", False),
        ("option", "B", "(B)", True),
        ("option", "B", "The answer is dark blue.", True),
        ("option", "B", "A. red", False),
        ("count", "3", "There are 3 trees.", True),
        ("count", "1,200", "1200", True),
        ("count", "100", "101", False),
        ("count", "0", "none", False),
        ("count", "0", "0", True),
        ("number", "12.5", "about 12.4 m", True),
        ("number", "-0.4", "−0.39", True),
        ("number", "12.5", "14", False),
        ("words", "Scots pine", " scots pine.", True),
        ("words", "Scots pine", "a scots pine", False),
        ("text", "No parking from Monday to Friday", "No parking Monday to Friday", True),
        ("text", "No parking from Monday to Friday", "Stop", False),
        ("caption", "A dog.", "a dog", True),
    ],
)
def test_what_counts_as_right(shape, gold, answer, expected):
    assert right(shape, OPTIONS, gold, answer) is expected


def test_numbers_are_read_from_a_sentence():
    assert [read_number(text) for text in ("1,200 m", "none", "-3.5°", ".5", "v2 or 7")] == [1200, None, -3.5, 0.5, 7]


def test_marks_of_emphasis_count_for_nothing():
    for answer in ("**No**", "No.", "no", "*No*, there is none", "__No__."):
        assert right("yes_no", "", "no", answer)
    assert right("words", "", "Scots pine", "**Scots pine**.")
    assert right("option", OPTIONS, "B", "**B**")
    assert right("option", OPTIONS, "B", "**B.** dark blue")
    assert right("count", "", "3", "**3**")
    assert find_shape([("What?", "**Yes**"), ("What?", "no")]) == "yes_no"


@pytest.mark.parametrize(
    ("answers", "comma", "shape"),
    [
        (["1,5", "2"], True, "number"),
        (["0,75", "1.250,5"], True, "number"),
        (["1,500", "2"], False, "count"),
        (["1,500", "2.5"], False, "number"),
        (["1,5", "2.5"], False, "words"),
        (["3,14159", "1.500"], True, "number"),
    ],
)
def test_the_reference_answers_tell_what_a_comma_means(answers, comma, shape):
    assert decimal_comma(answers) == comma
    assert find_shape([("What?", answer) for answer in answers], comma=comma) == shape


def test_numbers_with_decimal_commas_are_read_and_those_of_english_models_too():
    texts = ("1,5 kg", "1,500", "1.500", "1.234.567,8", "1.5", "-0,25", "none", "3, 4")
    assert [read_number(text, comma=True) for text in texts] == [1.5, 1.5, 1500, 1234567.8, 1.5, -0.25, None, 3]
    assert results("number", "", "1,5", "1,5 m", comma=True)["exact"] == 1
    assert results("number", "", "1,5", "15", comma=True)["exact"] == 0
    assert results("count", "", "1,500", "1500")["exact"] == 1


@given(st.floats(0, 99, allow_nan=False).map(lambda value: f"{value:.2f}"))
def test_a_number_means_the_same_with_a_point_and_with_a_comma(text):
    assert read_number(text.replace(".", ","), comma=True) == read_number(text)


def test_errors_of_numbers_are_in_their_unit_and_no_number_counts_as_zero():
    assert results("number", "", "10", "10.4") == {
        "exact": 0.0,
        "within_5_percent": 1.0,
        "mae": pytest.approx(0.4),
    }
    assert results("number", "", "10", "I do not know")["mae"] == 10


def box(*rows):
    return boxes.render("tree", rows)


def test_several_boxes_find_one_partner_each():
    one, two, far = (0, 0, 100, 100), (200, 200, 300, 300), (800, 800, 900, 900)
    assert results("boxes", "", box(one, two), box(two, one)) == {"f1": 1.0, "mean_iou": 1.0}
    assert results("boxes", "", box(one, two), box(one)) == {"f1": pytest.approx(2 / 3), "mean_iou": 0.5}
    assert results("boxes", "", box(one), box(one, one, far))["f1"] == 0.5
    assert results("boxes", "", box(one), "none")["f1"] == 0
    assert results("boxes", "", box(one), "tree[[0, 0, 100, 100]]")["f1"] == 1  # decoding drops the tags


def test_boxes_of_several_phrases_are_compared_phrase_by_phrase():
    gold = "<ref>cat</ref><box>[[0, 0, 9, 9]]</box><ref>dog</ref><box>[[20, 20, 40, 40]]</box>"
    swapped = "<ref>dog</ref><box>[[0, 0, 9, 9]]</box><ref>Cat</ref><box>[[20, 20, 40, 40]]</box>"
    assert results("boxes", "", gold, swapped)["f1"] == 0
    assert results("boxes", "", gold, gold)["f1"] == 1


corners = st.tuples(*[st.integers(0, 40)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(st.lists(corners, max_size=4), st.lists(corners, max_size=4))
def test_pairs_of_boxes_overlap_as_iou_says_and_no_better_pair_is_left(golds, answers):
    found = match_boxes(golds, answers)
    every = sorted((boxes.iou(a, b) for a, b in itertools.product(golds, answers)), reverse=True)
    assert len(found) <= min(len(golds), len(answers))
    assert found == sorted(found, reverse=True)
    assert all(any(one == pytest.approx(iou) for iou in every) for one in found)
    assert (found[:1] or [0.0]) == pytest.approx([max([0.0, *every])])


@given(st.sampled_from(["yes_no", "option", "count", "number", "words", "text", "caption"]), st.text(), st.text())
def test_any_texts_can_be_compared(shape, gold, answer):
    right(shape, OPTIONS, gold or "x", answer)
    assert all(value >= 0 for value in results(shape, OPTIONS, gold or "x", answer).values())
