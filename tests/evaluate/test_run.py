"""Asking items: batches, order, kept answers, and the drawn benchmark's scores."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from PIL import Image

from mini_internvl.benchmarks import synth
from mini_internvl.benchmarks.bddx_signals import read_number
from mini_internvl.engine import Reply
from mini_internvl.evaluate import AnswerCache, PredictCallbacks, evaluate, predict
from mini_internvl.evaluate.batches import group
from mini_internvl.evaluate.run import value_text
from mini_internvl.ranks import Ranks
from mini_internvl.records import Interrupted, Item, Prediction


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
        reference={},
        **limits,
    )


def test_answers_come_back_in_the_items_order():
    engine, told = FakeEngine(), []
    callbacks = PredictCallbacks(count=lambda done, total: told.append((done, total)))
    predictions = predict(engine, [item(i) for i in range(10)], batch_size=4, callbacks=callbacks)
    assert [p.item_id for p in predictions] == [f"i{i}" for i in range(10)]
    assert [p.text for p in predictions] == [str(i) for i in range(10)]
    assert [len(questions) for questions, *_ in engine.calls] == [4, 4, 2]
    assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]


def test_similar_items_share_a_batch():
    engine = FakeEngine()
    image = {"type": "image", "image": Image.new("RGB", (2, 2))}
    alone = Item(id="p", messages=[{"role": "user", "content": [image, {"type": "text", "text": "p"}]}], reference={})
    predict(engine, [item(0, "a long question"), alone, item(1, "b")], batch_size=2)
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


@pytest.fixture
def cache(tmp_path):
    with AnswerCache(tmp_path / "answers" / "cache.sqlite") as opened:
        yield opened


def test_kept_answers_are_not_asked_again(cache):
    items = [item(i) for i in range(6)]
    first, second, told, texts = FakeEngine(), FakeEngine(), [], []
    answers = predict(first, items[:4], cache=cache)
    callbacks = PredictCallbacks(
        count=lambda *counts: told.append(counts), answered=lambda asked, text: texts.append((asked.id, text))
    )
    again = predict(second, items, cache=cache, callbacks=callbacks)
    assert len(first.asked) == 4
    assert len(second.asked) == 2
    assert again[:4] == answers
    assert told == [(4, 6), (6, 6)]
    assert sorted(texts) == [(f"i{i}", str(i)) for i in range(6)]
    third = FakeEngine()
    assert predict(third, items, cache=cache) == again
    assert third.calls == []


class HeadedEngine(FakeEngine):
    """Its heads say how long a question is."""

    head_names = ("length", "word")

    def predict_batch(self, conversations, *, max_tiles=None):
        questions = [self._question(messages[-1]["content"]) for messages in conversations]
        self.calls.append((questions, "heads", max_tiles))
        return [{"length": len(question) / 3, "word": question.split()[0]} for question in questions]


def test_items_with_a_target_are_answered_by_the_head_of_that_name(cache):
    items = [
        item(1, "how long", target="length"),
        item(2, "how long"),
        item(3, "how long", target="word"),
        item(4, "how", target="length"),
        item(5, "how long", target="weight"),
    ]
    engine = HeadedEngine()
    found = predict(engine, items, cache=cache)
    assert [prediction.text for prediction in found] == ["2.666667", "long", "how", "1.0", "long"]
    assert engine.calls == [(["how long"], 100, None), (["how", "how long", "how long"], "heads", None)]
    again, plain = HeadedEngine(), FakeEngine()
    assert predict(again, items, cache=cache) == found
    assert again.calls == []
    assert [prediction.text for prediction in predict(plain, items, cache=cache)] == ["long"] * 3 + ["how", "long"]
    assert plain.asked == ["how"]  # what was answered as text is kept, what a head said is not an answer in text


def test_values_are_texts_that_scorers_read():
    assert [value_text(value) for value in (9.0, -0.5, 1e-5, 1e-9, -1e-9, 123456.7, [1.5, -2.0], "left")] == [
        *("9.0", "-0.5", "0.00001", "0.0", "0.0", "123456.7", "1.5, -2.0", "left")
    ]
    assert [read_number(value_text(value)) for value in (1e-5, -31.25)] == [1e-5, -31.25]


def test_another_question_limit_model_or_image_is_asked_anew(cache, tmp_path):
    def with_image(colour):
        Image.new("RGB", (3, 3), colour).save(tmp_path / "image.png")
        parts = [{"type": "image", "image": str(tmp_path / "image.png")}, {"type": "text", "text": "what"}]
        return Item(id="p", messages=[{"role": "user", "content": parts}], reference={})

    predict(FakeEngine(), [item(1, "first")], cache=cache, model="a")
    predict(FakeEngine(), [with_image("red")], cache=cache, model="a")
    limited = (item(1, "first", max_tiles=3), item(1, "first", max_new_tokens=7))
    changes = [(item(1, "other"), "a"), *((changed, "a") for changed in limited), (item(1, "first"), "b")]
    for changed, model in [*changes, (with_image("blue"), "a")]:  # the same name, another content
        engine = FakeEngine()
        predict(engine, [changed], cache=cache, model=model)
        assert len(engine.asked) == 1
    engine = FakeEngine()
    predict(engine, [item(2, "first")], cache=cache, model="a")  # the same question under another id
    assert engine.asked == []


def test_the_same_question_is_asked_once():
    engine = FakeEngine()
    predictions = predict(engine, [item(1, "same"), item(2, "other"), item(3, "same")])
    assert sorted(engine.asked) == ["other", "same"]
    assert [(p.item_id, p.text) for p in predictions] == [("i1", "same"), ("i2", "other"), ("i3", "same")]


def test_an_interrupted_evaluation_goes_on(cache):
    items = [item(i) for i in range(9)]
    with pytest.raises(KeyboardInterrupt):
        predict(FakeEngine(fail_after=2), items, batch_size=3, cache=cache)
    stopped = FakeEngine()
    with pytest.raises(Interrupted, match="stopped at 6 of 9 answers"):
        predict(stopped, items, batch_size=3, cache=cache, callbacks=PredictCallbacks(should_stop=lambda: True))
    assert stopped.asked == []
    engine = FakeEngine()
    predictions = predict(engine, items, batch_size=3, cache=cache)
    assert len(engine.asked) == 3
    assert [p.text for p in predictions] == [str(i) for i in range(9)]


def test_a_batch_is_kept_whole_or_not_at_all(cache):
    class Half(FakeEngine):
        def chat_batch(self, conversations, config=None, *, max_tiles=None):
            return super().chat_batch(conversations, config, max_tiles=max_tiles)[:1]

    with pytest.raises(ValueError, match="shorter"):
        predict(Half(), [item(i) for i in range(4)], cache=cache)
    engine = FakeEngine()
    predict(engine, [item(i) for i in range(4)], cache=cache)
    assert len(engine.asked) == 4


@pytest.mark.parametrize("text", ["", "zwei\nZeilen", "\u2028\u0085\x1c", 'quote " and \\', "汉字", "\x00"])
def test_any_answer_survives_being_kept(cache, text):
    class Speaker(FakeEngine):
        def chat_batch(self, conversations, config=None, *, max_tiles=None):
            self.calls.append(([str(c) for c in conversations], 0, None))
            return [Reply(text=text, tiles=0, prompt_tokens=1, tokens=1, seconds=0.25) for _ in conversations]

    first = predict(Speaker(), [item(1)], cache=cache)
    engine = Speaker()
    assert predict(engine, [item(1)], cache=cache) == first
    assert engine.calls == []
    assert first[0].text == text


def test_no_items_are_no_work(cache):
    assert predict(FakeEngine(), [], cache=cache) == []


def test_batches_depend_on_the_items_alone():
    items = [item(i, max_new_tokens=10 + i % 2) for i in range(20)]
    tiles = {f"i{i}": (1, 3, 30)[i % 3] for i in range(20)}
    prompts = ["x" * (i % 5) for i in range(20)]

    def batches():
        return group(items, prompts, lambda one: tiles[one.id], batch_size=4, most_tiles=40)

    assert batches() == batches()
    assert sorted(i for batch in batches() for i in batch) == list(range(20))
    for batch in batches():
        assert len(batch) <= 4
        assert len({items[i].max_new_tokens for i in batch}) == 1
        assert len(batch) == 1 or sum(tiles[f"i{i}"] for i in batch) <= 40
    same = group(items, prompts, lambda one: 1, images=[str(i % 5) for i in range(20)], batch_size=2)
    assert all(len({i % 5 for i in batch}) == 1 for batch in same)
    many = group(items, prompts, lambda one: 500, batch_size=4)
    assert all(len(batch) == 1 for batch in many)


def test_images_of_the_next_batch_are_prepared_while_one_is_answered():
    class Preparing(FakeEngine):
        ready = None

        def prepare_batch(self, conversations, *, max_tiles=None):
            if conversations[-1][-1]["content"].endswith("3"):
                self.ready.set()
            return conversations

        def chat_batch(self, conversations, config=None, *, max_tiles=None):
            if not self.calls:
                assert self.ready.wait(10), "the next batch is not prepared meanwhile"
            return super().chat_batch(conversations, config, max_tiles=max_tiles)

    engine = Preparing()
    engine.ready = threading.Event()
    items = [item(i, f"question number {i}") for i in range(4)]
    assert [p.text for p in predict(engine, items, batch_size=2)] == list("0123")


def test_processes_share_the_batches():
    items = [item(i) for i in range(10)]
    asked, answers = [], {}
    for rank in (1, 0):

        class Two(Ranks):
            def exchange(self, mine):
                answers[self.rank] = mine
                return [answers.get(0, ({}, "")), answers.get(1, ({}, ""))]

        engine = FakeEngine()
        try:
            predictions = predict(engine, items, batch_size=3, ranks=Two(rank=rank, size=2))
        except KeyError:
            assert rank == 1  # the other has not answered yet
        asked.append(engine.asked)
    assert [len(part) for part in asked] == [4, 6]
    assert not set(asked[0]) & set(asked[1])
    assert [p.text for p in predictions] == [str(i) for i in range(10)]


def test_a_failure_of_one_process_is_told_to_the_others():
    class Two(Ranks):
        def exchange(self, mine):
            return [mine, ({}, "ImageError: a.png is damaged")]

    with pytest.raises(RuntimeError, match=r"process 1 failed: ImageError: a.png is damaged"):
        predict(FakeEngine(), [item(1)], ranks=Two(rank=0, size=2))


def test_what_fails_before_anything_is_asked_is_told_to_the_others_too():
    told = []

    class Two(Ranks):
        def exchange(self, mine):
            told.append(mine)
            return [mine, ({}, "")]

    class Odd(FakeEngine):
        def render(self, messages):
            raise KeyError("no such template")

    with pytest.raises(KeyError):
        predict(Odd(), [item(1)], ranks=Two(rank=0, size=2))
    gone = Item(id="x", messages=[{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}], reference={})
    with pytest.raises(ValueError, match=r"gone\.png"):
        predict(FakeEngine(), [gone], ranks=Two(rank=0, size=2))
    assert told[0] == ({}, "KeyError: 'no such template'")
    assert told[1][1].startswith("ImageError: gone.png")


def drawn(number, kind, task, answer):
    return Item(
        id=str(number),
        messages=[{"role": "user", "content": f"Q {answer}"}],
        reference={"kind": kind, "task": task, "answer": answer},
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
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", True),
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "a[[0, 0, 100, 100]]", True),
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "b[[0, 0, 100, 100]]", False),
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "a[[0, 0, 100, 49]]", False),
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "a", False),
        ("region", "<ref>a</ref><box>[[0, 0, 100, 100]]</box>", "", False),
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
    assert score.counts["shapes"] == 4
    assert (score.items, score.benchmark) == (5, "synth")
    assert synth.score([], []).values == {"mean": 0.0}


def test_asking_and_scoring_go_together():
    items = [drawn(1, "words", "read", "hello"), drawn(2, "words", "read", "two words")]
    score, predictions = evaluate(FakeEngine(), synth, items)
    assert [p.text for p in predictions] == ["hello", "words"]
    assert score.values["words"] == 50.0


def test_drawn_items_are_the_same_each_time():
    first, again = (list(synth.items(names=("shapes",), count=3)) for _ in range(2))
    assert [item.reference for item in first] == [item.reference for item in again]
    images = [[item.messages[0]["content"][0]["image"].tobytes() for item in items] for items in (first, again)]
    assert images[0] == images[1]
    assert len({item.id for item in first}) == 3
