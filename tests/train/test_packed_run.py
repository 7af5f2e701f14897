"""Runs that pack: what they learn from, their plan, and rows that cannot be used."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mini_internvl.data import DataError
from mini_internvl.ranks import Ranks
from mini_internvl.recipes import PackRecipe, RecipeError, SourceRecipe
from mini_internvl.records import Example, Interrupted
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.data import MixedDataset, Unusable, step_batches
from mini_internvl.train.layout import Layout, kept_plan, make_plan
from mini_internvl.train.log import read_log
from mini_internvl.train.run import run_recipe

PACK = PackRecipe(tokens=500, tiles=6)


@pytest.fixture
def dataset(stage, process):
    """``dataset(steps=3, ...)``: the rows of a stage that packs two rows of 500 tokens a step."""

    def make(**changes):
        settings = {"pack": PACK, "batch_size": 2, "max_length": 500} | changes
        return MixedDataset(stage(**settings), process, seed=3)

    return make


def test_a_packed_row_is_its_samples_one_after_the_other(examples, learner):
    """Loss and gradients are those of the rows alone: text, one image, two images, two answers."""
    packed = packed_batch(examples)
    assert packed.input_ids.shape[0] == 1
    assert int(packed.attention_mask.sum()) == packed.input_ids.numel() == sum(len(e.input_ids) for e in examples)
    assert packed.document_ids.unique().tolist() == list(range(len(examples)))
    assert (packed.position_ids[0, np.cumsum([0] + [len(e.input_ids) for e in examples[:-1]])] == 0).all()
    model = learner({"answers": {"reduction": "square"}}).train()
    together = model(packed)["loss"]
    together.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = sum(model(collate([example], 0))["loss"] for example in examples)
    alone.backward()
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-5, rtol=1e-5)


def test_the_plan_keeps_both_budgets_and_a_longer_stage_begins_with_its_packs(dataset, tmp_path):
    short, long = make_plan(dataset(steps=3)), make_plan(dataset(steps=9))
    assert (len(short), len(long)) == (6, 18)
    assert np.array_equal(short.members, long.members[: len(short.members)])
    assert (long.tokens <= 500).all()
    assert (long.tiles <= 6).all()
    assert len(np.unique(long.members)) == len(long.members)
    path = tmp_path / "plan.npz"
    kept_plan(dataset(steps=3), path)
    again = kept_plan(dataset(steps=9), path)
    assert np.array_equal(again.members, long.members)
    assert np.array_equal(kept_plan(dataset(steps=9), path).ends, long.ends)
    with pytest.raises(DataError, match=r"plan\.npz holds other packs than this data"):
        kept_plan(dataset(steps=12, pack=PackRecipe(tokens=510, tiles=5)), path)


def test_steps_are_the_packs_of_the_plan_on_any_number_of_processes(dataset):
    data = dataset(steps=4, batch_size=4)
    plan = make_plan(data)
    layout = Layout(data, plan, image_size=28)
    for step, given in enumerate(step_batches(data, 0, 0, layout=layout)):
        packs = [sorted(plan[pack].tolist()) for pack in range(4 * step, 4 * step + 4)]
        assert len(given.batches) == 4
        shares = [layout.groups(step, Ranks(rank=rank, size=3)) for rank in range(3)]
        assert sorted(sorted(group.tolist()) for share in shares for group in share) == sorted(packs)
        assert max(len(share) for share in shares) == 2


def test_a_run_that_packs_goes_on_bit_for_bit(recipe, tmp_path):
    changes = {"steps": 5, "pack": PACK, "batch_size": 2, "max_length": 500, "drop_path": 0.5}
    run_recipe(recipe(changes), tmp_path / "whole", workers=0)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_recipe(recipe(changes), tmp_path / "parts", workers=1, should_stop=lambda: True)
    run_recipe(recipe(changes), tmp_path / "parts", workers=2)
    for name in ("metrics.jsonl", "last/model.safetensors", "plan/0.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    rows = read_log(tmp_path / "whole/metrics.jsonl")
    assert all(row["padding"] == 0 for row in rows)
    assert all(row["tokens"] <= 1000 and row["tiles"] <= 12 for row in rows)


def test_a_pack_must_hold_the_longest_sample(stage):
    with pytest.raises(RecipeError, match=r"pack\.tokens is 400, less than max_length 500; lower max_length"):
        stage(pack=PackRecipe(tokens=400), max_length=500)


def test_an_image_that_grew_after_its_row_was_indexed_bursts_no_pack(dataset, rows, tmp_path):
    shutil.copytree(rows.parent, tmp_path / "data")
    source = SourceRecipe(kind="jsonl", path=str(tmp_path / "data/rows.jsonl"))
    packed, alone = (dataset(data=(source,), pack=pack) for pack in (PACK, None))
    Image.new("RGB", (112, 56)).save(tmp_path / "data/a.png")
    shown = [number for number in range(5) if packed.sample(number).id in ("r0", "r4")]
    assert len(shown) == 2  # two images, as r3 has, share two tiles whatever they are
    for number in range(5):
        one = packed[number]
        assert isinstance(one, Unusable) == (number in shown)
        assert isinstance(alone[number], Example)
        if isinstance(one, Unusable):
            assert "an image was changed after its row was indexed: the sample has" in one.reason


@pytest.fixture
def bad_rows(rows, tmp_path):
    """40 rows, the image of one of which is damaged."""
    folder = tmp_path / "data"
    shutil.copytree(rows.parent, folder)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    content = [{**lines[number % 5], "id": f"n{number}"} for number in range(40)]
    content[7] = {**lines[0], "id": "n7", "image": "torn.png"}
    image = (folder / "a.png").read_bytes()
    (folder / "torn.png").write_bytes(image[:200] + image[-12:])  # whole by its end, so only decoding shows it
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.mark.parametrize("pack", [None, PACK])
def test_a_damaged_row_is_set_aside_once_and_the_run_ends_well(recipe, bad_rows, tmp_path, pack):
    """Also stopped in the middle; every other sample stays where it is."""
    source = (SourceRecipe(kind="jsonl", path=str(bad_rows)),)
    changes = {"steps": 16, "batch_size": 2 if pack else 4, "data": source, "pack": pack, "max_length": 500}
    run_recipe(recipe(changes), tmp_path / "whole", workers=0)
    (row,) = [json.loads(line) for line in (tmp_path / "whole/quarantine.jsonl").read_text().splitlines()]
    assert (row["file"], row["place"]) == (str(bad_rows), "line 8")
    assert "torn.png" in row["reason"]
    rows = read_log(tmp_path / "whole/metrics.jsonl")
    assert sum(row["unusable"] for row in rows) >= 1
    with pytest.raises(Interrupted):
        run_recipe(recipe(changes), tmp_path / "parts", workers=1, should_stop=lambda: True)
    run_recipe(recipe(changes), tmp_path / "parts", workers=2)
    for name in ("metrics.jsonl", "quarantine.jsonl", "last/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    good = load_file(tmp_path / "whole/last/model.safetensors")
    assert all(torch.isfinite(tensor.float()).all() for tensor in good.values())


def test_more_faults_than_allowed_end_the_run_with_their_list(recipe, bad_rows, tmp_path):
    source = (SourceRecipe(kind="jsonl", path=str(bad_rows)),)
    settings = recipe({"steps": 12, "batch_size": 4, "data": source}, max_faults=0.0)
    with pytest.raises(DataError, match=r"rows\.jsonl:8: .*torn\.png.*mend the rows or take them out"):
        run_recipe(settings, tmp_path / "run", workers=0)
