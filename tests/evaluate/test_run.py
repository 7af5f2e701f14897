"""Asking items: batches, order, kept answers, and the drawn benchmark's scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from PIL import Image

from mini_internvl.benchmarks import synth
from mini_internvl.engine import Reply
from mini_internvl.evaluate import evaluate, predict
from mini_internvl.records import Item, Prediction


@dataclass
class FakeEngine:
    """Answers with the question's last word and notes what it was asked."""

    calls: list = field(default_factory=list)
    fail_after: int = 1000

    def chat_batch(self, conversations, config=None, *, max_tiles=None):
        if len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        questions = [self._question(messages[-1]["content"]) for messages in conversations]
        self.calls.append((questions, config.max_new_tokens, max_tiles))
        assert config.temperature == 0
        return [
            Reply(text=question.split()[-1], tiles=0, prompt_tokens=1, tokens=1, seconds=0.5) for question in questions
        ]

    @staticmethod
    def _question(content):
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def asked(self):
        return [question for questions, *_ in self.calls for question in questions]


def item(number, question=None, **limits):
    return Item(
        id=f"i{number}",
        messages=[{"role": "user", "content": question or f"question {'x' * (number % 7)} number {number}"}],
        truth={},
        **limits,
    )


def test_answers_come_back_in_the_items_order():
    engine, told = FakeEngine(), []
    predictions = predict(
        engine, [item(i) for i in range(10)], batch_size=4, progress=lambda done, total: told.append((done, total))
    )
    assert [p.item_id for p in predictions] == [f"i{i}" for i in range(10)]
    assert [p.text for p in predictions] == [str(i) for i in range(10)]
    assert [len(questions) for questions, *_ in engine.calls] == [4, 4, 2]
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_similar_items_share_a_batch():
    engine = FakeEngine()
    image = {"type": "image", "image": Image.new("RGB", (2, 2))}
    picture = Item(id="p", messages=[{"role": "user", "content": [image, {"type": "text", "text": "p"}]}], truth={})
    predict(engine, [item(0, "a long question"), picture, item(1, "b")], batch_size=2)
    assert [questions for questions, *_ in engine.calls] == [["b", "a long question"], ["p"]]


def test_limits_of_the_items_are_kept():
    engine = FakeEngine()
    predict(engine, [item(1, "a", max_tiles=2), item(2, "b", max_tiles=2)], batch_size=2)
    predict(engine, [item(1, "a", max_tiles=2), item(2, "b", max_tiles=6)], batch_size=2)
    predict(engine, [item(1, "a", max_new_tokens=5), item(2, "b", max_new_tokens=50)], batch_size=2)
    assert engine.calls == [
        (["a", "b"], 100, 2),
        (["a"], 100, 2),
        (["b"], 100, 6),
        (["a"], 5, None),  # in one batch the first could grow to fifty tokens
        (["b"], 50, None),
    ]


def test_kept_answers_are_not_asked_again(tmp_path):
    keep, items = tmp_path / "answers" / "model.jsonl", [item(i) for i in range(6)]
    first, second, told = FakeEngine(), FakeEngine(), []
    answers = predict(first, items[:4], keep=keep)
    again = predict(second, items, keep=keep, progress=lambda *counts: told.append(counts))
    assert len(first.asked) == 4
    assert len(second.asked) == 2
    assert again[:4] == answers
    assert told == [(6, 6)]
    third = FakeEngine()
    assert predict(third, items, keep=keep) == again
    assert third.calls == []
    row = json.loads(keep.read_text().splitlines()[0])
    assert {"key", "id", "question", "answer", "seconds"} <= row.keys()


def test_another_question_or_limit_is_asked_anew(tmp_path):
    keep = tmp_path / "a.jsonl"
    predict(FakeEngine(), [item(1, "first")], keep=keep)
    limited = (item(1, "first", max_tiles=3), item(1, "first", max_new_tokens=7))
    for changed in (item(1, "other"), item(2, "first"), *limited):
        engine = FakeEngine()
        predict(engine, [changed], keep=keep)
        assert len(engine.asked) == 1


