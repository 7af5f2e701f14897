"""Kept features of a frozen encoder: the same training to the bit, whatever is kept; images are read once."""

from __future__ import annotations

import base64
import os
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mini_internvl.data.rows import read_samples
from mini_internvl.inputs import prepare
from mini_internvl.inputs.tiles import TileConfig
from mini_internvl.recipes import LoraRecipe, PackRecipe, RecipeError
from mini_internvl.records import Interrupted
from mini_internvl.train import shards
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.features import FeatureStore
from mini_internvl.train.initial import open_initial
from mini_internvl.train.log import read_log
from mini_internvl.train.nf4 import quantize_base
from mini_internvl.train.run import run_recipe
from mini_internvl.train.selfcheck import SelfCheckError, check_first

FROZEN = {"train": ("projector", "llm"), "cache": True}
ALONE = {"train": ("llm",), "cache": True}
PACKED = {"pack": PackRecipe(tokens=500, tiles=6), "batch_size": 2, "max_length": 500}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/features"


@pytest.fixture
def store(start, cache):
    """``store(projected=True, ...)``: of the tiny checkpoint."""

    def make(**changes):
        settings = {"projected": False, "precision": "fp32", "limit": 10**9} | changes
        return FeatureStore(cache, start.model, **settings)

    return make


def entries(cache):
    """Key -> (shard, place, size) of what indexes name."""
    found = {}
    for index in sorted(cache.rglob("*.index")):
        for key, place, size, *_ in shards.RECORD.iter_unpack(index.read_bytes()):
            found[key.hex()] = (index.with_suffix(".shard"), place, size)
    return found


def spoil(entry, content=None):
    """Put other bytes in the place of an entry's value."""
    path, place, size = entry
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(size) if content is None else content)


