"""Adapter folders: read by peft on the native model with equal logits, read back exactly, and peft's own read by us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_internvl.model import adapter_config
from mini_internvl.model.adapter import (
    HASH,
    find_base,
    is_adapter,
    load_adapted,
    load_adapter,
    read_adapter,
    save_adapter,
    tensors_hash,
)
from mini_internvl.model.checkpoint import CheckpointError, load_model, save_model
from mini_internvl.model.lora import LoraConfig, adapter_parameters, add_lora, lora_layers, lora_state, merge_lora
from mini_internvl.recipes import LoraTargets

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MODELS = Path(__file__).parents[1] / "golden/data/models"
BACKBONES = ("internlm2", "phi3", "qwen2")


@pytest.fixture(params=BACKBONES)
def folder(request):
    return MODELS / request.param


@pytest.fixture
def native(tmp_path_factory):
    """``native(model)``: the Hugging Face model with a plain model's weights."""
    from transformers import InternVLForConditionalGeneration

    def make(model):
        place = save_model(model, tmp_path_factory.mktemp("native") / "model", layout="native")
        return InternVLForConditionalGeneration.from_pretrained(place).eval()

    return make


@pytest.fixture
def inputs():
    def make(model, rows=2):
        config = model.config
        generator = torch.Generator().manual_seed(3)
        pixels = torch.randn(rows, 3, config.image_size, config.image_size, generator=generator)
        places = torch.full((rows, config.tokens_per_tile), model.image_token_id)
        low = min(200, model.image_token_id)
        words = torch.randint(5, low, (rows, 14), generator=generator)
        return torch.cat([words[:, :4], places, words[:, 4:]], dim=1), pixels

    return make


def learn(model, ids, pixels, steps=3):
    """A few steps on the adapters."""
    for parameter in adapter_parameters(model):
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    torch.manual_seed(0)
    for _ in range(steps):
        logits = model(ids, pixels)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits_of(model, ids, pixels):
    with torch.no_grad():
        out = model(ids, pixels) if hasattr(model, "image_token_id") else model(input_ids=ids, pixel_values=pixels)
    return out if isinstance(out, torch.Tensor) else out.logits


CONFIGS = {
    "all": LoraConfig(rank=3, dropout=0.1),
    "llm": LoraConfig(rank=4, alpha=5, parts=("llm",)),
    "vision": LoraConfig(rank=2, parts=("vision",), targets=LoraTargets(vision=("attn.qkv", "mlp.fc2"))),
    "some": LoraConfig(rank=2, parts=("llm",), targets=LoraTargets(llm=("q_proj", "v_proj", "up_proj", "o_proj"))),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_peft_reads_our_adapter_on_the_native_model(folder, config, inputs, native, tmp_path):
    from peft import PeftModel

    model = load_model(folder)
    ids, pixels = inputs(model)
    twin = native(model)
    plain = logits_of(model, ids, pixels)
    torch.testing.assert_close(logits_of(twin, ids, pixels), plain, rtol=0, atol=1e-4)
    learn(add_lora(model, config, seed=1), ids, pixels)
    ours = logits_of(model, ids, pixels)
    assert (ours - plain).abs().max() > 0.01
    save_adapter(model, tmp_path / "adapter", base=str(folder), base_hash=tensors_hash(folder))
    theirs = PeftModel.from_pretrained(twin, tmp_path / "adapter").eval()
    loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {name.replace(".default", "") for name in loaded} == saved.keys()
    torch.testing.assert_close(logits_of(theirs, ids, pixels), ours, rtol=0, atol=1e-4)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, ids, pixels), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("trained", [True, False])
def test_saved_and_loaded_are_the_same_layers_and_numbers(folder, config, trained, inputs, tmp_path):
    model = load_model(folder)
    ids, pixels = inputs(model)
    add_lora(model, config, seed=1)
    if trained:
        learn(model, ids, pixels)
    save_adapter(model, tmp_path / "adapter", base=str(folder), base_hash="")
    again = load_model(folder)
    info = load_adapter(again, tmp_path / "adapter")
    assert (info.rank, info.dropout, info.projector) == (config.rank, config.dropout, False)
    first, second = lora_state(model), lora_state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    scales = {name: layer.scale for name, layer in lora_layers(model).items()}
    assert {name: layer.scale for name, layer in lora_layers(again).items()} == pytest.approx(scales)
    torch.testing.assert_close(logits_of(again, ids, pixels), logits_of(model, ids, pixels), rtol=0, atol=1e-6)


