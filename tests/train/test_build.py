"""A starting point from parts: ids, rows, means and projector as in the original, for the three language models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_internvl.commands import build as command
from mini_internvl.commands.doctor import diagnose
from mini_internvl.engine import GenerationConfig, load
from mini_internvl.inputs.chat import FAMILY_TOKENS
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import llms
from mini_internvl.model.checkpoint import load_model, load_vision, save_model
from mini_internvl.model.config import VisionConfig
from mini_internvl.model.decoder import Decoder
from mini_internvl.model.vision import InternViT
from mini_internvl.recipes import StudentRecipe
from mini_internvl.train.build import join_parts
from mini_internvl.train.student import open_student

TOKENIZERS = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
VISION = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
    "layer_norm_eps": 1e-6,
    "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
}
SHAPE = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TERMS = {"max_position_embeddings": 2048, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
LLMS: dict[str, dict[str, Any]] = {
    "qwen2": {**TERMS, "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "tie_word_embeddings": True},
    "internlm2": {**TERMS, "architectures": ["InternLM2ForCausalLM"], "vocab_size": 92544, "num_key_value_heads": 1},
    "phi3": {**TERMS, "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064},
}
FACTS = {
    "qwen2": (151646, 151655, [151644, 151645]),
    "internlm2": (92544, 92553, [92542, 92543]),
    "phi3": (32011, 32020, [2, 32000, 32007]),
}
"""First id of the nine, size, stop tokens of the released checkpoints."""


def base_tokenizer(source: Path, folder: Path) -> None:
    """The released tokenizer as its base model has it: without the nine."""
    for path in source.iterdir():
        if path.suffix != ".json" or path.name == "vocab.json":
            shutil.copy(path, folder / path.name)
            continue
        value = json.loads(path.read_text())
        if path.name == "added_tokens.json":
            value = {token: number for token, number in value.items() if token not in FAMILY_TOKENS}
        elif "additional_special_tokens" in value:
            value["additional_special_tokens"] = [
                t for t in value["additional_special_tokens"] if t not in FAMILY_TOKENS
            ]
            rows = value.get("added_tokens_decoder", {})
            for number in [number for number, row in rows.items() if row["content"] in FAMILY_TOKENS]:
                del rows[number]
        if value:
            (folder / path.name).write_text(json.dumps(value))


def language_model(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model in its plain Hugging Face form; a tied one comes without its output matrix."""
    folder.mkdir()
    raw = {**SHAPE, "model_type": kind, "auto_map": {"AutoModel": "modeling_x.X"}, **LLMS[kind]}
    base_tokenizer(TOKENIZERS / kind, folder)
    (folder / "config.json").write_text(json.dumps(raw))
    config = llms.read_config(raw)
    model = Decoder(config)
    generator = torch.Generator().manual_seed(5)
    state = {name: torch.empty(t.shape).normal_(0, 0.1, generator=generator) for name, t in model.state_dict().items()}
    if raw.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    tensors = dict(llms.find(config.architecture).NAMES.join(state, config))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare InternViT."""
    folder = tmp_path_factory.mktemp("vit")
    (folder / "config.json").write_text(json.dumps(VISION))
    generator = torch.Generator().manual_seed(6)
    state = InternViT(VisionConfig.from_official(VISION)).state_dict()
    state = {name: torch.empty(tensor.shape).normal_(0, 0.1, generator=generator) for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=sorted(LLMS))
def built(request: pytest.FixtureRequest, vision: Path, tmp_path_factory: pytest.TempPathFactory):
    """(kind, folder of the language model, joined folder)."""
    root = tmp_path_factory.mktemp(request.param)
    llm = language_model(request.param, root / "llm")
    return request.param, llm, join_parts(vision, llm, root / "joined", template=None, seed=3, max_tiles=6)


def test_the_ids_are_the_released_ones(built):
    kind, _, folder = built
    first, size, stops = FACTS[kind]
    tokenizer, released = load_tokenizer(folder), load_tokenizer(TOKENIZERS / kind)
    assert [tokenizer.token_id(token) for token in FAMILY_TOKENS] == list(range(first, first + 9))
    assert tokenizer.size == released.size == size
    assert tokenizer.added == released.added
    text = "<img>你好, world</img><ref>a  b</ref><box>[[1, 2]]</box> x"
    assert tokenizer.encode(text) == released.encode(text)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == stops


def test_the_tokenizer_files_are_the_released_ones(built):
    kind, _, folder = built
    for name in ("added_tokens.json", "special_tokens_map.json"):
        ours, released = (json.loads((place / name).read_text()) for place in (folder, TOKENIZERS / kind))
        assert ours == released
    ours, released = (
        json.loads((place / "tokenizer_config.json").read_text()) for place in (folder, TOKENIZERS / kind)
    )
    released.pop("auto_map", None)
    assert {**ours, "add_eos_token": None} == {**released, "add_eos_token": None}


def test_kept_rows_means_and_fresh_rows(built):
    kind, llm, folder = built
    first, size, _ = FACTS[kind]
    before, after = load_file(llm / "model.safetensors"), load_file(folder / "model.safetensors")
    table_name = "model.tok_embeddings.weight" if kind == "internlm2" else "model.embed_tokens.weight"
    head_name = "output.weight" if kind == "internlm2" else "lm_head.weight"
    table, old_table = after[f"language_model.{table_name}"], before[table_name]
    head, old_head = after[f"language_model.{head_name}"], before.get(head_name, before[table_name])
    assert table.shape == head.shape == (size, 8)
    assert torch.equal(table[:first], old_table[:first])
    assert torch.equal(head[:first], old_head[:first])
    assert torch.allclose(head[first:], old_head[:first].mean(0).expand(9, -1), atol=1e-6)
    fresh = table[first:]
    assert 0.01 < fresh.std() < 0.03
    assert len(torch.unique(fresh, dim=0)) == 9
    for name, tensor in before.items():
        if name not in (table_name, head_name) and "inv_freq" not in name:
            assert torch.equal(after[f"language_model.{name}"], tensor)


def test_the_encoder_is_kept_and_the_projector_fresh(built, vision):
    _, _, folder = built
    after = load_file(folder / "model.safetensors")
    for name, tensor in load_file(vision / "model.safetensors").items():
        assert torch.equal(after[f"vision_model.{name}"], tensor)
    assert torch.equal(after["mlp1.0.weight"], torch.ones(64))
    assert after["mlp1.1.weight"].shape == (8, 64)
    assert 0.01 < after["mlp1.1.weight"].std() < 0.03
    for name in ("mlp1.0.bias", "mlp1.1.bias", "mlp1.3.bias"):
        assert not after[name].any()


def test_it_loads_answers_and_is_healthy(built):
    kind, _, folder = built
    config = json.loads((folder / "config.json").read_text())
    assert config["max_dynamic_patch"] == 6
    assert config["llm_config"]["vocab_size"] == FACTS[kind][1]
    assert config["llm_config"]["tie_word_embeddings"] is False
    assert config["img_context_token_id"] == FACTS[kind][0] + 2
    assert config["template"] == llms.find(LLMS[kind]["architectures"][0]).TEMPLATE
    assert "auto_map" not in json.dumps(config)
    assert load_model(folder).image_token_id == FACTS[kind][0] + 2
    diagnosis = diagnose(folder)
    assert diagnosis.findings == ()
    reply = load(folder, device="cpu").chat(
        [{"role": "user", "content": [{"type": "image", "image": _image()}, {"type": "text", "text": "What?"}]}],
        GenerationConfig(max_new_tokens=3),
    )
    assert reply.tiles >= 1
    assert reply.tokens <= 3


def _image() -> Any:
    from PIL import Image

    return Image.effect_noise((60, 30), 90).convert("RGB")


def test_the_seed_decides(vision, tmp_path):
    llm = language_model("phi3", tmp_path / "llm")
    weights = [
        load_file(join_parts(vision, llm, tmp_path / name, template=None, seed=seed, max_tiles=1) / "model.safetensors")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    name = "language_model.model.embed_tokens.weight"
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert not torch.equal(weights[0][name], weights[2][name])
    assert not torch.equal(weights[0]["mlp1.1.weight"], weights[2]["mlp1.1.weight"])


@pytest.mark.parametrize("layout", ["official", "native", "mini"])
def test_the_encoder_of_a_whole_model_is_taken(vision, checkpoint, tmp_path, layout):
    llm = language_model("phi3", tmp_path / "llm", torch.bfloat16)
    whole = checkpoint
    if layout != "official":
        whole = save_model(load_model(checkpoint), tmp_path / "whole", layout=layout)
    folder = join_parts(whole, llm, tmp_path / "joined", template="phi3-chat", seed=0, max_tiles=2)
    ours, theirs = load_model(folder), load_model(checkpoint)
    for name, tensor in theirs.vision_model.state_dict().items():
        assert torch.equal(ours.vision_model.state_dict()[name], tensor)
    stored = load_file(folder / "model.safetensors")
    assert stored["vision_model.embeddings.class_embedding"].dtype == torch.float32
    assert stored["mlp1.1.weight"].dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_tokenizer_json_alone_gets_the_nine(vision, checkpoint, tmp_path):
    llm = language_model("phi3", tmp_path / "llm")
    backend = load_tokenizer(checkpoint).backend
    rows = json.loads(backend.to_str())
    rows["added_tokens"] = [row for row in rows["added_tokens"] if row["content"] not in FAMILY_TOKENS]
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (llm / name).unlink()
    (llm / "tokenizer.json").write_text(json.dumps(rows))
    size = load_tokenizer(llm).size
    folder = join_parts(vision, llm, tmp_path / "joined", template="Hermes-2", seed=0, max_tiles=1)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.kind == "json"
    assert [tokenizer.token_id(token) for token in FAMILY_TOKENS] == list(range(size, size + 9))
    assert load_model(folder).config.llm.vocab_size == tokenizer.size == size + 9
    assert json.loads((folder / "added_tokens.json").read_text())["<|im_end|>"] == size - 1


def spoil(vision: Path, llm: Path, fault: str) -> str:
    """Spoil the language model's folder; returns what the error must say."""
    raw = json.loads((llm / "config.json").read_text())
    tensors = load_file(llm / "model.safetensors")
    if fault == "other model":
        (llm / "config.json").write_text(json.dumps({**raw, "architectures": ["GemmaForCausalLM"]}))
        return "GemmaForCausalLM"
    if fault == "no head":
        save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, llm / "model.safetensors")
        (llm / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": False}))
        return "holds no output matrix"
    if fault == "missing tensor":
        save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, llm / "model.safetensors")
        return "lack 1 tensors, first language_model.model.norm.weight"
    if fault == "other width":
        (llm / "config.json").write_text(json.dumps({**raw, "intermediate_size": 24}))
        return "has shape"
    if fault == "no tokenizer":
        (llm / "tokenizer.model").unlink()
        return "holds no tokenizer"
    if fault == "pickle":
        (llm / "model.safetensors").rename(llm / "pytorch_model.bin")
        return "pytorch_model.bin is a pickle file"
    assert fault == "unexpected tensor"
    save_file({**tensors, "model.x": torch.ones(1)}, llm / "model.safetensors")
    return "holds language_model.model.x"


