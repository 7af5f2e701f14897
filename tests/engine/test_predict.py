"""What heads say: as the hidden state of each prompt alone has it, from saved files of every kind, or a clear error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mini_internvl
from mini_internvl.commands.convert import convert
from mini_internvl.commands.doctor import diagnose
from mini_internvl.commands.merge import merge
from mini_internvl.engine import engine as engines
from mini_internvl.engine import predict as predicting
from mini_internvl.model.adapter import save_adapter, tensors_hash
from mini_internvl.model.checkpoint import CheckpointError, load_model
from mini_internvl.model.heads import HeadConfig, Heads, HeadsConfig, load_heads, stored_files
from mini_internvl.model.lora import adapter_parameters, add_lora
from mini_internvl.recipes import LoraRecipe

CONFIG = HeadsConfig(
    heads={
        "speed": HeadConfig(kind="regression", mean=(9.5,), std=(0.3,)),
        "path": HeadConfig(kind="regression", size=2, mean=(0.0, 1.0), std=(2.0, 4.0)),
        "type": HeadConfig(kind="classification", classes=("car", "bus", "truck")),
    },
    layers=1,
    at="last",
)


def make(**changes):
    torch.manual_seed(3)
    heads = Heads(replace(CONFIG, **changes), hidden_size=48)
    for parameter in heads.parameters():
        parameter.data.normal_()
    return heads


def question(number, text):
    image = Image.effect_noise((56 + 40 * number, 56), 90).convert("RGB")
    return engines.user(text, image)


QUESTIONS = [question(0, "What?"), question(3, "What does the car do? Why does the car turn?"), question(1, "Why?")]


@pytest.fixture
def folder(checkpoint, tmp_path):
    """The tiny checkpoint with heads beside it."""

    def build(**changes):
        path = shutil.copytree(checkpoint, tmp_path / "with heads")
        for name, content in make(**changes).files().items():
            (path / name).write_bytes(content)
        return path

    return build


@pytest.mark.parametrize(("at", "layers"), [("last", 1), ("last", 2), ("visual", 1)])
def test_a_batch_predicts_what_each_prompt_alone_says(folder, at, layers, monkeypatch):
    engine = mini_internvl.load(folder(at=at, layers=layers))
    model, heads, ran = engine.model, make(at=at, layers=layers), []
    expected = []
    for messages in QUESTIONS:
        prompt = engine.prepare(messages)
        ids = torch.tensor([prompt.input_ids])
        [hidden] = model.states(ids, [layers], visual_tokens=model.encode_images(prompt.pixel_values))
        seen = ids[0] == model.image_token_id
        state = hidden[0, -1:] if at == "last" else hidden[0, seen].mean(0, keepdim=True)
        with torch.no_grad():
            speed = heads.output("speed", state) * 0.3 + 9.5
            path = heads.output("path", state) * torch.tensor([2.0, 4.0]) + torch.tensor([0.0, 1.0])
            kind = CONFIG.heads["type"].classes[int(heads.output("type", state).argmax())]
        expected.append({"speed": speed.item(), "path": path[0].tolist(), "type": kind})
    model.language_model.layers[1].register_forward_hook(lambda *_: ran.append(1))
    for limit in (4096, 1):  # together, and one by one
        monkeypatch.setattr(predicting, "TOKENS_TOGETHER", limit)
        for found, wanted in zip(engine.predict_batch(QUESTIONS), expected, strict=True):
            assert found["speed"] == pytest.approx(wanted["speed"], abs=1e-4)
            assert found["path"] == pytest.approx(wanted["path"], abs=1e-4)
            assert found["type"] == wanted["type"]
    assert bool(ran) == (layers == 2)
    assert engine.predict(QUESTIONS[0]) == engine.predict_batch(QUESTIONS[:1])[0]
    assert engine.predict_batch([]) == []


def test_saved_is_loaded(folder, tmp_path):
    heads, path = make(), folder()
    again = load_heads(path, hidden_size=48, layers=2)
    assert again.config == replace(CONFIG, heads={**CONFIG.heads, "speed": replace(CONFIG.heads["speed"], std=(
        torch.tensor(0.3).item(),))})  # fmt: skip
    assert again.files() == heads.files() == stored_files(path)
    state = torch.randn(5, 48)
    with torch.no_grad():
        assert again.values(state) == heads.values(state)


def test_heads_go_along_with_merge_and_convert(folder, checkpoint, tmp_path):
    path = folder()
    for layout in ("native", "mini"):
        convert(path, tmp_path / layout, layout)
        found = mini_internvl.load(tmp_path / layout).predict_batch(QUESTIONS)
        assert found == mini_internvl.load(path).predict_batch(QUESTIONS)
    model = load_model(checkpoint)
    add_lora(model, LoraRecipe(rank=2, dropout=0.0), 0)
    for parameter in adapter_parameters(model):
        parameter.data.normal_(0, 0.1)
    adapter = save_adapter(
        model, tmp_path / "adapter", base=str(checkpoint), base_hash=tensors_hash(checkpoint), beside=make().files()
    )
    merge(adapter, tmp_path / "merged")
    unmerged, merged, base = (
        mini_internvl.load(one, dtype="float32").predict(QUESTIONS[1]) for one in (adapter, tmp_path / "merged", path)
    )
    assert merged["path"] == pytest.approx(unmerged["path"], abs=1e-3)
    assert unmerged["path"] != pytest.approx(base["path"], abs=1e-2)


def test_a_model_without_heads_says_so(checkpoint):
    with pytest.raises(ValueError, match="this model has no heads, so it can predict nothing but text; train some"):
        mini_internvl.load(checkpoint).predict(QUESTIONS[0])


def test_heads_on_visual_tokens_want_an_image(folder):
    engine = mini_internvl.load(folder(at="visual"))
    with pytest.raises(ValueError, match="the heads of this model read its visual tokens; give every conversation an"):
        engine.predict_batch([QUESTIONS[0], engines.user("What?")])


def damage(path, change):
    raw = json.loads((path / "heads.json").read_text())
    change(raw)
    (path / "heads.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("layers"), r"heads.json is damaged \(KeyError: 'layers'\); save the heads again"),
        (lambda raw: raw.update(layers=3), "heads.json: layers is 3, but the decoder has 2 blocks"),
        (lambda raw: raw.update(at="end"), "heads.json is damaged"),
        (lambda raw: raw["heads"]["path"].update(size=3), "heads.json is damaged"),
        (lambda raw: raw["heads"]["type"]["classes"].pop(), "does not fit heads.json and the model: type.bias"),
        (
            lambda raw: raw["heads"].pop("speed"),
            "does not fit heads.json and the model: speed.bias, speed.weight; copy",
        ),
    ],
)
def test_damaged_heads_are_named(folder, change, message):
    path = folder()
    damage(path, change)
    with pytest.raises(CheckpointError, match=message):
        mini_internvl.load(path)
    [error] = [finding for finding in diagnose(path).findings if finding.severity == "error"]
    assert error.file in ("heads.json", "heads.safetensors")


def test_files_that_are_missing_or_cut_off_are_named(folder):
    path = folder()
    assert diagnose(path).facts["heads"] == "speed, path, type, after the first 1 blocks"
    assert not [finding for finding in diagnose(path).findings if "heads" in finding.file + finding.what]
    weights = path / "heads.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"heads.safetensors is damaged"):
        mini_internvl.load(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"heads.safetensors is missing"):
        mini_internvl.load(path)
