"""Own data: what is asked is what is trained, and shapes are found over the split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mini_internvl.benchmarks import own
from mini_internvl.data.rows import read_rows
from mini_internvl.inputs.messages import normalise
from mini_internvl.inputs.questions import split_questions
from mini_internvl.records import Prediction


def rows(folder: Path, *given: dict) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_a_question_is_asked_with_the_turns_that_training_shows(tmp_path, image):
    talk = {"id": "t", "image": str(image), "conversations": turns("What?", "A disc.", "Where?", "On the left.")}
    path = rows(tmp_path, talk, {**talk, "id": "alone", "independent": True, "max_tiles": 3})
    items = {item.id: item for item in own.items(tmp_path)}
    talk_sample, alone = read_rows(path)
    assert list(items) == ["t/1", "t/2", "alone/1", "alone/2"]
    assert items["t/2"].messages == normalise(talk_sample.messages)[:3]
    for number, whole in enumerate(split_questions(alone.messages), 1):
        assert items[f"alone/{number}"].messages == whole[:-1]
    assert items["t/1"].max_tiles is None
    assert items["alone/2"].max_tiles == 3
    assert [item.id for item in own.items(path)] == list(items)


def test_a_kind_of_few_answers_takes_the_shape_of_its_wider_kind():
    many = [(f"How many {name} are there?", "3") for name in "abcdef"]
    [*shapes, alone] = own.shapes_of([*many, ("Why?", "4")])
    assert {shape for _, shape in shapes} == {"count"}
    assert alone == ("why?", "count")
    mixed = [
        (f"What is on the {name}?", answer) for name, answer in zip("abcde", ("3", "4", "a cat", "5", "6"), strict=True)
    ]
    assert set(own.shapes_of(mixed)) == {("what is on the", "words")}


def test_bad_rows_are_listed_with_their_place(tmp_path, image):
    good = {"image": str(image), "conversations": turns("What?", "A disc.")}
    rows(tmp_path, good, {**good, "image": "gone.png"}, {"conversations": turns("What?", None)})
    with pytest.raises(ValueError, match=r"test\.jsonl:2: the image .*gone\.png is missing.*line 3: .*is null"):
        list(own.items(tmp_path))
    with pytest.raises(ValueError, match=r"no rows of the split validation; .*validation\.jsonl"):
        list(own.items(tmp_path, "validation"))


def test_the_primary_metric_is_the_mean_over_shapes(tmp_path, image):
    rows(
        tmp_path,
        *({"image": str(image), "conversations": turns("Is it red?", answer)} for answer in ("yes", "no", "yes")),
        {"image": str(image), "conversations": turns("How many discs are there?", "1")},
    )
    items = list(own.items(tmp_path))
    said = [Prediction(item_id=item.id, text=text) for item, text in zip(items, ("yes", "no", "no", "2"), strict=True)]
    score = own.score(items, said)
    assert score.values["yes_no/accuracy"] == pytest.approx(200 / 3)
    assert score.values["count/mae"] == 1
    assert score.values["mean"] == pytest.approx(100 / 3)
    assert score.errors["mean"] == pytest.approx(score.errors["yes_no/accuracy"] / 2)
    assert score.counts["yes_no/accuracy"] == 3
