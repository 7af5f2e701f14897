"""minivl convert: there and back is equal in every byte, folders are whole, faults are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mini_internvl.cli import app
from mini_internvl.commands.convert import convert
from mini_internvl.commands.doctor import diagnose
from mini_internvl.engine import load
from mini_internvl.files import FileError
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model.checkpoint import CheckpointError, load_model
from mini_internvl.model.config import ConfigError
from mini_internvl.model.files import read_tensors

DATA = Path(__file__).parent / "golden" / "data"
KINDS = ("qwen2", "internlm2", "phi3")
WEIGHTS = "model.safetensors"


@pytest.fixture(params=KINDS)
def official(request, tmp_path) -> Path:
    """A tiny official folder with the tokenizer of its kind, whose vocabulary is far larger than the tiny model's."""
    folder = tmp_path / "official"
    shutil.copytree(DATA / "models" / request.param, folder)
    for file in (DATA / "tokenizers" / request.param).iterdir():
        shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    config["img_context_token_id"] = config["llm_config"]["vocab_size"] - 7
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_tensors(folder))


def same(first: Path, second: Path) -> None:
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    different = [k for k in a if a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])]
    assert not different, different[:3]


@pytest.mark.parametrize("middle", ["mini", "native"])
def test_there_and_back_is_equal_in_every_byte(official, tmp_path, middle):
    there, back = tmp_path / "there", tmp_path / "back"
    told = []
    done = convert(official, there, middle, progress=lambda *numbers: told.append(numbers))
    assert (done["from"], done["to"], done["tensors"]) == ("official", middle, len(tensors(there)))
    assert told[-1][0] == told[-1][1]
    convert(there, back, "official")
    same(official, back)
    ids = load_tokenizer(official)
    assert load_tokenizer(back).encode("Where is <ref>it</ref>?\n 1+1") == ids.encode("Where is <ref>it</ref>?\n 1+1")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (official, back))
    for field in ("template", "max_dynamic_patch", "ps_version", "select_layer", "use_thumbnail", "force_image_size"):
        assert first.get(field) == second.get(field), field


def test_every_layout_gives_the_same_logits(official, tmp_path):
    torch.manual_seed(0)
    model = load_model(official)
    token, size = model.image_token_id, model.config.image_size
    ids = torch.tensor([[1, 5, *[token] * model.config.tokens_per_tile, 7, 9]])
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        wanted = model(ids, pixels)
    for layout in ("mini", "native"):
        convert(official, tmp_path / layout, layout)
        loaded = load_model(tmp_path / layout)
        assert loaded.image_token_id == token
        with torch.no_grad():
            assert torch.equal(loaded(ids, pixels), wanted), layout


def test_shards_and_types(checkpoint, tmp_path):
    done = convert(checkpoint, tmp_path / "half", "mini", dtype="bfloat16", shard_bytes=60_000)
    assert len(done["files"]) > 2
    assert {t.dtype for t in tensors(tmp_path / "half").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_converted_model_answers_alike(checkpoint, tmp_path):
    question = [{"role": "user", "content": "Read the text."}]
    wanted = load(checkpoint, device="cpu").chat(question)
    for layout in ("mini", "native"):
        convert(checkpoint, tmp_path / layout, layout)
        assert load(tmp_path / layout, device="cpu").chat(question).text == wanted.text


def test_faults_are_named_and_nothing_is_written(checkpoint, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ConfigError, match=r'unknown layout "gguf"; known: mini, native, official'):
        convert(checkpoint, target, "gguf")
    with pytest.raises(FileError, match="exists already; give a new folder"):
        convert(checkpoint, checkpoint, "mini")
    spoiled = shutil.copytree(checkpoint, tmp_path / "spoiled")
    found = load_file(spoiled / WEIGHTS)
    del found["mlp1.1.bias"]
    save_file(found, spoiled / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit config.json: mlp1\.1\.bias \(is missing"):
        convert(spoiled, target, "mini")
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "letter.txt").write_text("keep me")
    with pytest.raises(FileError, match="exists already; give a new folder"):
        convert(checkpoint, busy, "mini")
    assert (busy / "letter.txt").read_text() == "keep me"
    assert not target.exists()


def test_a_tied_model_goes_through_every_layout(checkpoint, tmp_path):
    """One table for input and output embeddings, in the files once: read as two parameters, never sharing memory."""
    tied = shutil.copytree(checkpoint, tmp_path / "tied")
    config = json.loads((tied / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    found = load_file(tied / WEIGHTS)
    del found["language_model.lm_head.weight"]
    save_file(found, tied / WEIGHTS)
    model = load_model(tied).language_model
    assert torch.equal(model.lm_head.weight, model.embed_tokens.weight)
    assert model.lm_head.weight.data_ptr() != model.embed_tokens.weight.data_ptr()
    last = tied
    for layout in ("mini", "native", "official"):
        convert(last, tmp_path / layout, layout)
        assert diagnose(tmp_path / layout).healthy, layout
        last = tmp_path / layout
    assert all(torch.equal(tensors(last)[name], value) for name, value in found.items())
    assert load_model(last).language_model.lm_head.weight.equal(model.lm_head.weight)


def test_an_adapter_is_not_converted(checkpoint, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter; merge it into its base first"):
        convert(tmp_path / "adapter", tmp_path / "new", "native")


def test_the_command_says_what_it_did(checkpoint, tmp_path):
    done = CliRunner().invoke(app, ["convert", str(checkpoint), str(tmp_path / "n"), "--to", "native"])
    assert done.exit_code == 0, done.output
    assert "official -> native" in done.output
    again = CliRunner().invoke(app, ["convert", str(tmp_path / "n"), str(tmp_path / "o"), "--to", "official", "--json"])
    assert json.loads(again.stdout)["from"] == "native"
    same(checkpoint, tmp_path / "o")
