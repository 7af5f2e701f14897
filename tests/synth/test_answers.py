"""Answers against what the image holds: boxes by their pixels, relations by geometry, charts by their values."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from mini_internvl import synth
from mini_internvl.synth import canvas, plots, scene
from mini_internvl.synth.kinds import charts, shapes


def _box(text: str) -> list[int]:
    found = re.search(r"<box>\[\[(\d+), (\d+), (\d+), (\d+)\]\]</box>", text)
    assert found, text
    return [int(v) for v in found.groups()]


def test_boxes_enclose_exactly_the_ink():
    rng, checked = random.Random(0), 0
    while checked < 12:
        made = scene.compose(rng, 1)
        shape = made.shapes[0]
        pixels = np.asarray(made.image).astype(int)
        far = np.abs(pixels - np.array(canvas.COLOURS[shape.colour])).sum(-1) < 60
        if far.sum() < 50 or np.abs(pixels[0, 0] - pixels[2, 2]).sum() > 30:
            continue
        ys, xs = np.nonzero(far)
        found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.array(found) - np.array(shape.box)).max() < 3.5, (shape, found)
        checked += 1


def test_detect_answers_repeat_the_expression_and_stay_inside():
    for index in range(60):
        for qa in synth.draw("boxes", 2, index)[1]:
            x1, y1, x2, y2 = _box(qa.answer)
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000
            if qa.task == "detect":
                expression = re.search(r"<ref>(.*)</ref>", qa.question)
                assert expression
                assert qa.answer.startswith(f"<ref>{expression.group(1)}</ref><box>")
            else:
                assert _box(qa.question) == [x1, y1, x2, y2]


def test_shapes_do_not_overlap():
    rng = random.Random(1)
    for _ in range(50):
        made = scene.compose(rng)
        for i, a in enumerate(made.shapes):
            for b in made.shapes[i + 1 :]:
                independent = np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1])
                assert independent > (a.size + b.size) / 2 - 0.2 * max(a.size, b.size)


def test_counts_match_the_scene():
    rng = random.Random(2)
    for _ in range(100):
        made = scene.compose(rng)
        qa = shapes.count(rng, made)
        words = re.findall(r"[a-z]+", qa.question.replace("crosses", "cross"))
        colour = next((c for c in scene.SHAPE_COLOURS if c in words), None)
        name = next((n for n in scene.SHAPES if n in words or n + "s" in words), None)
        total = sum(colour in (None, s.colour) and name in (None, s.name) for s in made.shapes)
        assert qa.answer == str(total)


def _true_relation(made: scene.Scene, question: str) -> bool:
    found = re.search(r"the (\w+ \w+) .*?(left of|right of|above|below) the (\w+ \w+)\?", question)
    assert found, question
    by_label = {s.label: s for s in made.shapes}
    (ax, ay), (bx, by) = by_label[found.group(1)].centre, by_label[found.group(3)].centre
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[found.group(2)]


def test_relations_are_true_both_ways():
    rng, seen = random.Random(3), 0
    for _ in range(200):
        made = scene.compose(rng, 3)
        qa = shapes.side(rng, made)
        if qa is None:
            continue
        assert qa.answer == ("Yes" if _true_relation(made, qa.question) else "No")
        seen += 1
    assert seen > 50


def test_opposed_questions_are_true_and_differ_in_their_answers():
    rng, relations = random.Random(6), 0
    for _ in range(200):
        made = scene.compose(rng)
        first, second, *sides = shapes.opposed(rng, made)
        labels = {s.label for s in made.shapes}
        for qa in (first, second):
            there = any(f" {shapes.article(label)}" in qa.question for label in labels)
            assert qa.answer == ("Yes" if there else "No"), (qa, labels)
        assert (first.answer, second.answer) == ("Yes", "No")
        for qa in sides:
            assert qa.answer == ("Yes" if _true_relation(made, qa.question) else "No")
        assert sorted(qa.answer for qa in sides) in ([], ["No", "Yes"])
        relations += len(sides)
    assert relations > 200


def test_training_images_come_with_pairs_and_a_listing():
    for index in range(20):
        tasks = [[qa.task for qa in synth.draw(kind, 8, index)[1]] for kind in ("shapes", "charts")]
        assert tasks[0].count("exist") == 2
        assert tasks[0].count("relation") in (0, 2)
        assert tasks[0].count("list") <= 1
        assert 5 <= len(tasks[1]) <= synth.MAX_TURNS
        assert tasks[1].count("data") == 1


def test_training_asks_charts_most_about_their_single_parts():
    single = listed = 0
    for index in range(100):
        tasks = [qa.task for qa in synth.draw("charts", 8, index)[1]]
        single += sum(task in ("value", "whose", "colour") for task in tasks)
        listed += len(tasks)
    assert single > 0.42 * listed


def test_shapes_are_listed_in_the_asked_order():
    rng, seen = random.Random(4), set()
    for _ in range(200):
        made = scene.compose(rng)
        qa = shapes.listing(rng, made)
        if qa is None:
            continue
        axis = "to right" in qa.question or "to left" in qa.question
        back = "to left" in qa.question or "to top" in qa.question
        ordered = sorted(made.shapes, key=lambda s, axis=axis: s.centre[0 if axis else 1], reverse=back)
        assert qa.answer == ", ".join(s.label for s in ordered)
        assert not qa.main
        seen.add((axis, back))
    assert len(seen) == 4


def test_marks_number_the_shapes_of_one_tile():
    rng, ways = random.Random(5), set()
    for _ in range(60):
        made = scene.compose(rng)
        patch_annotations = shapes.patch_annotations(made)
        assert [(m.text, m.colour) for m in patch_annotations] == [(s.name, s.colour) for s in made.shapes]
        numbered = max(made.image.size) <= 112
        ways.add(numbered)
        for axis, numbers in ((0, [m.place for m in patch_annotations]), (1, [m.line for m in patch_annotations])):
            if not numbered:
                assert set(numbers) == {None}
                continue
            assert sorted(numbers) == list(range(len(patch_annotations)))
            centres = [
                mark.box[axis] + mark.box[axis + 2]
                for _, mark in sorted(zip(numbers, patch_annotations, strict=True), key=lambda pair: pair[0])
            ]
            assert centres == sorted(centres)
    assert ways == {True, False}


def test_yes_and_no_are_balanced():
    answers = [qa.answer for i in range(400) for qa in synth.draw("shapes", 4, i)[1] if qa.answer in ("Yes", "No")]
    assert 0.35 < answers.count("Yes") / len(answers) < 0.65


@pytest.fixture
def plot():
    return plots.Plot(title="Rain 2012", labels=("Jan", "Feb", "Mar"), values=(3.0, 1.0, 2.0), shown=("3", "1", "2"),
                      colours=("red", "green", "blue"), printed=True, ink=(0, 0, 0), paper=(255, 255, 255),
                      path="<pillow>", tall=9)  # fmt: skip


def test_chart_questions_follow_the_values(plot):
    made = {qa.task: qa for qa in charts.questions(random.Random(0), plot, "bars")}
    assert made["highest"].answer == "Jan"
    assert made["lowest"].answer == "Feb"
    assert made["count"].answer == "3"
    assert made["title"].answer == "Rain 2012"
    assert charts.listing(random.Random(0), plot).answer == "Jan: 3; Feb: 1; Mar: 2"
    assert charts.listing(random.Random(0), replace(plot, printed=False)).answer == "Jan; Feb; Mar"
    assert made["type"].answer == "bar chart"
    for qa in charts.questions(random.Random(1), plot, "pie"):
        if qa.task == "value":
            label = next(name for name in plot.labels if name in qa.question)
            assert qa.answer == plot.shown[plot.labels.index(label)]


def test_each_part_of_a_chart_is_read_right(plot):
    def answers(shown_plot):
        made = charts.reading(random.Random(2), "bar", shown_plot)
        return {
            (qa.task, next(n for n in (*plot.labels, *shown_plot.shown) if n in qa.question)): qa.answer for qa in made
        }

    colours = dict(zip([("colour", n) for n in plot.labels], plot.colours, strict=True))
    values = dict(zip([("value", n) for n in plot.labels], plot.shown, strict=True))
    whose = dict(zip([("whose", n) for n in plot.shown], plot.labels, strict=True))
    assert answers(plot) == colours | values | whose
    assert answers(replace(plot, printed=False)) == colours
    assert answers(replace(plot, colours=("red",) * 3)) == values | whose
    twice = replace(plot, shown=("3", "1", "3"))
    assert answers(twice) == colours | {**values, ("value", "Mar"): "3"} | {("whose", "1"): "Feb"}


@pytest.mark.parametrize("style", ["bars", "rows", "line", "pie", "table"])
def test_each_chart_draws_its_colours_and_ink(plot, style):
    from PIL import Image

    image = Image.new("RGB", (224, 224), plot.paper)
    pen = plots.Pen(image)
    getattr(plots, style)(random.Random(0), pen, plot)
    spelled = "".join(mark.text for mark in pen.patch_annotations if mark.colour is None)
    assert all(label.replace(" ", "") in spelled for label in plot.labels)
    parts = [mark.colour for mark in pen.patch_annotations if mark.text in ("bar", "point", "slice")]
    expected = [] if style == "table" else [plot.colours[0]] * 3 if style == "line" else list(plot.colours)
    assert parts == expected
    colours = {c for _, c in image.getcolors(100_000)}
    assert (0, 0, 0) in colours
    if style != "table":
        assert canvas.COLOURS["red"] in colours


def test_taller_bars_stand_for_larger_values(plot):
    from PIL import Image

    image = Image.new("RGB", (224, 224), plot.paper)
    plots.bars(random.Random(0), plots.Pen(image), plot)
    counts = {c: n for n, c in image.getcolors(100_000)}
    red, green, blue = (counts[canvas.COLOURS[c]] for c in plot.colours)
    assert red == pytest.approx(3 * green, rel=0.1)
    assert blue == pytest.approx(2 * green, rel=0.1)


def test_values_are_asked_only_where_they_are_printed():
    for index in range(60):
        rng = random.Random(index)
        plot = charts._plot(rng, "train", "bars")
        tasks = {qa.task for qa in charts.questions(rng, plot, "bars")}
        assert ("value" in tasks) == plot.printed


def test_choices_hold_the_answer_once():
    for kind in ("digits", "clothes"):
        if synth.missing(kind):
            continue
        seen = set()
        for index in range(60):
            questions = synth.draw(kind, 0, index)[1]
            direct = [q.answer for q in questions if q.task == "name"]
            for qa in questions:
                if qa.task == "choice" and direct:
                    options = dict(re.findall(r"^([A-E])\. (.+)$", qa.question, re.M))
                    assert options[qa.answer] == direct[0]
                    assert len(set(options.values())) == len(options)
                    assert qa.question.endswith("Answer with the option's letter from the given choices directly.")
                    seen.add(qa.answer)
        assert len(seen) >= 3


@pytest.mark.parametrize(
    ("step", "texts"), [(2.5, "0.0 2.5 5.0 7.5"), (0.25, "0.00 0.25 0.50 0.75"), (25, "0 25 50 75")]
)
def test_ticks_of_charts_say_their_values(step, texts):
    assert [text for _, text in plots._ticks(0, 3 * step, step)] == texts.split()
