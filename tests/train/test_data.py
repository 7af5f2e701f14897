"""From files to batches: rows and their errors, mixing, passes, padding, numbers that depend on the step alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data.rows import read_samples
from mini_internvl.recipes import SourceRecipe
from mini_internvl.records import Sample
from mini_internvl.train.batches import collate
from mini_internvl.train.data import HeldOut, MixedDataset, Unusable, held_out_set, step_batches
from mini_internvl.train.initial import sample_processor
from mini_internvl.train.losses.answers import IGNORE


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
    for count in (100, 161, 390, 400):  # piece by piece, and nothing is taken back
        short.extend(count)
    assert np.array_equal(short.source_ids, long.source_ids)
    assert np.array_equal(short.indices, long.indices)


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
    for batch, other in zip(
        [b for step in given for b in step.batches], [b for step in wanted for b in step.batches], strict=True
    ):
        assert batch.sample_ids == other.sample_ids
        assert torch.equal(batch.input_ids, other.input_ids)
        assert torch.equal(batch.tiles, other.tiles)


def test_a_step_has_its_samples_in_micro_batches_of_similar_length(stage, process):
    batches = next(step_batches(MixedDataset(stage(batch_size=5, micro_batch=2), process, seed=5), 0, 0)).batches
    assert [len(batch.sample_ids) for batch in batches] == [2, 2, 1]
    assert sorted(name for batch in batches for name in batch.sample_ids) == [f"rows/r{i}" for i in range(5)]
    lengths = [int(n) for batch in batches for n in batch.attention_mask.sum(1)]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_leaves_its_place_empty_and_tells_why(stage, rows, tmp_path, start, workers):
    """In plain words, and no other sample moves."""
    lines = rows.read_text().splitlines()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((rows.parent / name).read_bytes())
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines, lines[0].replace("a.png", "lost.png").replace("r0", "r5")]))
    row = stage(data=(SourceRecipe(kind="jsonl", path=str(path)),), batch_size=1, micro_batch=1, steps=6)
    (tmp_path / "lost.png").write_bytes((rows.parent / "a.png").read_bytes())
    dataset = MixedDataset(row, sample_processor(start, row), seed=5)
    (tmp_path / "lost.png").unlink()
    steps = list(step_batches(dataset, 0, workers))
    order = [dataset.sample(number).id for number in range(6)]
    assert [[name for batch in step.batches for name in batch.sample_ids] for step in steps] == [
        [] if name == "r5" else [f"rows/{name}"] for name in order
    ]
    reason = f"{path}:6, sample rows/r5: {tmp_path}/lost.png is missing; check the path"
    bad = Unusable(number=order.index("r5"), file=str(path), place="line 6", reason=reason)
    assert [list(step.unusable) for step in steps] == [[bad] if name == "r5" else [] for name in order]


def test_a_process_ends_though_its_steps_were_left_in_the_middle(tmp_path):
    code = """
import sys
from mini_internvl.recipes import SourceRecipe, StageRecipe
from mini_internvl.train.data import MixedDataset, step_batches
data = (SourceRecipe(kind="synth", name="shapes"),)
stage = StageRecipe(name="one", data=data, steps=50, batch_size=1, micro_batch=1, lr=1e-3)
steps = step_batches(MixedDataset(stage, lambda sample: 1 / 0, seed=5), 0, 1)
try:
    next(steps)
except ZeroDivisionError as error:
    sys.kept = error, steps
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)


def test_held_out_batches_are_the_same_whether_kept_or_prepared_anew(process, recipe, rows, monkeypatch):
    source = (SourceRecipe(kind="jsonl", path=str(rows)),)
    settings = recipe(held_out_samples=20)
    kept = held_out_set(source, process, settings)
    monkeypatch.setattr(HeldOut, "KEPT_BYTES", 0)
    anew = held_out_set(source, process, settings)
    assert (len(kept.kept), len(anew.kept)) == (20, 0)
    for _ in range(2):
        for batch, other in zip(kept, anew, strict=True):
            assert batch.sample_ids == other.sample_ids
            assert torch.equal(batch.tiles, other.tiles)
    assert [len(batch.sample_ids) for batch in kept] == [16, 4]


def test_batches_are_padded_on_the_right(process, rows):
    examples = [process(sample) for sample in read_samples(rows)]
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image", "image": "/no/such.png"}], r"sample set/7: /no/such\.png is missing"),
        ("<image>", "sample set/7: turn 1 has 1 <image> placeholders but 0 images"),
        ("word " * 600, r"sample set/7: at its shortest it has \d+ tokens, more than max_length 500; raise max_length"),
    ],
)
def test_a_sample_that_cannot_be_encoded_is_named(process, content, message):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match=message):
        process(Sample(id="7", source="set", messages=messages))
