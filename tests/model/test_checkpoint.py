"""Checkpoint folders: what is saved is what is loaded, and every broken folder is refused in plain words."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_internvl import files
from mini_internvl.model.checkpoint import CheckpointError, load_model, load_vision, save_model
from mini_internvl.model.config import ConfigError


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def rewrite(folder, change):
    """Apply ``change`` to the dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["qwen2", "internlm2", "phi3"])
def test_saved_equals_loaded(make, tmp_path, name):
    model = make(name)
    first = save_model(model, tmp_path / "first")
    loaded = load_model(first)
    assert not loaded.training
    assert loaded.image_token_id == 54
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    second = save_model(loaded, tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())
    ids, pixels = torch.tensor([[1, 54, 54, 54, 54, 2]]), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(loaded(ids, pixels), model(ids, pixels))


def test_unknown_fields_of_the_config_survive(make, tmp_path):
    model = make(pad2square=False, a_field_of_tomorrow={"x": [1]})
    raw = json.loads((save_model(model, tmp_path / "m") / "config.json").read_text())
    assert raw["a_field_of_tomorrow"] == {"x": [1]}
    assert raw["torch_dtype"] == "float32"
    assert raw["img_context_token_id"] == 54


def test_weights_are_saved_and_loaded_in_the_wanted_type(make, tmp_path):
    model = make()
    saved = save_model(model, tmp_path / "m", dtype="bfloat16", metadata={"stage": "x"})
    tensors = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(saved).dtype == torch.float32
    assert load_model(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match='unknown dtype "float64"; known: float32, bfloat16, float16'):
        load_model(saved, dtype="float64")


def test_shards_give_the_same_model(checkpoint, folder):
    tensors = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    names = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, own in names.items():
        save_file({key: tensors[key] for key in own}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, own in names.items() for key in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    whole, shards = load_model(checkpoint).state_dict(), load_model(folder).state_dict()
    assert all(torch.equal(whole[key], shards[key]) for key in whole)
    last = folder / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is damaged or incomplete"):
        load_model(folder)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names shards that are missing: model-00002.*fetch these"):
        load_model(folder)


def test_the_placeholder_id_comes_from_config_tokens_or_vocabulary(folder):
    vocabulary = load_model(folder).config.llm.vocab_size
    raw = json.loads((folder / "config.json").read_text())
    assert load_model(folder).image_token_id == raw.pop("img_context_token_id")
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 17}))
    assert load_model(folder).image_token_id == 17
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<IMG_CONTEXT>", "id": 18}]}))
    assert load_model(folder).image_token_id == 18
    (folder / "tokenizer.json").unlink()
    assert load_model(folder).image_token_id == vocabulary - 7


def test_a_missing_folder_or_config_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing; is .*model a checkpoint folder\?"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json is not valid JSON"),
        (b"\xff\xfe\x00", r"config\.json is not UTF-8 text"),
        (b"[1]", "holds no JSON object"),
        (b'{"model_type": "llava", "architectures": ["X"]}', r'config\.json: this is a config of "llava" \(X\)'),
    ],
)
def test_a_config_of_another_kind_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_model(folder)


def test_a_file_cut_in_half_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or incomplete .*fetch or save it again"):
        load_model(folder)


def test_pickle_is_refused_by_name_and_never_opened(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle file, which can run code"):
        load_model(folder)


def test_missing_and_unexpected_tensors_are_listed(folder):
    def change(tensors):
        del tensors["mlp1.0.bias"], tensors["language_model.model.norm.weight"]
        tensors["language_model.model.extra.weight"] = torch.ones(1)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "missing tensors language_model.norm.weight, mlp1.0.bias; " in message
    assert "unexpected tensors language_model.extra.weight; " in message


def test_many_missing_tensors_are_counted(folder):
    rewrite(folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".norm1." in key or ".mlp." in key])
    with pytest.raises(CheckpointError, match=r"missing tensors (\S+, ){3}\S+ and \d+ more; the weights do not fit"):
        load_model(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({"mlp1.1.bias": torch.ones(5)}))
    with pytest.raises(CheckpointError, match=r"mlp1\.1\.bias has shape \(5,\), config\.json asks for \(48,\)"):
        load_model(folder)


