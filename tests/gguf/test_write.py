"""GGUF files read back by the gguf package: every tensor once and in its place, keys, tokens, template, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mini_internvl import plugins
from mini_internvl.files import FileError
from mini_internvl.gguf import run, write
from mini_internvl.gguf.write import write_gguf
from mini_internvl.inputs import chat, jinja
from mini_internvl.inputs.tokenizer import TokenizerError
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import heads
from mini_internvl.model.adapter import save_adapter, tensors_hash
from mini_internvl.model.checkpoint import load_model
from mini_internvl.model.config import ConfigError
from mini_internvl.model.lora import LoraConfig, add_lora, merge_lora

gguf = pytest.importorskip("gguf")
BACKBONES = plugins.list_names("model.llms")
TOKENIZERS = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
STEPS = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 8}
"""Largest error of a stored value, as a share of the largest one of its block."""


def read(folder: Path) -> tuple[gguf.GGUFReader, gguf.GGUFReader]:
    """The language model's file and the mmproj."""
    [mmproj] = folder.glob("mmproj-*.gguf")
    [model] = set(folder.glob("*.gguf")) - {mmproj}
    return gguf.GGUFReader(model), gguf.GGUFReader(mmproj)


def tensors(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    names = [tensor.name for tensor in reader.tensors]
    assert len(names) == len(set(names))
    found = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        found[tensor.name] = torch.tensor(values).reshape([int(n) for n in reversed(tensor.shape)])
    return found


def key(reader: gguf.GGUFReader, name: str):
    return reader.fields[name].contents()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_tensor_is_there_once_with_its_values(make, tmp_path, name):
    folder = make(name)
    write_gguf(folder, tmp_path / "out", kind="f32")
    model, state = load_model(folder), {}
    config = model.config.llm
    for ours, value in model.state_dict().items():
        state[ours.removeprefix("language_model.")] = value
    llm, mmproj = map(tensors, read(tmp_path / "out"))
    factors = {part for part in llm if part.startswith("rope_factors")}
    assert len(factors) == 2 * (config.rope.kind == "longrope")
    stored = [*mmproj.values(), *(value for part, value in llm.items() if part not in factors)]
    assert sum(value.numel() for value in stored) == sum(value.numel() for value in state.values())
    assert torch.equal(llm["token_embd.weight"], state["embed_tokens.weight"])
    assert torch.equal(llm["output.weight"], state["lm_head.weight"])
    assert torch.equal(llm["output_norm.weight"], state["norm.weight"])
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}.", f"blk.{layer}."
        for part, inner in {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}.items():
            assert torch.equal(llm[f"{theirs}{part}.weight"], state[f"{ours}{inner}.weight"])
        for part, inner in {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}.items():
            assert torch.equal(llm[f"{theirs}{part}.weight"], state[f"{ours}{inner}.weight"])
        up = [state[f"{ours}mlp.{half}_proj.weight"] for half in ("gate", "up")]
        assert torch.equal(
            torch.cat([llm.get(f"{theirs}ffn_gate.weight", up[0][:0]), llm[f"{theirs}ffn_up.weight"]]), torch.cat(up)
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_queries_and_keys_turn_as_llama_cpp_turns_them(make, tmp_path, name):
    """Rotated as llama.cpp rotates the stored rows, queries meet keys with the products that the model gives."""
    folder = make(name)
    write_gguf(folder, tmp_path / "out", kind="f32")
    model, llm = load_model(folder), tensors(read(tmp_path / "out")[0])
    config, backbone = model.config.llm, plugins.find("model.llms", name)
    rows = {"q": config.heads * config.head_dim, "k": config.kv_heads * config.head_dim}
    fused = llm.get("blk.1.attn_qkv.weight")
    theirs = (
        dict(zip("qk", fused.split([*rows.values(), rows["k"]])[:2], strict=True))
        if fused is not None
        else {letter: llm[f"blk.1.attn_{letter}.weight"] for letter in "qk"}
    )
    x = torch.randn(2, config.hidden_size, generator=torch.Generator().manual_seed(3))
    turns = torch.outer(torch.tensor([5.0, 2.0]), 10000.0 ** -torch.arange(0, 1, 2 / config.head_dim))

    def rotated(letter: str, matrix: torch.Tensor, pairs: bool) -> torch.Tensor:
        place = "qk".index(letter)
        heads = (matrix @ x[place]).reshape(-1, config.head_dim)
        first, second = (heads[:, ::2], heads[:, 1::2]) if pairs else heads.chunk(2, dim=1)
        return torch.complex(first, second) * torch.polar(torch.ones_like(turns[place]), turns[place])

    def products(matrices: dict[str, torch.Tensor], pairs: bool) -> torch.Tensor:
        q, k = (rotated(letter, matrices[letter], pairs) for letter in "qk")
        return (q[:, None] * k[None].conj()).real.sum(-1)

    ours = {
        letter: model.language_model.layers[1].self_attn.get_submodule(f"{letter}_proj").weight.detach()
        for letter in "qk"
    }
    assert torch.allclose(products(theirs, backbone.GGUF.pairs), products(ours, False), atol=1e-4)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_values_are_within_the_step_of_the_type(make, tmp_path, kind):
    folder = make(llm={"hidden_size": 64, "intermediate_size": 96})
    done = write_gguf(folder, tmp_path / "out", kind=kind)
    write_gguf(folder, tmp_path / "exact", kind="f32")
    used = set()
    for reader, exact in zip(read(tmp_path / "out"), read(tmp_path / "exact"), strict=True):
        wanted = tensors(exact)
        assert wanted.keys() == tensors(reader).keys()
        for name, value in tensors(reader).items():
            stored = next(t.tensor_type.name for t in reader.tensors if t.name == name)
            used.add(stored)
            error = (value - wanted[name]).abs().max()
            assert error <= STEPS[stored] * wanted[name].abs().max(), (name, stored)
            assert stored == "F32" or value.ndim > 1
    assert kind.upper() in used
    assert done["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    projector = next(t for t in read(tmp_path / "out")[1].tensors if t.name == "mm.model.mlp.1.weight")
    assert projector.tensor_type.name == {"bf16": "BF16"}.get(kind, "F16")


def test_encoder_and_projector(make, tmp_path):
    """The class token's position comes last, blocks behind the chosen layer stay out, the table fits the tiles."""
    folder = make(select_layer=-2, vision={"image_size": 84})
    write_gguf(folder, tmp_path / "out", kind="f32")
    model, reader = load_model(folder), read(tmp_path / "out")[1]
    found, vision = tensors(reader), model.vision_model
    table = vision.embeddings._positions(4, 4)[0].detach()
    assert table.shape[0] == 17
    assert torch.allclose(found["v.position_embd.weight"], table.roll(-1, 0))
    assert torch.equal(found["v.class_embd"], vision.embeddings.class_embedding.detach().flatten())
    assert torch.equal(found["v.patch_embd.weight"], vision.embeddings.patch_embedding.weight.detach())
    assert {name.split(".")[2] for name in found if name.startswith("v.blk.")} == {"0", "1"}
    block = vision.encoder.layers[1]
    qkv = torch.cat([found[f"v.blk.1.attn_{letter}.weight"] for letter in "qkv"])
    assert torch.equal(qkv, block.attn.qkv.weight.detach())
    for theirs, ours in {
        "attn_out": block.attn.proj,
        "ln1": block.norm1,
        "ln2": block.norm2,
        "ffn_up": block.mlp.fc1,
    }.items():
        assert torch.equal(found[f"v.blk.1.{theirs}.weight"], ours.weight.detach())
        assert torch.equal(found[f"v.blk.1.{theirs}.bias"], ours.bias.detach())
    assert torch.equal(found["v.blk.1.ls2.weight"], block.ls2.detach())
    for number in (0, 1, 3):
        assert torch.equal(found[f"mm.model.mlp.{number}.weight"], model.mlp1[number].weight.detach())
    wanted = {
        **{"projector_type": "internvl", "vision.image_size": 56, "vision.patch_size": 14, "vision.block_count": 2},
        **{"vision.projector.scale_factor": 2, "vision.preproc_min_tiles": 1, "vision.preproc_max_tiles": 4},
        **{"use_gelu": True, "has_vision_encoder": True, "vision.projection_dim": 32, "vision.attention.head_count": 2},
    }
    assert {name: key(reader, f"clip.{name}") for name in wanted} == wanted
    assert key(reader, "clip.vision.image_mean") == pytest.approx([0.485, 0.456, 0.406])


def test_keys_of_the_language_models(make, tmp_path):
    found = {}
    for name in BACKBONES:
        llm = {"sliding_window": 24, "use_sliding_window": True} if name == "qwen3" else {}
        write_gguf(make(name, llm=llm), tmp_path / name, kind="f32")
        found[name] = read(tmp_path / name)[0]
        assert key(found[name], "general.architecture") == name
        assert key(found[name], f"{name}.block_count") == 2
        assert key(found[name], f"{name}.attention.head_count_kv") == 2
        assert key(found[name], f"{name}.rope.freq_base") == 10000.0
    assert key(found["qwen3"], "qwen3.attention.key_length") == 12
    assert key(found["qwen3"], "qwen3.context_length") == 24  # llama.cpp has no sliding window there
    assert key(found["internlm2"], "internlm2.context_length") == 128  # nor positions stretched by length
    assert key(found["phi3"], "phi3.rope.scaling.original_context_length") == 32
    scale = load_model(make("phi3")).config.llm.rope.attention_factor
    assert key(found["phi3"], "phi3.rope.scaling.attn_factor") == pytest.approx(scale)


def test_tokens(make, checkpoint, tmp_path):
    write_gguf(make(), tmp_path / "out", kind="f32")
    reader, tokenizer = read(tmp_path / "out")[0], load_tokenizer(checkpoint)
    tokens, types = key(reader, "tokenizer.ggml.tokens"), key(reader, "tokenizer.ggml.token_type")
    size = tokenizer.size
    assert [tokenizer.token_id(token) for token in tokens[:size]] == list(range(size))
    assert tokens[size:] == [f"[PAD{number}]" for number in range(size, size + 3)]
    kinds = {text: gguf.TokenType(types[token.id]).name for text, token in tokenizer.added.items()}
    assert kinds["<|im_end|>"] == kinds["<IMG_CONTEXT>"] == "CONTROL"
    assert kinds["<box>"] == "USER_DEFINED"
    assert types[size] == gguf.TokenType.UNUSED
    assert key(reader, "tokenizer.ggml.pre") == "qwen2"
    assert key(reader, "tokenizer.ggml.eos_token_id") == tokenizer.token_id("<|im_end|>")
    assert key(reader, "tokenizer.ggml.add_bos_token") is False
    merges = [tuple(merge.split(" ")) for merge in key(reader, "tokenizer.ggml.merges")]
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    assert merges
    assert all(left + right in vocabulary for left, right in merges)


@pytest.mark.parametrize("name", ["phi3", "internlm2"])
def test_sentencepiece_tokens(name):
    tokenizer = load_tokenizer(TOKENIZERS / name)
    found = write.vocabulary.vocabulary(tokenizer, tokenizer.size + 2)
    assert len(found.tokens) == len(found.scores) == len(found.types) == tokenizer.size + 2
    assert found.model == "llama"
    assert found.space_in_front is False
    for text, token in tokenizer.added.items():
        assert found.tokens[token.id] == text
    for number in range(0, tokenizer.model.get_piece_size(), 97):
        if number not in {token.id for token in tokenizer.added.values()}:
            assert (found.tokens[number], found.scores[number]) == (
                tokenizer.model.id_to_piece(number),
                tokenizer.model.get_score(number),
            )
    assert write.vocabulary.strips_like_phi3(tokenizer) is (name == "phi3")
    assert gguf.TokenType(found.types[tokenizer.model.piece_to_id("<0x0A>")]).name == "BYTE"


@pytest.mark.parametrize("name", ["Hermes-2", "internvl2_5", "phi3-chat"])
def test_the_template_renders_the_turns_that_the_model_was_trained_with(name):
    """llama.cpp hands over texts in which a marker stands for an image, and writes the tokens of the image there."""
    jinja2 = pytest.importorskip("jinja2")
    template = chat.find_template(name)
    render = jinja2.Environment().from_string(jinja.chat_template(template, marked=True)).render
    image = {"type": "image", "image": "x"}
    for marker in ("<__media__>", "<__media_a1B2__>"):
        for count in (0, 1, 2):
            parts = [*[image] * count, {"type": "text", "text": "What\nis it?"}]
            messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]
            messages.append({"role": "user", "content": "Sure?"})
            given = [{**messages[0], "content": marker * count + "What\nis it?"}, *messages[1:]]
            wanted = chat.render(messages, template=template).replace("<image>", marker)
            assert render(messages=given, add_generation_prompt=True) == wanted
    system = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert render(messages=system, add_generation_prompt=True) == chat.render(system, template=template)
    typed = [{"role": "user", "content": "<__media is no marker"}]
    assert render(messages=typed, add_generation_prompt=True) == chat.render(typed, template=template)


def test_an_adapter_is_merged(make, tmp_path):
    base = make()
    model = add_lora(load_model(base), LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter", base=str(base), base_hash=tensors_hash(base))
    write_gguf(tmp_path / "adapter", tmp_path / "out", kind="f32")
    merged = merge_lora(model).language_model
    found = tensors(read(tmp_path / "out")[0])["blk.0.ffn_up.weight"]
    assert torch.equal(found, merged.layers[0].mlp.up_proj.weight.detach())
    assert not torch.equal(found, load_model(base).language_model.layers[0].mlp.up_proj.weight)


def test_what_llama_cpp_does_not_compute_is_refused(make, tmp_path):
    wrong = {
        "several tiles without a thumbnail": {"use_thumbnail": False},
        'ps_version "v1"': {"ps_version": "v1"},
        "RMSNorm in the encoder": {"vision": {"norm_type": "rms_norm"}},
        "before the first block": {"select_layer": 0},
        "are not 32 together": {"llm": {"head_dim": 10}},
        "no longrope": {"llm": {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}}},
    }
    for message, extra in wrong.items():
        with pytest.raises(ConfigError, match=message):
            write_gguf(make(**extra), tmp_path / "out")
    with pytest.raises(ConfigError, match="Flash"):
        write_gguf(make(flash_relative_threshold=0.5, flash_absolute_threshold=0.5), tmp_path / "out")
    with pytest.raises(TokenizerError, match="tokens, the model 40 rows for them"):
        write_gguf(make(llm={"vocab_size": 40}, img_context_token_id=30), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_faults_are_named_and_nothing_half_is_left(make, tmp_path, monkeypatch):
    folder, target = make(), tmp_path / "out"
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    run.library.cache_clear()
    with pytest.raises(
        ValueError, match=r"pip install llama-cpp-python; or write f16 and make q4_k_m of it: .* Q4_K_M"
    ):
        write_gguf(folder, target, kind="q4_k_m")
    with pytest.raises(ValueError, match='unknown GGUF type "q9"; known: f32, f16, bf16, q8_0, q4_0, q4_k_m'):
        write_gguf(folder, target, kind="q9")
    with pytest.raises(FileError, match="exists already"):
        write_gguf(folder, folder)
    model = load_model(folder)
    huge = shutil.copytree(folder, tmp_path / "huge")
    with torch.no_grad():
        model.language_model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, huge / "model.safetensors")
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight holds values beyond the 65504 of float16"):
        write_gguf(huge, target)
    with torch.no_grad():
        model.language_model.layers[1].mlp.up_proj.weight[0] = torch.tensor(float("nan"))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, huge / "model.safetensors")
    for kind in ("f32", "f16", "q8_0"):
        with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight holds values that are infinite or no number"):
            write_gguf(huge, target, kind=kind)
    with pytest.raises(ValueError, match="begin with mmproj hold the encoder; give another name"):
        write_gguf(folder, tmp_path / "mmproj-mine")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'pip install "mini-internvl\[gguf\]"'):
        write_gguf(folder, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge"]


def test_the_command(minivl, checkpoint, tmp_path):
    code, out, _ = minivl("convert", checkpoint, tmp_path / "a", "--to", "gguf", "--type", "q8_0")
    assert code == 0
    assert "a-Q8_0.gguf" in out
    assert "mmproj-a-F16.gguf" in out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"a-Q8_0.gguf", "mmproj-a-F16.gguf"}
    for option in (("--dtype", "float16"), ("--shard-gb", 1)):
        assert minivl("convert", checkpoint, tmp_path / "b", "--to", "gguf", *option)[0] == 2
    assert minivl("convert", checkpoint, tmp_path / "b", "--to", "native", "--type", "f16")[0] == 2
    code, out, _ = minivl("convert", checkpoint, tmp_path / "c", "--to", "gguf", "--json")
    assert json.loads(out)["files"] == ["c-F16.gguf", "mmproj-c-F16.gguf"]
    assert json.loads(out)["left_out"] == []
    headed = shutil.copytree(checkpoint, tmp_path / "headed")
    for name in (heads.SETTINGS, heads.WEIGHTS):
        (headed / name).write_bytes(b"{}")
    code, out, _ = minivl("convert", headed, tmp_path / "d", "--to", "gguf")
    assert (code, "left out, as llama.cpp computes no heads: heads." in out) == (0, True)