def peft_adapter(twin, path, ids, pixels, **settings):
    """Trained by peft on the native model; every A and B is its own."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(4)
    wrapped = get_peft_model(twin, PeftConfig(**settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
            elif parameter.requires_grad and ("modules_to_save" in name or name.endswith("bias")):
                parameter.add_(0.05 * torch.randn(parameter.shape))
    wrapped.save_pretrained(path)
    return logits_of(wrapped.eval(), ids, pixels)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
        {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": r".*vision_tower.*(q_proj|v_proj|fc1)"},
        {"r": 2, "target_modules": r".*(o_proj|k_proj|qkv_proj)", "modules_to_save": ["multi_modal_projector"]},
        {
            "r": 2,
            "target_modules": r".*(q_proj|k_proj|down_proj)",
            "rank_pattern": {"attention.k_proj": 5},
            "alpha_pattern": {"attention.k_proj": 3, r"layers.1.mlp.down_proj": 32},
        },
    ],
    ids=["all", "rslora", "projector", "patterns"],
)
def test_adapters_that_peft_wrote_are_read(folder, settings, inputs, native, tmp_path):
    """Read, merged, and written back for peft again."""
    from peft import PeftModel

    model = load_model(folder)
    ids, pixels = inputs(model)
    theirs = peft_adapter(native(model), tmp_path / "theirs", ids, pixels, **settings)
    info = load_adapter(model, tmp_path / "theirs", base_hash="unknown to peft")
    assert info.base_hash is None
    torch.testing.assert_close(logits_of(model, ids, pixels), theirs, rtol=0, atol=1e-4)
    save_adapter(model, tmp_path / "ours", base="", base_hash="", full=info.full)
    again = PeftModel.from_pretrained(native(load_model(folder)), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again.eval(), ids, pixels), theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(merge_lora(model), ids, pixels), theirs, rtol=0, atol=1e-4)


def test_the_encoders_fused_layer_shares_its_a(inputs, tmp_path):
    model = add_lora(load_model(MODELS / "qwen2"), LoraConfig(rank=2, parts=("vision",)), seed=0)
    save_adapter(model, tmp_path, base="b", base_hash="h")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    home = "base_model.model.model.vision_tower.encoder.layer.0.attention."
    q, k, v = (saved[f"{home}{part}_proj.lora_A.weight"] for part in "qkv")
    assert torch.equal(q, k)
    assert torch.equal(q, v)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] == {}


def test_fused_native_layers_take_blocks(tmp_path):
    model = add_lora(load_model(MODELS / "phi3"), LoraConfig(rank=2, parts=("llm",)), seed=0)
    save_adapter(model, tmp_path, base="b", base_hash="h")
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert raw["rank_pattern"] == {"self_attn.qkv_proj": 6, "mlp.gate_up_proj": 4}
    assert raw["alpha_pattern"] == {"self_attn.qkv_proj": 12, "mlp.gate_up_proj": 8}
    assert raw["target_modules"] == ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]
    assert raw["auto_mapping"][HASH] == "h"


def test_the_hash_is_of_the_tensors_not_of_the_files(folder, tmp_path):
    model = load_model(folder)
    known = tensors_hash(save_model(model, tmp_path / "one"))
    state = load_file(tmp_path / "one/model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(state, key=lambda name: name[::-1])
    parts = {"b.safetensors": names[::2], "a.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, shards / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(tmp_path / "one/config.json", shards / "config.json")
    assert tensors_hash(shards) == known == tensors_hash(folder)
    for layout in ("mini", "native"):
        assert tensors_hash(save_model(model, tmp_path / layout, layout=layout)) == known, layout
    state[names[0]] = state[names[0]].clone()
    state[names[0]].view(-1)[0] += 1
    save_file(state, tmp_path / "one/model.safetensors")
    assert tensors_hash(tmp_path / "one") != known
    assert tensors_hash(save_model(model, tmp_path / "half", dtype="bfloat16")) != known


def test_another_base_is_refused_unless_allowed(tmp_path):
    base, other = save_model(load_model(MODELS / "qwen2"), tmp_path / "base"), tmp_path / "other"
    changed = load_model(base)
    with torch.no_grad():
        changed.mlp1[1].bias.add_(0.1)
    save_model(changed, other)
    model = add_lora(load_model(base), LoraConfig(rank=2))
    adapter = save_adapter(model, tmp_path / "run/adapter", base="../../base", base_hash=tensors_hash(base))
    assert is_adapter(adapter)
    assert not is_adapter(base)
    assert find_base(adapter) == str(base)
    assert lora_layers(load_adapted(adapter)).keys() == lora_layers(model).keys()
    with pytest.raises(CheckpointError) as refused:
        load_adapted(adapter, base=other)
    assert tensors_hash(base) in str(refused.value)
    assert tensors_hash(other) in str(refused.value)
    assert lora_layers(load_adapted(adapter, base=other, allow_other_base=True))
    base.rename(tmp_path / "moved")
    assert find_base(adapter) == "../../base"
    with pytest.raises(CheckpointError, match=r"base of .*adapter, is not a folder"):
        load_adapted(adapter)


def test_nothing_of_an_adapter_is_left_out(tmp_path):
    """What cannot be placed is named and refused."""
    model = add_lora(load_model(MODELS / "qwen2"), LoraConfig(rank=2))
    folder = save_adapter(model, tmp_path / "adapter", base="b", base_hash="h")
    good, raw = load_file(folder / "adapter_model.safetensors"), (folder / "adapter_config.json").read_text()
    home = "base_model.model.model."
    a = f"{home}language_model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(match, tensors=None, **fields):
        save_file(
            {key: value.clone() for key, value in (tensors or good).items()}, folder / "adapter_model.safetensors"
        )
        (folder / "adapter_config.json").write_text(json.dumps(json.loads(raw) | fields))
        fresh = load_model(MODELS / "qwen2")
        with pytest.raises(CheckpointError, match=match):
            load_adapter(fresh, folder)
        assert not lora_layers(fresh)

    seventh = _pair(good, a, f"{home}language_model.layers.7.self_attn.q_proj")
    refused("has no layer model.language_model.layers.7", good | seventh)
    refused(
        "not readable as LoRA: .*lora_magnitude_vector", good | {a.replace("lora_A", "lora_magnitude_vector"): good[a]}
    )
    refused("not readable as LoRA: .*q_proj", {key: value for key, value in good.items() if key != a})
    refused("q_proj adapts a layer of shape", good | {a: good[a][:, :-1].contiguous()})
    refused("layer_norm.weight has shape", good | {f"{home}multi_modal_projector.layer_norm.weight": good[a]})
    refused("lacks multi_modal_projector, which modules_to_save names", modules_to_save=["multi_modal_projector"])
    refused("use_dora is set", use_dora=True)
    refused("peft_type is 'LOHA'", peft_type="LOHA")
    refused("r is 'many'; it must be a whole number", r="many")
    for start in ("pissa", "pissa_niter_4", "olora", "loftq", "corda"):
        refused(f"init_lora_weights is '{start}', which changed the base", init_lora_weights=start)
    refused("holds NaN or infinity", good | {a: torch.full_like(good[a], torch.nan)})
    refused("is of type I32; save the weights as real numbers", good | {a: good[a].int()})
    refused("target_modules|does not mean", target_modules=["self_attn.k_proj"])
    refused("does not mean .*layers.0", layers_to_transform=[1])
    refused("has rank 2, adapter_config.json says 7", rank_pattern={"mlp.down_proj": 7})
    refused("alpha_pattern.x is a list", alpha_pattern={"x": []})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(raw)
    with pytest.raises(CheckpointError, match="pickle"):
        load_adapter(load_model(MODELS / "qwen2"), folder)
    with pytest.raises(CheckpointError, match=r"adapter_config.json is missing"):
        read_adapter(tmp_path)


def test_a_pattern_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_config, "SECONDS", 1.0)
    model = add_lora(load_model(MODELS / "qwen2"), LoraConfig(rank=2))
    folder = save_adapter(model, tmp_path / "adapter", base="b", base_hash="h")
    raw = json.loads((folder / "adapter_config.json").read_text())
    for pattern, match in ((r"(\w+\.?)*!", "take more than 1 s to match"), ("(q_proj", "is no regular expression")):
        (folder / "adapter_config.json").write_text(json.dumps(raw | {"alpha_pattern": {pattern: 4}}))
        with pytest.raises(CheckpointError, match=match):
            load_adapter(load_model(MODELS / "qwen2"), folder)


def test_what_changes_nothing_is_told(tmp_path, caplog):
    model = add_lora(load_model(MODELS / "qwen2"), LoraConfig(rank=2))
    folder = save_adapter(model, tmp_path / "adapter", base="b", base_hash="h")
    raw = json.loads((folder / "adapter_config.json").read_text())
    load_adapter(load_model(MODELS / "qwen2"), folder)
    assert not caplog.text
    changed = raw | {"alpha_pattern": {"q_porj": 64}, "rank_pattern": {r"layers\.9": 3}, "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(changed | {"a_field_of_tomorrow": 3}))
    load_adapter(load_model(MODELS / "qwen2"), folder)
    for told in (
        'alpha_pattern of adapter_config.json names "q_porj"',
        r'names "layers\.9"',
        "fan_in",
        "a_field_of_to",
    ):
        assert told in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "fc1"]},
        {"modules_to_save": ["embed_tokens", "multi_modal_projector"], "target_modules": ["down_proj"]},
        {"bias": "lora_only", "target_modules": ["q_proj", "fc2"]},
        {"target_modules": ["down_proj", "o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {
            "target_modules": r"model\.language_model\.layers\.\d+\.mlp\.(down|up)_proj",
            "exclude_modules": r".*0\.m.*",
        },
        {"target_modules": ["down_proj", "fc1"], "fan_in_fan_out": True, "init_lora_weights": "gaussian"},
    ],
    ids=["lm_head", "embeddings", "bias", "blocks", "regex", "inert"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")
def test_every_field_that_changes_the_product_is_read_as_peft_does(settings, inputs, native, tmp_path):
    """Read, merged, and written back for peft again."""
    from peft import PeftModel

    model = load_model(MODELS / "qwen2")
    ids, pixels = inputs(model)
    theirs = peft_adapter(native(model), tmp_path / "theirs", ids, pixels, r=2, **settings)
    assert (theirs - logits_of(model, ids, pixels)).abs().max() > 0.01
    info = load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(logits_of(model, ids, pixels), theirs, rtol=0, atol=1e-4)
    if "bias" not in settings:
        save_adapter(model, tmp_path / "ours", base="", base_hash="", full=info.full)
        again = PeftModel.from_pretrained(native(load_model(MODELS / "qwen2")), tmp_path / "ours")
        torch.testing.assert_close(logits_of(again.eval(), ids, pixels), theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(merge_lora(model), ids, pixels), theirs, rtol=0, atol=1e-4)


def _pair(good, a, module):
    return {
        f"{module}.lora_A.weight": good[a].clone(),
        f"{module}.lora_B.weight": good[a.replace("lora_A", "lora_B")].clone(),
    }


def test_a_plain_model_has_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(load_model(MODELS / "qwen2"), tmp_path / "x", base="", base_hash="")
    assert not (tmp_path / "x").exists()


def test_names_of_the_older_native_layout_are_read(inputs, tmp_path):
    model = load_model(MODELS / "qwen2")
    ids, pixels = inputs(model)
    learn(add_lora(model, LoraConfig(rank=2)), ids, pixels)
    folder = save_adapter(model, tmp_path / "adapter", base="b", base_hash="h")
    tensors = load_file(folder / "adapter_model.safetensors")
    older = {
        key.replace("model.model.language_model.", "model.language_model.model.").replace(
            "model.model.vision_tower.", "model.vision_tower."
        ): value
        for key, value in tensors.items()
    }
    assert older.keys().isdisjoint(tensors)
    save_file(older, folder / "adapter_model.safetensors")
    again = load_model(MODELS / "qwen2")
    load_adapter(again, folder)
    assert torch.equal(logits_of(again, ids, pixels), logits_of(model, ids, pixels))


def test_the_configs_name_every_backbones_linear_layers(folder):
    model = load_model(folder)
    names = set(lora_layers(add_lora(model, LoraConfig(rank=1))))
    linear = {name for name, module in load_model(folder).named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear - names == {"mlp1.1", "mlp1.3", "language_model.lm_head"}


def test_adapters_train_in_float32_on_a_base_in_bfloat16(inputs, tmp_path):
    """Half the memory of a frozen base; the adapter keeps small steps, and merges as on a base in float32."""
    model = load_model(MODELS / "qwen2", dtype="bfloat16")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    ids, pixels = inputs(model)
    add_lora(model, LoraConfig(rank=4), seed=1)
    losses = []
    parameters = list(adapter_parameters(model))
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for _ in range(12):
        logits = model(ids, pixels).float()
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(model.state_dict()[name], value) for name, value in base.items())
    folder = save_adapter(model, tmp_path / "adapter", base="", base_hash="")
    whole = load_model(MODELS / "qwen2")
    load_adapter(whole, folder)
    assert all(torch.equal(value, lora_state(model)[name]) for name, value in lora_state(whole).items())
    half, full = merge_lora(model).state_dict(), merge_lora(whole).state_dict()
    for name, value in half.items():
        torch.testing.assert_close(value.float(), full[name], rtol=2**-7, atol=2e-3)  # the base itself was rounded