def test_a_failed_save_leaves_the_old_folder(monkeypatch, make, tmp_path):
    target = save_model(make(), tmp_path / "m")
    before = (target / "model.safetensors").read_bytes()
    other = make()
    with torch.no_grad():
        other.mlp1[1].weight.add_(1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_model(other, target)
    assert (target / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]  # nothing half-written beside it
    save_model(other, target)
    assert (target / "model.safetensors").read_bytes() != before
    assert os.listdir(tmp_path) == ["m"]


def test_a_rename_that_fails_or_is_killed_loses_nothing(monkeypatch, make, tmp_path):
    target = save_model(make(), tmp_path / "m")
    before = (target / "model.safetensors").read_bytes()
    real = os.replace

    def fails(source, destination):
        if str(destination) == str(target) and not str(source).endswith(".m.old"):  # the new folder to its place
            raise OSError(5, "Input/output error")
        real(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="Input/output"):
            save_model(make(), target)
    assert (target / "model.safetensors").read_bytes() == before

    target.rename(tmp_path / ".m.old")  # what a kill between the two renames leaves
    files.recover_folder(target)
    assert (target / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


def test_extra_files_go_along(make, tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "vocab.json").chmod(0o444)
    saved = save_model(make(), tmp_path / "deep" / "m", extra_files=[tmp_path / "vocab.json"])
    assert (saved / "vocab.json").read_text() == "{}"
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}  # others may read them
    assert saved.stat().st_mode & 0o777 == 0o755


def test_a_bare_encoder_is_loaded_and_others_refused(make, tmp_path, checkpoint):
    model = make()
    save_file(model.vision_model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config.official["vision_config"]))
    encoder, pixels = load_vision(tmp_path), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), model.vision_model(pixels))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match='this is no InternViT config, but one of "bert"'):
        load_vision(tmp_path)


def test_the_encoder_of_a_whole_model_is_loaded(make, tmp_path):
    model = make()
    folder = save_model(model, tmp_path / "m", layout="mini")
    encoder, pixels = load_vision(folder), torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), model.vision_model(pixels))