@pytest.mark.parametrize(
    "fault",
    ["other model", "no head", "missing tensor", "other width", "no tokenizer", "pickle", "unexpected tensor"],
)
def test_a_part_that_does_not_fit_is_named_and_nothing_is_left(vision, tmp_path, fault):
    llm = language_model("phi3", tmp_path / "llm")
    message = spoil(vision, llm, fault)
    with pytest.raises(ValueError, match=re.escape(message)):
        join_parts(vision, llm, tmp_path / "joined", template=None, seed=0, max_tiles=1)
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_a_clip_encoder_becomes_the_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=112, patch_size=56))
    model.save_pretrained(tmp_path / "clip")
    llm = language_model("qwen2", tmp_path / "llm")
    built = join_parts(tmp_path / "clip", llm, tmp_path / "built", template=None, seed=0, max_tiles=1)
    whole, alone = load_model(built), load_vision(tmp_path / "clip")
    assert whole.config.vision == alone.config
    for name, tensor in alone.state_dict().items():
        assert torch.equal(whole.vision_model.state_dict()[name], tensor), name
    student, _ = open_student(StudentRecipe(start=str(tmp_path / "clip"), image_size=112), 0, "cpu", torch.float32)
    table = student.vision_model.embeddings.position_embedding
    assert table.shape == (1, 5, 16)
    assert torch.equal(student.vision_model.encoder.layers[0].ls1, torch.ones(16))


