"""``minivl merge``: proof before writing, the merged folder answers as the adapter did, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from mini_internvl.commands import merge as command
from mini_internvl.engine import load
from mini_internvl.files import FileError
from mini_internvl.model.adapter import load_adapted, load_adapter, save_adapter, tensors_hash
from mini_internvl.model.checkpoint import CheckpointError, load_model, save_model
from mini_internvl.model.lora import LoraConfig, adapter_parameters, add_lora, lora_layers


@pytest.fixture
def base(checkpoint, tmp_path):
    """The tiny checkpoint under a folder of its own, in float32."""
    files = [path for path in checkpoint.iterdir() if "safetensors" not in path.name and path.name != "config.json"]
    return save_model(load_model(checkpoint), tmp_path / "base", dtype="float32", extra_files=files)


@pytest.fixture
def adapter(base, tmp_path):
    model = add_lora(load_model(base), LoraConfig(rank=2), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.normal_(0, 0.1, generator=generator)
    return save_adapter(model, tmp_path / "adapter", base="../base", base_hash=tensors_hash(base))


def outputs(model):
    ids = torch.arange(5, 25)[None] % model.image_token_id
    ids[:, 3 : 3 + model.config.tokens_per_tile] = model.image_token_id
    size = model.config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids, pixels)


def test_merged_is_proved_and_saved(adapter, base, tmp_path, capsys):
    command.command(str(adapter), tmp_path / "merged", base=None, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] <= told["tolerance"] == 1e-4
    assert told["changed"] > 0.01
    assert told["argmax"] == told["saved_argmax"] == 1.0
    assert told["layers"] == {"vision": 8, "projector": 0, "llm": 14}
    assert told["dtype"] == "float32"
    assert told["saved_difference"] == told["difference"]
    merged = load_model(tmp_path / "merged")
    torch.testing.assert_close(outputs(merged), outputs(load_adapted(adapter)), rtol=0, atol=1e-4)
    assert {path.name for path in base.iterdir()} == {path.name for path in (tmp_path / "merged").iterdir()}
    question = [{"role": "user", "content": "Hi"}]
    wanted = load(adapter, device="cpu").chat(question).text
    assert load(tmp_path / "merged", device="cpu").chat(question).text == wanted


def test_the_table_for_people(adapter, tmp_path, capsys):
    command.command(str(adapter), tmp_path / "merged", base=None, json=False)
    shown = capsys.readouterr().out
    for words in ("8 vision, 14 llm layers merged", "merged, float32", "100.00%", "merged: "):
        assert words in shown


def test_the_type_and_layout_of_the_base_are_kept(adapter, base, tmp_path):
    model = load_model(base)
    files = [path for path in base.iterdir() if "safetensors" not in path.name and path.name != "config.json"]
    half = save_model(model, tmp_path / "half", dtype="bfloat16", layout="native", extra_files=files)
    raw = json.loads((adapter / "adapter_config.json").read_text())
    raw["auto_mapping"] = None  # as written by peft, which knows no hash
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    done = command.merge(adapter, tmp_path / "merged", base=str(half))
    assert done["dtype"] == "bfloat16"
    assert done["difference"] <= 1e-4 < done["saved_difference"] < 0.1
    assert json.loads((tmp_path / "merged/config.json").read_text())["model_type"] == "internvl"
    assert load_model(tmp_path / "merged").dtype == torch.float32


def test_a_merge_that_changes_logits_is_refused(adapter, tmp_path, monkeypatch):
    def wrong(model):
        model = merge_lora(model)
        with torch.no_grad():
            model.mlp1[3].bias.add_(0.5)
        return model

    merge_lora = command.merge_lora
    monkeypatch.setattr(command, "merge_lora", wrong)
    with pytest.raises(CheckpointError, match=r"changes the logits by .* nothing was written"):
        command.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_and_bad_places_are_refused(adapter, base, tmp_path):
    changed = load_model(base)
    with torch.no_grad():
        changed.language_model.norm.weight.add_(0.1)
    other = save_model(changed, tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained on weights with sha256"):
        command.merge(adapter, tmp_path / "merged", base=str(other))
    for place, match in (
        (base, "exists already"),
        (adapter, "exists already"),
        (tmp_path, "exists already"),
    ):
        with pytest.raises(FileError, match=match):
            command.merge(adapter, place)
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"the base that .* names is not here: .*give it with --base"):
        command.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(CheckpointError, match=r"adapter_config.json is missing"):
        command.merge(other, tmp_path / "merged", base=str(other))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(CheckpointError, match=r"adapter_config.json: init_lora_weights is 'pissa'") as caught:
        command.merge(adapter, tmp_path / "merged")
    assert "is not here" not in str(caught.value)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match=r"names no base model; give its folder, to merge with --base"):
        command.merge(adapter, tmp_path / "merged")


def test_merging_is_proved_against_the_files_not_against_our_own_loading(adapter, tmp_path, monkeypatch):
    """Logits before and after agree whatever was loaded; only an independent sum shows a wrong product."""

    def twice(model, folder):
        info = load_adapter(model, folder)
        for layer in lora_layers(model).values():
            layer.scale *= 2
        return info

    monkeypatch.setattr(command, "load_adapter", twice)
    with pytest.raises(CheckpointError, match=r"gives other weights than its files say: .* nothing was written"):
        command.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