def test_an_interrupted_evaluation_goes_on(tmp_path):
    keep, items = tmp_path / "a.jsonl", [item(i) for i in range(9)]
    with pytest.raises(KeyboardInterrupt):
        predict(FakeEngine(fail_after=2), items, batch_size=3, keep=keep)
    with keep.open("ab") as file:
        file.write('{"key": "0123", "id": "i8", "answer": "汉'.encode()[:-1])  # torn by a kill, inside a character
    engine = FakeEngine()
    predictions = predict(engine, items, batch_size=3, keep=keep)
    assert len(engine.asked) == 3
    assert [p.text for p in predictions] == [str(i) for i in range(9)]
    last = FakeEngine()
    assert [p.text for p in predict(last, items, keep=keep)] == [str(i) for i in range(9)]
    assert last.asked == []  # a torn line does not swallow the line written after it


@pytest.mark.parametrize("text", ["", "zwei\nZeilen", "\u2028\u0085\x1c", 'quote " and \\', "汉字"])
def test_any_answer_survives_being_kept(tmp_path, text):
    class Speaker(FakeEngine):
        def chat_batch(self, conversations, config=None, *, max_tiles=None):
            self.calls.append(([str(c) for c in conversations], 0, None))
            return [Reply(text=text, tiles=0, prompt_tokens=1, tokens=1, seconds=0.25) for _ in conversations]

    keep = tmp_path / "a.jsonl"
    first = predict(Speaker(), [item(1)], keep=keep)
    engine = Speaker()
    assert predict(engine, [item(1)], keep=keep) == first
    assert engine.calls == []
    assert first[0].text == text


def test_no_items_are_no_work(tmp_path):
    assert predict(FakeEngine(), [], keep=tmp_path / "a.jsonl") == []


def drawn(number, kind, task, answer):
    return Item(
        id=str(number),
        messages=[{"role": "user", "content": f"Q {answer}"}],
        truth={"kind": kind, "task": task, "answer": answer},
    )


@pytest.mark.parametrize(
    ("task", "gold", "text", "right"),
    [
        ("count", "3", "3", True),
        ("count", "3", " 3\n", True),
        ("count", "3", "3.", False),
        ("count", "3", "", False),
        ("detect", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", True),
        ("detect", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "<box>[[0, 0, 100, 51]]</box>", True),
        ("detect", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "<box>[[0, 0, 100, 49]]</box>", False),
        ("detect", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "<ref>a</ref>", False),
        ("detect", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "", False),
    ],
)
def test_an_answer_of_the_drawn_benchmark_is_right_or_not(task, gold, text, right):
    assert synth.right(drawn(1, "shapes", task, gold), text) is right


def test_scores_are_per_cents_by_kind_and_their_mean():
    items = [
        drawn(1, "shapes", "count", "3"),
        drawn(2, "shapes", "colour", "red"),
        drawn(3, "shapes", "colour", "blue"),
        drawn(4, "shapes", "colour", "grey"),
        drawn(5, "words", "read", "hello"),
    ]
    answers = {"1": "3", "2": "red", "3": "green", "5": "hello"}  # the fourth has no answer: wrong, not left out
    score = synth.score(items, [Prediction(item_id=key, text=text) for key, text in answers.items()])
    assert score.values == {
        "shapes": 50.0,
        "shapes/count": 100.0,
        "shapes/colour": pytest.approx(100 / 3),
        "words": 100.0,
        "words/read": 100.0,
        "mean": 75.0,
    }
    assert score.notes["counts"]["shapes"] == 4
    assert (score.items, score.benchmark) == (5, "synth")
    assert synth.score([], []).values == {"mean": 0.0}


def test_asking_and_scoring_go_together():
    items = [drawn(1, "words", "read", "hello"), drawn(2, "words", "read", "two words")]
    score, predictions = evaluate(FakeEngine(), synth, items)
    assert [p.text for p in predictions] == ["hello", "words"]
    assert score.values["words"] == 50.0


def test_drawn_items_are_the_same_each_time():
    first, again = (list(synth.items(names=("shapes",), count=3)) for _ in range(2))
    assert [item.truth for item in first] == [item.truth for item in again]
    pictures = [[item.messages[0]["content"][0]["image"].tobytes() for item in items] for items in (first, again)]
    assert pictures[0] == pictures[1]
    assert len({item.id for item in first}) == 3