def test_wrong_requests_are_refused(vision, tmp_path):
    llm = language_model("phi3", tmp_path / "llm")
    with pytest.raises(ValueError, match="exists already"):
        join_parts(vision, llm, llm, template=None, seed=0, max_tiles=1)
    with pytest.raises(ValueError, match="unknown chat template"):
        join_parts(vision, llm, tmp_path / "a", template="vicuna", seed=0, max_tiles=1)
    with pytest.raises(ValueError, match=r"no token <\|im_end\|>"):
        join_parts(vision, llm, tmp_path / "a", template="Hermes-2", seed=0, max_tiles=1)
    with pytest.raises(ValueError, match="max_tiles is 0"):
        join_parts(vision, llm, tmp_path / "a", template=None, seed=0, max_tiles=0)
    with pytest.raises(ValueError, match='this is no InternViT config, but one of "phi3"'):
        join_parts(llm, llm, tmp_path / "a", template=None, seed=0, max_tiles=1)
    with pytest.raises(ValueError, match="not of a plain language model"):
        join_parts(vision, vision, tmp_path / "a", template=None, seed=0, max_tiles=1)
    assert not (tmp_path / "a").exists()


def test_a_released_size_with_another_tokenizer_is_refused(vision, tmp_path):
    llm = language_model("phi3", tmp_path / "llm")
    raw = json.loads((llm / "config.json").read_text())
    raw |= {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32}
    (llm / "config.json").write_text(json.dumps(raw))
    added = json.loads((llm / "added_tokens.json").read_text())
    (llm / "added_tokens.json").write_text(json.dumps({**added, "<one-more>": 32011}))
    with pytest.raises(ValueError, match=r"the tokenizer has 32021 .* released model has 32020"):
        join_parts(vision, llm, tmp_path / "joined", template=None, seed=0, max_tiles=1)


