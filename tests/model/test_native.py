"""The native layout: what is written loads in transformers and gives the recorded logits; reading back is exact."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, InternVLForConditionalGeneration

from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, VLMConfig
from mini_internvl.model.layouts import native
from mini_internvl.model.vlm import InternVL

MODELS = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parents[1] / "golden/data") / "models"
FOLDERS = [path for path in sorted(MODELS.iterdir()) if (path / "expected.json").exists()]
LOGITS = 1e-4  # absolute, float32, unmasked positions
each_model = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def _official(folder):
    return json.loads((folder / "config.json").read_text())


def _image_token(folder):
    return json.loads((folder / "expected.json").read_text())["img_context_token_id"]


def _ours(folder):
    """(config, our state) of an official folder."""
    config = VLMConfig.from_official(_official(folder))
    backbone, state = llms.find(config.llm.architecture), {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key.startswith("language_model."):
            parts = backbone.NAMES.split(key.removeprefix("language_model."), tensor, config.llm)
            state |= {f"language_model.{name}": part for name, part in parts}
        else:
            state[key] = tensor
    return config, state


def _write(folder, target, **changes):
    """Write an official folder natively; ``changes`` go over its official config."""
    raw = _official(folder) | changes
    config, state = _ours(folder)
    target.mkdir(exist_ok=True)
    text = json.dumps(native.from_official_config(raw, _image_token(folder), "float32"))
    (target / "config.json").write_text(text)
    tensors = {key: value.contiguous() for key, value in native.write(state, config)}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return tensors


def _cases(folder):
    tensors = load_file(folder / "expected.safetensors")
    for name in sorted({key.partition(".")[0] for key in tensors if "." in key}):
        yield {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _same(first, second):
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


@each_model
def test_transformers_gives_the_recorded_logits(folder, tmp_path):
    _write(folder, tmp_path)
    model, info = InternVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for case in _cases(folder):
        with torch.no_grad():
            given = {key: case[key] for key in ("input_ids", "pixel_values", "attention_mask")}
            logits = model.eval()(**given).logits
            visual = model.model.get_image_features(case["pixel_values"]).pooler_output
        real = case["attention_mask"].bool()
        torch.testing.assert_close(logits[real], case["logits"][real], atol=LOGITS, rtol=0)
        torch.testing.assert_close(visual, case["visual_tokens"], atol=LOGITS, rtol=0)


@each_model
@pytest.mark.parametrize("length", [100, 600])
def test_long_text_equals_transformers(folder, length, tmp_path):
    """Past the limits, where the rotary settings matter: 128 positions for longrope, 512 for dynamic."""
    _write(folder, tmp_path)
    config, state = _ours(folder)
    with torch.device("meta"):
        ours = InternVL(config)
    ours.load_state_dict(state, assign=True)
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids), theirs(input_ids=ids).logits, atol=LOGITS, rtol=0)


@each_model
@pytest.mark.parametrize("layer", [-2, 1])
def test_an_earlier_encoder_layer_is_the_same_layer(folder, layer, tmp_path):
    _write(folder, tmp_path, select_layer=layer)
    config, state = _ours(folder)
    config = dataclasses.replace(config, select_layer=layer)
    with torch.device("meta"):
        ours = InternVL(config)
    ours.load_state_dict(state, assign=True)
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    pixels = next(_cases(folder))["pixel_values"]
    with torch.no_grad():
        expected = theirs.model.get_image_features(pixels).pooler_output
        torch.testing.assert_close(ours.eval().encode_images(pixels), expected, atol=LOGITS, rtol=0)


@each_model
def test_tensors_survive_both_ways(folder, tmp_path):
    written = _write(folder, tmp_path)
    config, state = _ours(folder)
    assert _same(dict(native.read(written.items(), config)), state)
    back = dict(native.read(reversed(list(written.items())), config))
    assert _same(back, state)
    joined = dict(llms.find(config.llm.architecture).NAMES.join(_language(back), config.llm))
    official = load_file(folder / "model.safetensors")
    assert _same(joined, _language(official))


def _language(state):
    return {key.removeprefix("language_model."): value for key, value in state.items() if key.startswith("language_")}


@each_model
def test_both_spellings_are_read(folder, tmp_path):
    """On disk transformers writes the older names, in memory it has the newer ones."""
    _write(folder, tmp_path)
    config, state = _ours(folder)
    model = InternVLForConditionalGeneration.from_pretrained(tmp_path)
    in_memory = model.state_dict()
    assert {"lm_head.weight", "model.language_model.norm.weight"} <= in_memory.keys()
    assert _same(dict(native.read(in_memory.items(), config)), state)
    model.save_pretrained(tmp_path / "again")
    on_disk = load_file(tmp_path / "again/model.safetensors")
    assert on_disk.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert _same(dict(native.read(on_disk.items(), config)), state)


@each_model
def test_the_config_survives_transformers(folder, tmp_path):
    """Written, loaded and saved by transformers (which spells the rotary settings anew), read: the same config."""
    raw = _official(folder) | {"system_message": "Be brief.", "max_dynamic_patch": 7}
    _write(folder, tmp_path, system_message="Be brief.", max_dynamic_patch=7)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    expected = dataclasses.replace(VLMConfig.from_official(raw), image_token_id=_image_token(folder), official={})
    for place in (tmp_path, tmp_path / "again"):
        text = json.loads((place / "config.json").read_text())
        assert native.matches(text)
        assert not native.matches(raw)
        official = native.to_official_config(text)
        assert dataclasses.replace(VLMConfig.from_official(official), official={}) == expected
        assert {key: official[key] for key in raw if key not in ("llm_config", "vision_config")} == {
            key: value for key, value in raw.items() if key not in ("llm_config", "vision_config")
        }
        parts = ("vision_config", "llm_config") if place is tmp_path else ()
        assert all({**official[part], **raw[part]} == official[part] for part in parts)


@each_model
def test_the_config_is_read_without_our_key(folder):
    raw = native.from_official_config(_official(folder), 319, "bfloat16")
    del raw[native.EXTRA]
    again = VLMConfig.from_official(native.to_official_config(raw))
    expected = VLMConfig.from_official(_official(folder))
    assert (again.vision, again.llm) == (expected.vision, expected.llm)
    assert (again.template, again.max_tiles, again.use_thumbnail) == (expected.template, 12, True)
    assert (again.image_token_id, again.ps_version) == (319, "v2")


@each_model
def test_a_changed_native_field_wins(folder):
    raw = native.from_official_config(_official(folder), 319, "float32")
    raw["text_config"] |= {"vocab_size": 333, "rope_theta": 77.0}
    raw["vision_config"]["layer_scale_init_value"] = 0.5
    raw["image_token_id"] = 5
    config = VLMConfig.from_official(native.to_official_config(raw))
    assert (config.llm.vocab_size, config.llm.rope.theta) == (333, 77.0)
    assert (config.vision.layer_scale, config.image_token_id) == (0.5, 5)


def test_the_template_follows_the_text_model():
    raw = native.from_official_config(_official(MODELS / "qwen2"), 319, "float32")
    del raw[native.EXTRA]
    assert native.to_official_config(raw)["template"] == "Hermes-2"
    assert native.to_official_config(raw | {"image_token_id": 151667})["template"] == "internvl2_5"


@each_model
def test_tied_embeddings_are_read(folder, tmp_path):
    tensors = _write(folder, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    head = tensors.pop("language_model.lm_head.weight")
    untied = VLMConfig.from_official(native.to_official_config(raw))
    assert "language_model.lm_head.weight" not in dict(native.read(tensors.items(), untied))
    raw["tie_word_embeddings"] = True
    tied = VLMConfig.from_official(native.to_official_config(raw))
    read = dict(native.read(tensors.items(), tied))
    assert torch.equal(read["language_model.lm_head.weight"], read["language_model.embed_tokens.weight"])
    tensors["language_model.lm_head.weight"] = head
    assert torch.equal(dict(native.read(tensors.items(), tied))["language_model.lm_head.weight"], head)
    again = native.from_official_config(tied.official, 319, "float32")
    assert again["tie_word_embeddings"] is False
    assert native.TIED not in again[native.EXTRA]


@each_model
def test_what_is_left_over_keeps_its_name(folder, tmp_path):
    tensors = _write(folder, tmp_path)
    config, state = _ours(folder)
    lost = "vision_tower.encoder.layer.0.attention.k_proj.weight"
    tensors.pop(lost)
    tensors["extra.weight"] = torch.zeros(1)
    read = dict(native.read(tensors.items(), config))
    assert state.keys() - read.keys() == {"vision_model.encoder.layers.0.attn.qkv.weight"}
    assert read.keys() - state.keys() == {"extra.weight", lost.replace("k_proj", "q_proj"), lost.replace("k_", "v_")}


def _refused(folder, words, **changes):
    raw = _official(MODELS / folder)
    for key, value in changes.items():
        place, _, name = key.rpartition("__")
        (raw[place] if place else raw)[name] = value
    with pytest.raises(ConfigError, match=words):
        native.from_official_config(raw, 319, "float32")


def test_what_native_cannot_express_is_refused():
    _refused("qwen2", "ps_version", ps_version="v1")
    _refused("qwen2", "whole number", downsample_ratio=0.75, force_image_size=56)
    _refused("phi3", "longrope only", llm_config__rope_scaling={"type": "dynamic", "factor": 2.0})
    _refused("qwen2", "layer_norm_eps", vision_config__qk_normalization=True, vision_config__layer_norm_eps=1e-5)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("", "vision_feature_select_strategy", "full"),
        ("", "vision_feature_layer", [-1, -2]),
        ("", "projector_hidden_act", "relu"),
        ("vision_config", "use_mean_pooling", False),
        ("vision_config", "image_size", [56, 28]),
        ("text_config", "model_type", "qwen3_moe"),
        ("text_config", "attention_bias", True),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
    ],
)
def test_a_foreign_native_config_is_refused(place, name, value):
    raw = native.from_official_config(_official(MODELS / "qwen2"), 319, "float32")
    (raw[place] if place else raw)[name] = value
    with pytest.raises(ConfigError):
        native.to_official_config(raw)


def test_longrope_factors_that_differ_are_refused():
    raw = native.from_official_config(_official(MODELS / "phi3"), 319, "float32")
    raw["text_config"]["rope_scaling"] |= {"attention_factor": 3.0}
    with pytest.raises(ConfigError, match="attention_factor"):
        native.to_official_config(raw)
