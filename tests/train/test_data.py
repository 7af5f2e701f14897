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
    HeldOut,
    ListSource,
    MixedDataset,
    collate,
    from_conversations,
    held_out_set,
    open_source,
    read_jsonl,
    step_batches,
)
from mini_internvl.train.run import sample_processor


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
    return MixedDataset(stage(data=recipes, steps=steps, batch_size=8), None, seed=seed)


def test_sources_are_mixed_by_weight_and_used_in_turn(stage):
    dataset = synth_dataset(stage)
    counts = Counter(dataset.source_ids.tolist())
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03)
    for source in (0, 1):
        assert dataset.indices[dataset.source_ids == source].tolist() == list(range(counts[source]))
    again, other = synth_dataset(stage), synth_dataset(stage, seed=1)
    assert np.array_equal(dataset.source_ids, again.source_ids)
    assert not np.array_equal(dataset.source_ids, other.source_ids)


def test_a_longer_stage_begins_with_the_same_samples(stage):
    short, long = synth_dataset(stage, steps=20), synth_dataset(stage, steps=50)
    assert np.array_equal(short.source_ids, long.source_ids[:160])
    assert np.array_equal(short.indices, long.indices[:160])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_steps_begin_anywhere_and_leave_torchs_numbers_alone(stage, process, workers):
    dataset = MixedDataset(stage(steps=3), process, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    given = list(step_batches(dataset, 1, workers))
    assert torch.equal(torch.get_rng_state(), before)
    again = MixedDataset(stage(steps=3), process, seed=5)
    again[0]
    wanted = list(step_batches(again, 0, 0))[1:]
    for batch, other in zip([b for step in given for b in step], [b for step in wanted for b in step], strict=True):
        assert batch.sample_ids == other.sample_ids
        assert torch.equal(batch.input_ids, other.input_ids)
        assert torch.equal(batch.tiles, other.tiles)


def test_a_step_has_its_samples_in_micro_batches_of_similar_length(stage, process):
    batches = next(step_batches(MixedDataset(stage(batch_size=5, micro_batch=2), process, seed=5), 0, 0))
    assert [len(batch.sample_ids) for batch in batches] == [2, 2, 1]
    assert sorted(name for batch in batches for name in batch.sample_ids) == [f"rows/r{i}" for i in range(5)]
    lengths = [int(n) for batch in batches for n in batch.attention_mask.sum(1)]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_ends_the_steps_where_it_stands_in_plain_words(stage, rows, tmp_path, start, workers):
    """Not as the traceback of a worker, and not before the steps that come first."""
    lines = rows.read_text().splitlines()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((rows.parent / name).read_bytes())
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines, lines[0].replace("a.png", "lost.png").replace("r0", "r5")]))
    row = stage(data=(SourceRecipe(kind="jsonl", path=str(path)),), batch_size=1, micro_batch=1, steps=6)
    dataset = MixedDataset(row, sample_processor(start, row), seed=5)
    steps, seen = step_batches(dataset, 0, workers), []
    with pytest.raises(DataError) as caught:
        seen.extend(next(steps) for _ in range(6))
    assert str(caught.value) == f"sample rows/r5: {tmp_path}/lost.png does not exist; check the path"
    order = [dataset.sample(number).id for number in range(6)]
    assert len(seen) == order.index("r5")


def test_held_out_batches_are_the_same_whether_kept_or_prepared_anew(process, rows, monkeypatch):
    source = (SourceRecipe(kind="jsonl", path=str(rows)),)
    kept = held_out_set(source, process, 20, 0)
    monkeypatch.setattr(HeldOut, "KEPT_BYTES", 0)
    anew = held_out_set(source, process, 20, 0)
    assert (len(kept.kept), len(anew.kept)) == (20, 0)
    for _ in range(2):
        for batch, other in zip(kept, anew, strict=True):
            assert batch.sample_ids == other.sample_ids
            assert torch.equal(batch.tiles, other.tiles)
    assert [len(batch.sample_ids) for batch in kept] == [16, 4]


def test_batches_are_padded_on_the_right(process, rows):
    examples = [process(sample) for sample in read_jsonl(rows)]
    batch = collate(examples, 9)
    for row, example in enumerate(examples):
        n = len(example.input_ids)
        assert torch.equal(batch.input_ids[row, :n], example.input_ids)
        assert torch.equal(batch.labels[row, :n], example.labels)
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert (batch.input_ids[row, n:] == 9).all()
        assert (batch.labels[row, n:] == IGNORE).all()
    assert torch.equal(batch.tiles, torch.cat([example.tiles for example in examples]))


def test_images_of_a_sample_share_its_tiles(process, start):
    image = Image.new("RGB", (200, 100))
    part = {"type": "image", "image": image}
    text = {"type": "text", "text": "Q"}
    answer = {"role": "assistant", "content": "A"}
    one = process(Sample(id="1", messages=[{"role": "user", "content": [part, text]}, answer]))
    two = process(Sample(id="2", messages=[{"role": "user", "content": [part, part, text]}, answer]))
    own = process(Sample(id="3", messages=[{"role": "user", "content": [part, text]}, answer], max_tiles=1))
    assert [len(example.tiles) for example in (one, two, own)] == [3, 2, 1]
    context = start.model.image_token_id
    assert [int((e.input_ids == context).sum()) for e in (one, two, own)] == [12, 8, 4]


def test_rows_and_sources_may_say_that_questions_stand_apart(process, tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "conversations": turns("One?", "1", "Two?", "2")} for _ in range(2)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0] | {"independent": True}) + "\n" + json.dumps(rows[1]))
    assert [sample.independent for sample in read_jsonl(path)] == [True, False]
    source = open_source(SourceRecipe(kind="jsonl", path=str(path), independent=True), 0)
    assert (
        process(source[0]).segment_ids.unique().tolist()
        == process(source[1]).segment_ids.unique().tolist()
        == [0, 1, 2]
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
        ("word " * 600, r"sample set/7: it has \d+ tokens, more than max_length 500; raise max_length"),
    ],
)
def test_a_sample_that_cannot_be_encoded_is_named(process, content, message):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match=message):
        process(Sample(id="7", source="set", messages=messages))


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