def test_the_command_sums_up(vision, tmp_path, capsys):
    llm = language_model("phi3", tmp_path / "llm")
    command.command(tmp_path / "joined", str(vision), str(llm), seed=1, max_tiles=3, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["vocabulary"] == 32020
    assert facts["id of <IMG_CONTEXT>"] == 32013
    assert facts["template"] == "phi3-chat"
    total = sum(tensor.numel() for tensor in load_file(tmp_path / "joined" / "model.safetensors").values())
    assert facts["total"] == total


def _twin(kind: str) -> Any:
    """A tiny language model of transformers with settings that differ from the defaults."""
    transformers = pytest.importorskip("transformers")
    shape = {**SHAPE, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": LLMS[kind]["vocab_size"]}
    if kind == "qwen2":
        config = transformers.Qwen2Config(**shape, num_key_value_heads=1, rope_theta=7e5, tie_word_embeddings=True)
        return transformers.Qwen2ForCausalLM(config)
    factors = [1.0 + 0.1 * i for i in range(8)]
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": [2 * f for f in factors]}
    config = transformers.Phi3Config(
        **shape,
        num_key_value_heads=1,
        rope_parameters={**rope, "rope_theta": 5e3, "original_max_position_embeddings": 64},
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        pad_token_id=0,
    )
    return transformers.Phi3ForCausalLM(config)


@pytest.mark.parametrize("kind", ["qwen2", "phi3"])
@pytest.mark.filterwarnings("default")
def test_a_model_saved_by_transformers_computes_the_same(vision, tmp_path, kind):
    torch.manual_seed(0)
    twin = _twin(kind).eval()
    twin.save_pretrained(tmp_path / "llm", max_shard_size="2MB")
    (tmp_path / "llm" / "generation_config.json").unlink(missing_ok=True)
    base_tokenizer(TOKENIZERS / kind, tmp_path / "llm")
    folder = join_parts(vision, tmp_path / "llm", tmp_path / "joined", template=None, seed=0, max_tiles=1)
    first = FACTS[kind][0]
    for length in (20, 90):  # phi3: the short factors, then the long ones
        ids = torch.randint(0, first, (1, length))
        with torch.inference_mode():
            ours, theirs = load_model(folder)(ids), twin(ids).logits
        assert (ours[..., :first] - theirs[..., :first]).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "rows", "context"), [("3-1B", 151674, 151667), ("3.5-1B", 151936, 151671)])
def test_later_language_models_get_the_released_ids(vision, later, tmp_path, kind, rows, context):
    """From the language model of a later checkpoint as its base model has it: without the nine, in its plain form."""
    whole, llm = later(kind), tmp_path / "llm"
    llm.mkdir()
    base_tokenizer(whole.with_name(f"{whole.name}-tokenizer"), llm)
    tensors = load_file(whole / "model.safetensors")
    prefix = "language_model."
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    raw = json.loads((whole / "config.json").read_text())["llm_config"]
    raw |= {"vocab_size": 151936, "tie_word_embeddings": True}
    table = plain["model.embed_tokens.weight"]
    plain["model.embed_tokens.weight"] = torch.cat([table, table])[:151936].contiguous()
    del plain["lm_head.weight"]
    save_file(plain, llm / "model.safetensors")
    (llm / "config.json").write_text(json.dumps(raw))
    folder = join_parts(vision, llm, tmp_path / "joined", template="internvl2_5", seed=3, max_tiles=6)
    config = json.loads((folder / "config.json").read_text())
    assert (config["llm_config"]["vocab_size"], config["img_context_token_id"]) == (rows, context)
    joined = load_file(folder / "model.safetensors")
    old = context - 2
    assert torch.equal(joined["language_model.model.embed_tokens.weight"][:old], table[:old])
    head = joined["language_model.lm_head.weight"]
    assert torch.equal(head[:old], table[:old])
    assert torch.equal(head[old:], table[:old].mean(0, keepdim=True).expand(rows - old, -1))
    assert diagnose(folder).healthy