@pytest.mark.parametrize("layout", ["official", "mini"])
@pytest.mark.parametrize("name", ["qwen2", "internlm2", "phi3"])
def test_shards_hold_what_one_file_holds(make, tmp_path, name, layout):
    model = make(name)
    whole = save_model(model, tmp_path / "whole", layout=layout)
    parts = save_model(model, tmp_path / "parts", layout=layout, shard_bytes=60_000)
    shards = sorted(parts.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert max(path.stat().st_size for path in shards[:-1]) < 80_000
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    tensors = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for key, tensor in tensors.items():
        assert torch.equal(load_file(parts / index["weight_map"][key])[key], tensor)
    assert all(torch.equal(v, load_model(parts).state_dict()[k]) for k, v in model.state_dict().items())


def test_our_own_layout_keeps_everything(make, tmp_path):
    model = make("internlm2")
    mini = save_model(model, tmp_path / "mini", layout="mini")
    back = save_model(load_model(mini), tmp_path / "back")
    first = save_model(model, tmp_path / "first")
    assert (first / "model.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()
    assert (first / "config.json").read_text() == (back / "config.json").read_text()
    with pytest.raises(ConfigError, match=r'unknown layout "pickle"; known: .*mini.*official'):
        save_model(model, tmp_path / "x", layout="pickle")


def test_a_shared_embedding_table_is_read_twice_and_written_once(make, tmp_path):
    """As in later family members whose config.json ties the two tables."""
    model = make()
    llm = model.config.official["llm_config"]
    llm["tie_word_embeddings"] = True
    untied = save_model(model, tmp_path / "untied")
    assert "language_model.lm_head.weight" in load_file(untied / "model.safetensors")
    assert json.loads((untied / "config.json").read_text())["llm_config"]["tie_word_embeddings"] is False
    with torch.no_grad():
        model.language_model.lm_head.weight.copy_(model.language_model.embed_tokens.weight)
    tied = save_model(model, tmp_path / "tied")
    assert "language_model.lm_head.weight" not in load_file(tied / "model.safetensors")
    loaded = load_model(tied)
    assert torch.equal(loaded.language_model.lm_head.weight, model.language_model.embed_tokens.weight)
    again = save_model(loaded, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tied / "model.safetensors").read_bytes()
    assert json.loads((again / "config.json").read_text())["llm_config"]["tie_word_embeddings"] is True


def test_a_stored_output_matrix_counts_whatever_config_json_says(make, tmp_path):
    model = make("qwen3", tie_word_embeddings=False)
    folder = save_model(model, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    raw["tie_word_embeddings"] = raw["llm_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(raw))
    loaded = load_model(folder)
    assert torch.equal(loaded.language_model.lm_head.weight, model.language_model.lm_head.weight)
    again = save_model(loaded, tmp_path / "again")
    raw = json.loads((again / "config.json").read_text())
    assert not raw["tie_word_embeddings"]
    assert not raw["llm_config"]["tie_word_embeddings"]
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_missing_and_extra_tensors_load_when_asked(folder, caplog):
    def change(tensors):
        for name in ("mlp1.1.bias", "mlp1.0.weight", "mlp1.3.weight"):
            del tensors[name]
        tensors["stranger"] = torch.ones(2)

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=r"missing tensors mlp1\.0\.weight, .*unexpected tensors stranger"):
        load_model(folder)
    model = load_model(folder, strict=False)
    assert (model.mlp1[1].bias == 0).all()
    assert (model.mlp1[0].weight == 1).all()
    assert 0.01 < model.mlp1[3].weight.std() < 0.03
    assert "missing tensors" in caplog.text
    assert "stranger" in caplog.text
    assert all(not p.is_meta for p in model.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_save_killed_at_any_moment_leaves_a_whole_checkpoint(make, tmp_path):
    """Twenty kills at random moments of saves in a row; each save's weights are one number, so a mixture would show."""
    torch.set_num_threads(1)
    model, target, chance = make(), tmp_path / "m", random.Random(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.0)
    save_model(model, target)
    seen = set()
    for round_ in range(20):
        child = os.fork()
        if child == 0:
            number = 100.0 * (round_ + 1)
            while True:
                number += 1
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.fill_(number)
                save_model(model, target, shard_bytes=60_000)
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        values = {value.flatten()[0].item() for value in load_model(target).state_dict().values()}
        assert len(values) == 1, values
        seen |= values
    assert len(seen) > 3, "the kills came before any save ended"
    save_model(model, target)
    assert os.listdir(tmp_path) == ["m"]  # what the kills left is cleared away


def test_a_link_to_a_folder_is_followed(make, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    for _ in range(2):
        save_model(make(), tmp_path / "m")
    assert (tmp_path / "m").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["m"]
    assert load_model(tmp_path / "m").image_token_id == 54


def test_a_reader_that_recovers_in_between_spoils_no_save(monkeypatch, make, tmp_path):
    """Between the two renames a reader sees no folder and puts the old one back."""
    target = save_model(make(), tmp_path / "m")
    real, done = os.replace, []

    def interfered(source, destination):
        real(source, destination)
        if str(destination).endswith(".m.old") and not done:
            done.append(1)
            files.recover_folder(target)

    new = make()
    with torch.no_grad():
        new.mlp1[1].weight.add_(1)
    monkeypatch.setattr(os, "replace", interfered)
    save_model(new, target)
    assert done
    assert torch.equal(load_model(target).mlp1[1].weight, new.mlp1[1].weight)
    assert os.listdir(tmp_path) == ["m"]


def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(make, tmp_path):
    from mini_internvl.model.lora import LoraConfig, add_lora

    model = add_lora(make(), LoraConfig(rank=2))
    with pytest.raises(ValueError, match="the model has adapters; merge them first"):
        save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_names_of_an_index_stay_inside_the_folder(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tensors = load_file(folder / "model.safetensors")
    for place, name in ((elsewhere, "../elsewhere/a.safetensors"), (elsewhere, f"{elsewhere}/a.safetensors")):
        save_file(tensors, place / "a.safetensors")
        index = {"weight_map": dict.fromkeys(tensors, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"index\.json names .*, outside the folder"):
            load_model(folder)
    (folder / "parts").mkdir()
    save_file(tensors, folder / "parts/a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "parts/a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} is a pipe or device, not a regular file"):
        load_model(folder)


def test_weights_that_are_no_real_numbers_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"mlp1.1.bias": tensors["mlp1.1.bias"].int()}))
    with pytest.raises(CheckpointError, match=r"mlp1\.1\.bias is of type I32; save the weights as real numbers"):
        load_model(folder)


def test_the_files_decide_about_the_depth_before_anything_is_made(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["llm_config"]["num_hidden_layers"] = 900
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="asks for 900 language_model blocks, the weights have 2"):
        load_model(folder)


def test_on_the_meta_device_headers_are_checked_and_no_weight_is_read(folder):
    model = load_model(folder, device="meta", dtype="bfloat16")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.dtype == torch.bfloat16
    rewrite(folder, lambda tensors: tensors.update({"mlp1.1.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"mlp1\.1\.bias has shape \(3,\)"):
        load_model(folder, device="meta")


def test_parts_stay_float32_when_asked(folder):
    model = load_model(folder, dtype="bfloat16", float32=("mlp1.",))
    assert {p.dtype for p in model.mlp1.parameters()} == {torch.float32}
    assert {p.dtype for p in model.vision_model.parameters()} == {torch.bfloat16}


def test_a_config_that_leaves_out_the_rotary_base_is_loaded_with_a_warning(folder, caplog):
    raw = json.loads((folder / "config.json").read_text())
    del raw["llm_config"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(raw))
    load_model(folder)
    assert "llm_config.rope_theta 10000.0" in caplog.text