def no_images(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(prepare, "load_image", refuse)


def same(first, second):
    for name in ("last", "best"):
        a, b = (load_file(run / name / "model.safetensors") for run in (first, second))
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("projected", [False, True])
def test_losses_and_gradients_are_the_same_whatever_is_kept(rows, process, store, learner, cache, projected):
    """In one packed row: none kept, one of two images kept, all kept; near those of the tiles."""
    kept = store(projected=projected)
    model = learner(train=("llm",) if projected else ("projector", "llm")).train()
    model.model.vision_model.requires_grad_(False)
    model.model.mlp1.requires_grad_(not projected)
    samples = list(read_samples(rows))

    def learnt(process):
        model.zero_grad()
        batch = packed_batch([process(sample) for sample in samples])
        loss = model(batch)["loss"]
        loss.backward()
        return batch, loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, plain_loss, _ = learnt(process)
    model.store = kept
    found = [learnt(replace(process, features=kept))]
    *_, smaller, larger = sorted(entries(cache).values(), key=lambda entry: entry[2])
    spoil(larger)
    found += [learnt(replace(process, features=kept)) for _ in range(2)]
    assert [sum(not image.kept for image in batch.images) for batch, _, _ in found] == [5, 1, 0]
    assert [len(batch.tiles) for batch, _, _ in found] == [len(plain.tiles), 3, 0]
    for _, loss, gradients in found:
        assert loss == found[0][1] == pytest.approx(plain_loss, rel=1e-3)
        assert all(torch.equal(gradient, found[0][2][name]) for name, gradient in gradients.items())
    assert smaller[2] == 2 * kept.shape[0] * kept.shape[1]


def test_each_image_keeps_its_own_features_in_padded_rows(rows, process, store, learner):
    model, kept = learner().eval(), store()
    examples = [replace(process, features=kept)(sample) for sample in read_samples(rows)]
    plain = [process(sample) for sample in read_samples(rows)]
    kept.visual_tokens(model.model, collate([examples[4]], 0))  # only the image of this sample
    examples = [replace(process, features=kept)(sample) for sample in read_samples(rows)]
    assert [[image.kept for image in e.images] for e in examples] == [[True], [False], [], [True, False], [True]]
    made = kept.visual_tokens(model.model, collate(examples, 0))
    wanted = model.model.encode_images(prepare.normalise_tiles(collate(plain, 0).tiles))
    apart = torch.cdist(made.flatten(1), wanted.flatten(1))
    assert (apart.diagonal() < 0.05 * apart.max(dim=1).values).all()  # another image's are far


def test_the_check_of_a_first_batch_reads_kept_features_too(rows, process, store, start, learner):
    model, kept = learner().eval(), store()
    model.store = kept
    samples = list(read_samples(rows))
    for wanted in (False, True):
        batch = packed_batch([replace(process, features=kept)(sample) for sample in samples])
        assert {image.kept for image in batch.images} == {wanted}
        check_first(batch, model, start.tokenizer, samples)
    with pytest.raises(SelfCheckError, match="visual tokens"):
        check_first(replace(batch, images=batch.images[1:]), model, start.tokenizer, samples)


@pytest.mark.parametrize(
    ("changes", "workers"), [(FROZEN, 0), (ALONE, 1), ({**FROZEN, **PACKED}, 0), ({**ALONE, **PACKED}, 1)]
)
def test_runs_are_the_same_with_and_without_kept_features(recipe, cache, tmp_path, monkeypatch, changes, workers):
    """Nothing ever kept, kept as the run goes, all kept before; and stopped, some entries gone, and gone on."""
    settings = recipe(changes, held_out=())
    run_recipe(replace(settings, cache_gb=0.0), tmp_path / "without", workers=workers)
    assert entries(cache) == {}
    run_recipe(settings, tmp_path / "first", workers=workers)
    assert len(entries(cache)) >= 2
    with pytest.raises(Interrupted):
        run_recipe(settings, tmp_path / "parts", workers=workers, should_stop=lambda: True)
    spoil(next(iter(entries(cache).values())))
    run_recipe(settings, tmp_path / "parts", workers=workers)
    kept = entries(cache)
    if not workers:
        no_images(monkeypatch)
    run_recipe(settings, tmp_path / "again", workers=workers)
    assert entries(cache) == kept
    for name in ("first", "parts", "again"):
        for part in ("last/model.safetensors",):
            a, b = (load_file(tmp_path / run / part) for run in ("without", name))
            assert [key for key in a if not torch.equal(a[key], b[key])] == []
        logs = [read_log(tmp_path / run / "metrics.jsonl") for run in ("without", name)]
        assert logs[0] == logs[1]


def test_an_encoder_that_trained_before_gets_entries_of_its_own(recipe, stage, cache, tmp_path):
    """The second stage's entries are of the weights that the first has left, also where the run goes on there."""
    stages = (stage(steps=2), stage(name="two", steps=2, **ALONE))
    settings = recipe(stages=stages)
    run_recipe(recipe(ALONE), tmp_path / "plain", workers=0)
    (plain,) = cache.iterdir()
    run_recipe(settings, tmp_path / "whole", workers=0)
    assert len(list(cache.iterdir())) == 2
    stop = iter([False, False, True, False]).__next__
    with pytest.raises(Interrupted):
        run_recipe(settings, tmp_path / "parts", workers=0, should_stop=stop)
    run_recipe(settings, tmp_path / "parts", workers=0)
    assert len(list(cache.iterdir())) == 2
    assert plain in cache.iterdir()
    same(tmp_path / "whole", tmp_path / "parts")


def test_frozen_adapters_of_the_encoder_drop_nothing(recipe, cache, tmp_path):
    """Their dropout would make other features each time."""
    lora = LoraRecipe(rank=2, dropout=0.5)
    run_recipe(recipe(ALONE, lora=lora), tmp_path / "one", workers=0)
    assert len(entries(cache)) == 3  # of a.png, and of b.png alone and beside another
    shutil.rmtree(cache)
    run_recipe(recipe(ALONE, lora=lora), tmp_path / "two", workers=0)
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()


def test_a_damaged_entry_is_not_taken_and_made_anew(store, cache):
    kept, features = store(), torch.randn(3, *store().shape).to(torch.bfloat16)
    key = kept.key(b"picture", 1, TileConfig(), (1, 2))
    kept.store(key, features)
    assert torch.equal(kept.load(key, 3), features)
    assert kept.load(key, 2) is None  # of another cut
    for damage in (bytes(20), b"x"):
        spoil(entries(cache)[key], damage)
        assert kept.load(key, 3) is None
        assert store().load(key, 3) is None
        kept.store(key, features)
        assert torch.equal(kept.load(key, 3), features)
        assert torch.equal(store().load(key, 3), features)
    for path in cache.rglob("*.shard"):
        path.unlink()
    assert store().load(key, 3) is None


def test_the_limit_counts_entries_of_other_runs_and_is_told_once(store, cache, caplog):
    features = torch.zeros(1, *store().shape, dtype=torch.bfloat16)
    size = features.nbytes
    keys = [f"{number:032x}" for number in range(5)]
    store(precision="bf16").store(keys[0], features)
    limit = 3 * size + 4 * shards.RECORD.size
    one, two = store(limit=limit), store(limit=limit)
    one.store(keys[1], features)
    two.store(keys[2], features)
    for key in keys[3:]:
        one.store(key, features)
    assert len(entries(cache)) == 3
    (message,) = [record.message for record in caplog.records]
    assert "cache_gb" in message
    assert str(cache) in message


def test_a_folder_that_cannot_be_written_costs_speed_alone(store, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("in the way")
    kept = store()
    for _ in range(2):
        kept.store("ab" * 16, torch.zeros(1, *kept.shape))
    assert kept.load("ab" * 16, 1) is None
    assert len(caplog.records) == 1


def test_a_key_tells_images_cuts_and_encoders_apart(store, start, tmp_path):
    path, tiles = tmp_path / "a.png", TileConfig(max_tiles=4)
    image = Image.new("RGB", (8, 8))
    image.save(path)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    def key(source, kept, scale=1, tiles=tiles, grid=(1, 2)):
        return kept.key(source, scale, tiles, grid)

    kept = store()
    keys = [key(source, kept) for source in (str(path), url, path.read_bytes())]
    assert key(path, kept) == keys[0] == key(str(path), store()) == key(str(path), kept, tiles=TileConfig(max_tiles=5))
    keys += [key(str(path), kept, scale=2), key(str(path), kept, grid=(2, 1))]
    keys += [key(str(path), store(**change)) for change in ({"projected": True}, {"precision": "bf16"})]
    os.utime(path, ns=(1, 1))
    keys.append(key(str(path), kept))
    with torch.no_grad():
        start.model.mlp1[1].bias[0] += 1
    assert store().encoder == kept.encoder
    with torch.no_grad():
        start.model.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] += 1
    keys.append(key(str(path), store()))
    assert len({*keys}) == len(keys)
    assert key(image, kept) == key(str(tmp_path / "none.png"), kept) == ""


@pytest.mark.parametrize("changes", [FROZEN, ALONE])
def test_two_processes_with_kept_features_train_as_one(recipe, together, cache, tmp_path, changes):
    """One of them may have images without entries, the other text alone or entries alone."""
    settings = recipe({**changes, "steps": 4, "batch_size": 2, "micro_batch": 1})
    run_recipe(settings, tmp_path / "one", workers=0)
    spoil(next(iter(entries(cache).values())))
    codes, told = together(settings, "two")
    assert codes == [0, 0], told
    for one, two in zip(*(read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert two.pop("stage") == one.pop("stage")
        assert two == pytest.approx(one, rel=1e-4)


def test_a_stage_that_cannot_keep_features_is_refused(stage, recipe):
    with pytest.raises(RecipeError, match="no vision in train, and drop_path 0"):
        stage(cache=True)
    with pytest.raises(RecipeError, match="no vision in train, and drop_path 0"):
        stage(**FROZEN, drop_path=0.1)
    with pytest.raises(RecipeError, match="loss patches reads the encoder alone"):
        stage(**FROZEN, loss={"answers": {}, "patches": {}})
    with pytest.raises(RecipeError, match="parallel: ddp"):
        recipe(FROZEN, parallel="fsdp")
    with pytest.raises(RecipeError, match="cache_gb"):
        recipe(cache_gb=-1)


def test_weights_in_4_bits_tell_encoders_apart(recipe, cache):
    """No state holds them, and encoders may differ in them alone."""
    pytest.importorskip("bitsandbytes")
    keys = set()
    for factor in (1.0, 1.0, 0.5):
        model = open_initial(recipe(lora=LoraRecipe(rank=2))).model
        with torch.no_grad():
            model.vision_model.encoder.layers[0].mlp.fc1.weight[0] *= factor
        quantize_base(model)
        keys.add(FeatureStore(cache, model, projected=False, precision="fp32", limit=0).encoder)
    assert len(keys) == 2
