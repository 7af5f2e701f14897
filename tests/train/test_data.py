"""From files to batches: rows and their errors, mixing, passes, padding, numbers that depend on the step alone."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample
from mini_internvl.train import data
from mini_internvl.train.data import (
    IGNORE,
    DataError,
    ListSource,
    StepDataset,
    collate,
    from_conversations,
    loader,
    open_source,
    read_jsonl,
)
from mini_internvl.train.losses import ANSWERS


def turns(*texts, first="human"):
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]


def texts(message):
    content = message["content"]
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def images(message):
    content = message["content"]
    return [] if isinstance(content, str) else [p["image"] for p in content if p["type"] == "image"]


def test_a_lone_image_without_a_mark_comes_first(tmp_path):
    messages = from_conversations({"image": "x/a.png", "conversations": turns("What?", "A.", "B?", "C.")}, tmp_path)
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert texts(messages[0]) == "<image>\nWhat?"
    assert images(messages[0]) == [str(tmp_path / "x/a.png")]
    assert messages[2]["content"] == "B?"


def test_marks_stay_where_they_are_and_images_follow_in_order(tmp_path):
    row = {"image": ["a", "b", "c"], "conversations": turns("1: <image> 2: <image>", "x", "now <image>", "y")}
    messages = from_conversations(row, tmp_path)
    assert texts(messages[0]) == "1: <image> 2: <image>"
    assert images(messages[0]) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert images(messages[2]) == [str(tmp_path / "c")]


def test_a_first_turn_that_no_one_asked_for_is_dropped_and_a_system_turn_kept(tmp_path):
    assert from_conversations({"conversations": turns("hi", "Q", "A", first="gpt")}, tmp_path) == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    row = {"conversations": [{"from": "system", "value": "S"}, *turns("Q", "A")]}
    assert from_conversations(row, tmp_path)[0] == {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "conversations": turns("<image> <image>", "x")}, "2 <image> marks but 1 images"),
        ({"image": ["a", "b"], "conversations": turns("<image>", "x")}, "1 <image> marks but 2 images"),
        ({"image": ["a", "b"], "conversations": turns("none", "x")}, "0 <image> marks but 2 images"),
        ({"conversations": turns("<image>", "x")}, "1 <image> marks but 0 images"),
        ({"conversations": [*turns("a"), {"from": "bot", "value": "b"}]}, 'unknown speaker "bot"; known: human, gpt'),
        ({"image": "a.png", "conversations": [{"from": "system", "value": "S"}]}, "no turn is from human"),
        ({"image": "a.png", "conversations": []}, "no turn is from human"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        from_conversations(row, tmp_path)


def test_rows_of_both_shapes_are_read(tmp_path):
    path = tmp_path / "mix.jsonl"
    own = [
        {"role": "user", "content": [{"type": "image", "image": "sub/a.png"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    url = "data:image/png;base64,AAAA"
    lines = [
        {"id": 7, "conversations": turns("Q", "A")},
        {"messages": own},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": url}]}, own[1]]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "/abs/b.png"}]}, own[1]]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    samples = read_jsonl(path)
    assert [(s.source, s.id) for s in samples] == [("mix", "7"), ("mix", "2"), ("mix", "3"), ("mix", "4")]
    found = [p for s in samples for m in s.messages for p in images(m)]
    assert found == [str(tmp_path / "sub/a.png"), url, "/abs/b.png"]  # relative to the file, not to where we stand


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl:2: not valid JSON"),
        ("[1]", r"rows\.jsonl:2: a row is an object"),
        ("5", r"rows\.jsonl:2: a row is an object"),
        ("{}", r"rows\.jsonl:2: no field 'conversations'"),
        ('{"conversations": [{"value": "x"}]}', r"rows\.jsonl:2: no field 'from'"),
        ('{"conversations": [{"from": "human"}]}', r"rows\.jsonl:2: no field 'value'"),
        ('{"conversations": ["x"]}', r"rows\.jsonl:2: "),
        ('{"conversations": 5}', r"rows\.jsonl:2: "),
        ('{"conversations": [{"from": "x", "value": "y"}, {"from": "me", "value": "z"}]}', r"rows\.jsonl:2: .*speaker"),
        ('{"image": "a", "conversations": [{"from": "gpt", "value": "y"}]}', r"rows\.jsonl:2: .*no turn is from human"),
        ('{"messages": [{"role": "user"}]}', r"rows\.jsonl:2: turn 1: the content is NoneType"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', r"rows\.jsonl:2: "),
        ('{"messages": 3}', r"rows\.jsonl:2: "),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"conversations": turns("Q", "A")}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_jsonl(path)


def test_missing_and_empty_sources_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        open_source(SourceRecipe(kind="jsonl", path=str(tmp_path / "none.jsonl")), 0)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds no samples"):
        open_source(SourceRecipe(kind="jsonl", path=str(tmp_path / "empty.jsonl")), 0)
    with pytest.raises(DataError, match=r'unknown synth kind "shape"; known: .*shapes'):
        open_source(SourceRecipe(kind="synth", name="shape"), 0)
    with pytest.raises(ValueError, match='called "driving"'):
        open_source(SourceRecipe(kind="domain", name="driving", path=str(tmp_path)), 0)


def test_each_pass_over_a_list_is_another_order_of_all():
    samples = [Sample(id=str(i), messages=[]) for i in range(10)]
    source = ListSource(samples, 3, "x")
    passes = [[source[turn * 10 + i].id for i in range(10)] for turn in range(3)]
    assert all(sorted(order, key=int) == [str(i) for i in range(10)] for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert ListSource(samples, 3, "x")[17].id == passes[1][7]  # needs no replay
    assert [ListSource(samples, 4, "x")[i].id for i in range(10)] != passes[0]


def synth_dataset(stage, seed=0, steps=500):
    sources = [("shapes", 3.0), ("words", 1.0)]
    recipes = tuple(SourceRecipe(kind="synth", name=name, weight=weight) for name, weight in sources)
    return StepDataset(stage(data=recipes, steps=steps, batch_size=8), None, pad_id=0, seed=seed)


def test_sources_are_mixed_by_weight_and_used_in_turn(stage):
    dataset = synth_dataset(stage)
    counts = Counter(dataset.choices.tolist())
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03)
    for source in (0, 1):
        assert dataset.numbers[dataset.choices == source].tolist() == list(range(counts[source]))
    again, other = synth_dataset(stage), synth_dataset(stage, seed=1)
    assert np.array_equal(dataset.choices, again.choices)
    assert not np.array_equal(dataset.choices, other.choices)


def test_a_step_depends_on_its_number_alone(stage, encode):
    dataset = StepDataset(stage(), encode, pad_id=0, seed=5)
    wanted = dataset[4]
    again = StepDataset(stage(), encode, pad_id=0, seed=5)
    again[1]
    for a, b in zip(wanted, again[4], strict=True):
        assert a.sample_ids == b.sample_ids
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.pixel_values, b.pixel_values)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_begins_anywhere_and_leaves_torchs_numbers_alone(stage, encode, workers):
    dataset = StepDataset(stage(steps=3), encode, pad_id=0, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    given = [[batch.sample_ids for batch in step] for step in loader(dataset, 1, workers)]
    assert torch.equal(torch.get_rng_state(), before)
    assert given == [[batch.sample_ids for batch in dataset[step]] for step in (1, 2)]


def test_a_step_has_its_samples_in_micro_batches_of_similar_length(stage, encode):
    batches = StepDataset(stage(batch_size=5, micro_batch=2), encode, pad_id=0, seed=5)[0]
    assert [len(batch.sample_ids) for batch in batches] == [2, 2, 1]
    assert sorted(name for batch in batches for name in batch.sample_ids) == [f"rows/r{i}" for i in range(5)]
    lengths = [int(n) for batch in batches for n in batch.attention_mask.sum(1)]
    assert lengths == sorted(lengths)


def test_batches_are_padded_on_the_right(encode, rows):
    examples = [encode(sample) for sample in read_jsonl(rows)]
    batch = collate(examples, 9)
    for row, example in enumerate(examples):
        n = len(example.input_ids)
        assert torch.equal(batch.input_ids[row, :n], example.input_ids)
        assert torch.equal(batch.labels[row, :n], example.labels)
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert (batch.input_ids[row, n:] == 9).all()
        assert (batch.labels[row, n:] == IGNORE).all()
    assert torch.equal(batch.pixel_values, torch.cat([example.pixel_values for example in examples]))
    assert ANSWERS.count([batch]) == sum(int((e.labels != IGNORE).sum()) for e in examples)


def test_images_of_a_sample_share_its_tiles(encode, start):
    image = Image.new("RGB", (200, 100))
    part = {"type": "image", "image": image}
    text = {"type": "text", "text": "Q"}
    answer = {"role": "assistant", "content": "A"}
    one = encode(Sample(id="1", messages=[{"role": "user", "content": [part, text]}, answer]))
    two = encode(Sample(id="2", messages=[{"role": "user", "content": [part, part, text]}, answer]))
    own = encode(Sample(id="3", messages=[{"role": "user", "content": [part, text]}, answer], max_tiles=1))
    assert [len(example.pixel_values) for example in (one, two, own)] == [3, 2, 1]
    context = start.model.image_token_id
    assert [int((e.input_ids == context).sum()) for e in (one, two, own)] == [12, 8, 4]


def test_rows_and_sources_may_say_that_questions_stand_apart(encode, tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "conversations": turns("One?", "1", "Two?", "2")} for _ in range(2)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0] | {"independent": True}) + "\n" + json.dumps(rows[1]))
    assert [sample.independent for sample in read_jsonl(path)] == [True, False]
    source = open_source(SourceRecipe(kind="jsonl", path=str(path), independent=True), 0)
    assert (
        encode(source[0]).segment_ids.unique().tolist() == encode(source[1]).segment_ids.unique().tolist() == [0, 1, 2]
    )

    path.write_text(json.dumps(rows[0] | {"independent": "yes"}))
    with pytest.raises(DataError, match=r'rows\.jsonl:1: independent is "yes"; it must be true or false'):
        read_jsonl(path)
    path.write_text(json.dumps(rows[0] | {"id": "x", "conversations": turns("One?", "1", "Two?")}))
    with pytest.raises(DataError, match=r"rows\.jsonl, sample x: questions that stand apart each have one answer"):
        open_source(SourceRecipe(kind="jsonl", path=str(path), independent=True), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image", "image": "/no/such.png"}], r"sample set/7: /no/such\.png does not exist"),
        ("<image>", "sample set/7: turn 1 has 1 <image> marks but 0 images"),
        ("word " * 600, r"sample set/7 has \d+ tokens, more than max_length 500; raise max_length"),
    ],
)
def test_a_sample_that_cannot_be_encoded_is_named(encode, content, message):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match=message):
        encode(Sample(id="7", source="set", messages=messages))


def test_domain_and_synth_sources_give_samples(monkeypatch, tmp_path):
    class Domain:
        @staticmethod
        def convert(raw, split):
            assert (raw, split) == (tmp_path, "validation")
            return iter([Sample(id="d", messages=[])])

    monkeypatch.setattr(data.plugins, "find", lambda folder, name: Domain)
    source = SourceRecipe(kind="domain", name="x", path=str(tmp_path), split="validation")
    assert open_source(source, 0)[3].id == "d"
    drawn = open_source(SourceRecipe(kind="synth", name="shapes", seed=4, split="test"), 0)[2]
    assert drawn.id == "shapes-test-4-2"
