"""What shows how a run goes: event files, kept answers, the early stop."""

from __future__ import annotations

import math

import pytest

from mini_internvl.data.rows import read_samples
from mini_internvl.engine import Engine
from mini_internvl.recipes import Recipe, RecipeError
from mini_internvl.train import events
from mini_internvl.train import samples as kept


def curve(folder, tag):
    """(step, value) as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    from tensorboard.util.tensor_util import make_ndarray

    found = accumulator.EventAccumulator(str(folder)).Reload()
    return [(event.step, float(make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]


def test_events_are_a_curve_without_the_steps_that_a_kill_repeats(tmp_path):
    writer = events.EventWriter(tmp_path)
    for step in range(1, 6):
        writer.write("one", step, {"stage": "one", "step": step, "loss": 9.0, "nan": math.nan})
    writer.close()
    again = events.EventWriter(tmp_path)  # from the state after step 3
    for step in range(4, 8):
        again.write("one", step, {"loss": 5.0})
    again.write("two", 1, {"loss": 4.0})
    again.close()
    assert curve(tmp_path / "tensorboard/one", "loss") == [(1, 9), (2, 9), (3, 9), (4, 5), (5, 5), (6, 5), (7, 5)]
    assert curve(tmp_path / "tensorboard/two", "loss") == [(1, 4)]
    with pytest.raises(KeyError):
        curve(tmp_path / "tensorboard/one", "nan")


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    writer = events.EventWriter(tmp_path)
    writer.write("one", 1, {"loss": 9.0})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_answers_are_kept_with_their_pictures_once(tmp_path, rows, start, checkpoint):
    samples = list(read_samples(rows))
    answer = kept.engine_answers(Engine(start.model.eval(), checkpoint), max_tiles=1, max_new_tokens=3)
    path = kept.write_samples(tmp_path, "stage one", 200, answer, samples)
    assert path == tmp_path / "samples/stage-one/00000200.json"
    first = path.read_bytes()
    kept.write_samples(tmp_path, "stage one", 1000, lambda asked: ["yes"] * len(asked), samples)
    assert kept.write_samples(tmp_path, "stage one", 200, answer, samples).read_bytes() == first
    before, after = kept.read_samples(tmp_path)
    assert (before["step"], after["step"]) == (200, 1000)
    row = after["samples"][1]
    assert (row["question"], row["reference"], row["answer"]) == ("Where?", "To the left of the house.", "yes")
    assert [len(row["images"]) for row in after["samples"]] == [1, 1, 0, 2, 1]
    names = {name for row in after["samples"] for name in row["images"]}
    assert {path.name for path in (tmp_path / "samples/images").iterdir()} == names
    assert len(names) == 2


def test_a_sample_without_an_answer_is_named(tmp_path, rows):
    sample = read_samples(rows)[0]
    object.__setattr__(sample, "messages", sample.messages[:1])
    with pytest.raises(ValueError, match=r"sample .*r0 has no question with an answer"):
        kept.write_samples(tmp_path, "one", 1, lambda asked: [""] * len(asked), [sample])


def test_the_recipe_checks_its_patience(recipe):
    assert recipe().patience == 0
    with pytest.raises(RecipeError, match=r"patience is -1; it must be 0 or above"):
        recipe(patience=-1)
    with pytest.raises(RecipeError, match=r"patience is 2, but nothing is measured; .*held_out"):
        recipe(patience=2, held_out=())
    assert isinstance(recipe(patience=2), Recipe)


def test_answers_that_fail_are_told_once_and_end_nothing(tmp_path, rows, start, checkpoint, caplog, monkeypatch):
    answers = kept.AnswerLog(tmp_path, "one", list(read_samples(rows))[:2], tokenizer=checkpoint, max_tiles=1)
    answers(start.model.eval(), 1)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "chat_batch", fail)
    for step in (2, 3):
        answers(start.model, step)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["answers of held-out samples are kept no longer: out of memory"]
    assert [record["step"] for record in kept.read_samples(tmp_path)] == [1]
