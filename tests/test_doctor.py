"""The doctor: every fault is told by file and remedy, several at once, and nothing in a folder makes it fall over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mini_internvl.commands._doctor_folder import Diagnosis, Finding
from mini_internvl.commands.doctor import command, diagnose
from mini_internvl.engine import load
from mini_internvl.model.checkpoint import load_model, save_model
from mini_internvl.model.config import VisionConfig, VLMConfig
from mini_internvl.model.files import CheckpointError, read_header
from mini_internvl.model.sizes import compose, fresh
from mini_internvl.model.vision import InternViT

GOLDEN = Path(__file__).parent / "golden" / "data"
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
LLM = "language_model.model."


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A healthy folder that may be spoilt."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    added = json.loads((copy / "added_tokens.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [added["<|im_end|>"]]}))
    return copy


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)


def told(diagnosis: Diagnosis, severity: str, file: str, what: str, remedy: str) -> Finding:
    """The finding, checked to be there."""
    for finding in diagnosis.findings:
        texts = (finding.severity, finding.file, finding.what, finding.remedy)
        if (texts[0], texts[1]) == (severity, file) and what in texts[2] and remedy in texts[3]:
            return finding
    raise AssertionError(f"no {severity} of {file} with {what!r} and {remedy!r} among {diagnosis.findings}")


def shards(folder: Path) -> tuple[Path, Path]:
    """Cut the weights in two shards with an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    (folder / WEIGHTS).unlink()
    places = {key: file for file, keys in halves.items() for key in keys}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    first, second = halves
    return folder / first, folder / second


def wrap(tensors: dict[str, torch.Tensor]) -> None:
    """As a model wrapped by PEFT is saved."""
    for name in [name for name in tensors if name.startswith("language_model.")]:
        tensor = tensors.pop(name)
        plain = "language_model.base_model.model." + name.removeprefix("language_model.")
        if name.endswith("q_proj.weight"):
            stem = plain.removesuffix("weight")
            tensors[f"{stem}base_layer.weight"] = tensor
            tensors[f"{stem}lora_A.default.weight"] = torch.zeros(4, tensor.shape[1])
            tensors[f"{stem}lora_B.default.weight"] = torch.zeros(tensor.shape[0], 4)
        else:
            tensors[plain] = tensor


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def lora_inside(folder: Path) -> None:
    edit_weights(folder, wrap)
    edit(folder / CONFIG, lambda raw: raw.update(use_llm_lora=4))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    shards(folder)[1].unlink()


def empty_index(folder: Path) -> None:
    shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}))


def idle_and_missing(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    shards(folder)[1].unlink()
    (folder / WEIGHTS).write_bytes(content)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated_shard(folder: Path) -> None:
    cut(shards(folder)[0], 0.5)


def no_index(folder: Path) -> None:
    shards(folder)
    (folder / INDEX).unlink()


def idle_shard(folder: Path) -> None:
    first, _ = shards(folder)
    shutil.copy(first, folder / "model-00003-of-00003.safetensors")


def wrong_shard(folder: Path) -> None:
    first, second = shards(folder)
    shutil.copy(first, second)


def rows(folder: Path, name: str, change: int) -> None:
    def resize(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors[name]
        tensors[name] = table[:change] if change < 0 else torch.cat([table, table[:change]])

    edit_weights(folder, resize)


def both_tables(folder: Path) -> None:
    rows(folder, f"{LLM}embed_tokens.weight", 5)
    rows(folder, "language_model.lm_head.weight", 5)


def fewer_tokens(folder: Path) -> None:
    """A tokenizer without its last two added tokens."""
    added = json.loads((folder / "added_tokens.json").read_text())
    for token in ("<box>", "</box>"):
        number = added.pop(token)
        edit(folder / "tokenizer_config.json", lambda raw, n=number: raw["added_tokens_decoder"].pop(str(n)))
    (folder / "added_tokens.json").write_text(json.dumps(added))


def more_tokens(folder: Path) -> None:
    added = json.loads((folder / "added_tokens.json").read_text())
    added |= {"<extra>": max(added.values()) + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))


def swapped_ids(folder: Path) -> None:
    edit(folder / "added_tokens.json", lambda raw: raw.update({"<img>": raw["</img>"], "</img>": raw["<img>"]}))


def set_config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, lambda raw: raw.update(fields))


def set_llm(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, lambda raw: raw["llm_config"].update(fields))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda tensors: tensors.pop(name))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


AUTO_MAP = {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
FAULTS = {
    "more rows than vocab_size": (both_tables, "error", CONFIG, "disagree", "set llm_config.vocab_size to"),
    "one table resized": (
        lambda folder: rows(folder, "language_model.lm_head.weight", -3),
        "error",
        CONFIG,
        "vocabulary sizes disagree",
        "resize both tables",
    ),
    "more tokens than rows": (more_tokens, "error", "tokenizer_config.json", "<extra>", "from one checkpoint"),
    "fewer tokens than rows": (fewer_tokens, "warning", "added_tokens.json", "2 rows have no token", "added_tokens"),
    "adapter saved inside": (lora_inside, "error", CONFIG, "wrapped by a low-rank adapter", "merge the adapter"),
    "stale use_llm_lora": (set_config(use_llm_lora=16), "warning", CONFIG, "use_llm_lora 16", "set use_llm_lora to 0"),
    "no merges.txt": (remove("merges.txt"), "error", "merges.txt", "Qwen2ForCausalLM", "copy merges.txt"),
    "broken merges": (write("merges.txt", "x y\n"), "error", "merges.txt", "broken", "copy both again"),
    "auto_map without code": (
        set_config(auto_map=AUTO_MAP),
        "warning",
        CONFIG,
        "modeling_internvl_chat.py",
        "delete auto_map",
    ),
    "code": (write("modeling_x.py", "raise SystemExit"), "note", "modeling_x.py", "is not run", ""),
    "cut weights": (lambda folder: cut(folder / WEIGHTS, 0.9), "error", WEIGHTS, "is cut off", "fetch or save it"),
    "cut header": (lambda folder: cut(folder / WEIGHTS, 0.01), "error", WEIGHTS, "inside its header", "again"),
    "cut shard": (truncated_shard, "error", "model-00001-of-00002.safetensors", "is cut off", "fetch or save it"),
    "missing shard": (missing_shard, "error", INDEX, "model-00002-of-00002.safetensors", "fetch these files"),
    "empty index": (empty_index, "error", INDEX, "names no files", "fetch the index again"),
    "idle beside a missing shard": (idle_and_missing, "warning", WEIGHTS, "is not read", "delete it"),
    "no weights": (no_weights, "error", WEIGHTS, "is missing: the folder holds no weights", "fetch the safetensors"),
    "no index": (no_index, "error", INDEX, "is missing although there are shards", "fetch model.safetensors.index"),
    "idle shard": (idle_shard, "warning", "model-00003-of-00003.safetensors", "is not read", "delete it"),
    "wrong shard": (wrong_shard, "error", "model-00002-of-00002.safetensors", "lacks", "all of one version"),
    "pickle": (pickled, "error", "pytorch_model.bin", "pickle", "convert the weights to safetensors"),
    "idle pickle": (write("pytorch_model.bin", "x"), "note", "pytorch_model.bin", "not read", ""),
    "Git LFS pointer": (write(WEIGHTS, POINTER), "error", WEIGHTS, "Git LFS pointer", "git lfs pull"),
    "error page": (write(WEIGHTS, "<html>Not found</html>"), "error", WEIGHTS, "text file", "fetch it again"),
    "other model": (
        write(CONFIG, '{"model_type": "llava", "architectures": ["Llava"]}'),
        "error",
        CONFIG,
        'model_type "llava"',
        "internvl_chat",
    ),
    "language model alone": (
        write(CONFIG, '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'),
        "error",
        CONFIG,
        "a language model alone",
        "minivl build",
    ),
    "half a config": (
        write(CONFIG, '{"model_type": "internvl_chat", "llm_config": {'),
        "error",
        CONFIG,
        "JSON",
        "fetch",
    ),
    "no vision_config": (
        lambda folder: edit(folder / CONFIG, lambda raw: raw.pop("vision_config")),
        "error",
        CONFIG,
        "lacks vision_config",
        "copy config.json",
    ),
    "no config": (remove(CONFIG), "error", CONFIG, "is missing", "copy it"),
    "unknown backbone": (set_llm(architectures=["Gemma"]), "error", CONFIG, "Gemma", "copy config.json"),
    "field of a wrong kind": (
        set_llm(num_attention_heads="four"),
        "error",
        CONFIG,
        "a whole number",
        "copy config.json",
    ),
    "absurd depth": (set_llm(num_hidden_layers=10**9), "error", CONFIG, "from 1 to 1,000", "copy config.json"),
    "special tokens": (fewer_tokens, "error", "added_tokens.json", "<box>, </box>", "copy added_tokens.json"),
    "other context id": (
        set_config(img_context_token_id=3),
        "error",
        CONFIG,
        "img_context_token_id is 3",
        "set img_context_token_id to",
    ),
    "two spellings": (swapped_ids, "error", "added_tokens.json", "gives <img> the id", "from one checkpoint"),
    "other template": (
        set_config(template="phi3-chat"),
        "error",
        "tokenizer_config.json",
        'template "phi3-chat"',
        "template",
    ),
    "unknown template": (set_config(template="vicuna"), "error", CONFIG, '"vicuna"', "Hermes-2"),
    "no generation config": (
        remove("generation_config.json"),
        "warning",
        "generation_config.json",
        "is missing",
        "eos_token_id",
    ),
    "no eos": (
        write("generation_config.json", "{}"),
        "warning",
        "generation_config.json",
        "no token ends",
        "set it to",
    ),
    "other eos": (
        write("generation_config.json", '{"eos_token_id": 0}'),
        "warning",
        "generation_config.json",
        "<|im_end|>",
        "to eos_token_id",
    ),
    "missing tensor": (drop("mlp1.1.weight"), "error", WEIGHTS, "missing: mlp1.1.weight", "not complete"),
    "tied head": (drop("language_model.lm_head.weight"), "error", WEIGHTS, "lm_head", "write a copy"),
    "unexpected tensor": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update(x=torch.zeros(2))),
        "error",
        WEIGHTS,
        "unexpected: x",
        "one and the same checkpoint",
    ),
    "misshapen tensor": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update({"mlp1.1.bias": torch.zeros(5)})),
        "error",
        WEIGHTS,
        "mlp1.1.bias has shape (5,)",
        "one and the same checkpoint",
    ),
    "other depth": (set_llm(num_hidden_layers=3), "error", WEIGHTS, "missing", "llm_config.num_hidden_layers to 2"),
}


def test_a_healthy_folder_is_healthy(folder):
    diagnosis = diagnose(folder, deep=True)
    assert diagnosis.healthy
    assert diagnosis.findings == ()
    assert diagnosis.layout == "official"
    facts = diagnosis.facts
    assert facts["language model"] == "Qwen2ForCausalLM"
    assert facts["template"] == "Hermes-2"
    assert facts["tokenizer"].startswith("bpe, ")
    assert facts["types"] == "F32 100 %"
    assert facts["weights"].startswith("1 file, ")
    assert facts["parameters"] == sum(p.numel() for p in load_model(folder).parameters())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_its_file_and_remedy(folder, fault):
    spoil, severity, file, what, remedy = FAULTS[fault]
    spoil(folder)
    diagnosis = diagnose(folder)
    told(diagnosis, severity, file, what, remedy)
    errors = [finding for finding in diagnosis.findings if finding.severity == "error"]
    assert diagnosis.healthy == (not errors)
    unexplained = [finding for finding in diagnosis.findings if "could not be examined" in finding.what]
    assert not unexplained
    for finding in diagnosis.findings:
        assert "\n" not in finding.what + finding.remedy
        assert finding.remedy or finding.severity == "note"


BESIDES = ("fewer tokens than rows", "idle beside a missing shard")
"""Faults whose folder has an error besides the finding."""


@pytest.mark.parametrize("fault", [name for name, row in FAULTS.items() if row[1] != "error" and name not in BESIDES])
def test_what_is_no_error_still_answers(folder, fault):
    FAULTS[fault][0](folder)
    assert diagnose(folder).healthy
    load(folder, device="cpu")


def test_an_adapter_inside_is_told_once_and_hides_nothing(folder):
    lora_inside(folder)
    assert [finding.file for finding in diagnose(folder).findings] == [CONFIG]
    edit_weights(folder, lambda tensors: tensors.pop("mlp1.0.bias"))
    told(diagnose(folder), "error", WEIGHTS, "missing: mlp1.0.bias", "")


def test_several_faults_are_all_told(folder):
    for name in ("unknown template", "cut weights", "auto_map without code", "no generation config"):
        FAULTS[name][0](folder)
    (folder / "vocab.json").unlink()
    diagnosis = diagnose(folder)
    files = {finding.file for finding in diagnosis.findings}
    assert {CONFIG, WEIGHTS, "vocab.json"} <= files
    assert [finding.severity for finding in diagnosis.findings] == sorted(
        (finding.severity for finding in diagnosis.findings), key=["error", "warning", "note"].index
    )
    (folder / "vocab.json").write_text("{")
    told(diagnose(folder), "error", "vocab.json", "JSON", "fetch the file again")


def test_values_are_read_only_when_asked(folder):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mlp1.1.weight"][0, 0] = float("nan")
        tensors[f"{LLM}norm.weight"][1] = float("inf")

    edit_weights(folder, spoil)
    assert diagnose(folder).healthy
    seen = []
    diagnosis = diagnose(folder, deep=True, progress=lambda done, total: seen.append((done, total)))
    finding = told(diagnosis, "error", WEIGHTS, "2 tensors hold NaN or infinity", "earlier checkpoint")
    assert "mlp1.1.weight" in finding.what
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_leftovers_of_an_interrupted_save_are_told(folder):
    (folder.parent / ".model.host-1-abc").mkdir()
    told(diagnose(folder), "warning", ".model.host-1-abc", "interrupted", "delete")
    shutil.move(folder, folder.with_name(".model.old"))
    diagnosis = diagnose(folder)
    told(diagnosis, "error", ".model.old", "the only copy", "rename")
    told(diagnosis, "error", "model", "does not exist", "")


def test_a_run_folder_points_to_its_checkpoint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run" / "best")
    told(diagnose(tmp_path / "run"), "error", CONFIG, "training run", "best")
    assert not diagnose(folder / CONFIG).healthy
    assert not diagnose(tmp_path / "nowhere").healthy


@pytest.mark.parametrize("kind", ["internlm2", "phi3", "qwen2"])
def test_every_backbone_is_compared_by_its_official_names(kind):
    diagnosis = diagnose(GOLDEN / "models" / kind)
    errors = [finding for finding in diagnosis.findings if finding.severity == "error"]
    assert len(errors) == 1
    wanted = {"internlm2": "tokenizer.model", "phi3": "tokenizer.model", "qwen2": "vocab.json"}[kind]
    assert errors[0].file == wanted  # these folders come without a tokenizer


@pytest.mark.parametrize("layout", ["native", "mini"])
def test_the_other_layouts_are_known(folder, tmp_path, layout):
    saved = save_model(load_model(folder), tmp_path / layout, layout=layout)
    diagnosis = diagnose(saved)
    assert diagnosis.layout == layout
    assert diagnosis.facts["language model"] == "Qwen2ForCausalLM"
    assert {finding.file for finding in diagnosis.findings if finding.severity == "error"} <= {
        "tokenizer.json",
        "vocab.json",
    }
    name = next(name for name in load_file(saved / WEIGHTS) if name.endswith("o_proj.weight"))
    drop(name)(saved)
    told(diagnose(saved), "error", WEIGHTS, f"missing: {name}", "not complete")


def test_native_names_in_memory_are_known_too(folder, tmp_path):
    saved = save_model(load_model(folder), tmp_path / "native", layout="native")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        table = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
        table |= {name: f"model.{name}" for name in ("vision_tower.", "multi_modal_projector.")}
        for name in list(tensors):
            old = next(old for old in table if name.startswith(old))
            tensors[table[old] + name.removeprefix(old)] = tensors.pop(name)

    edit_weights(saved, rename)
    assert not [finding for finding in diagnose(saved).findings if finding.file == WEIGHTS]


def test_the_pickle_of_an_adapter_is_named(tmp_path):
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    remedy = "save them as adapter_model.safetensors"
    told(diagnose(folder), "error", "adapter_model.bin", "holds the weights as a pickle", remedy)


def test_a_bare_encoder_is_healthy():
    diagnosis = diagnose(GOLDEN / "models" / "intern_vit_teacher")
    assert diagnosis.layout == "vision"
    assert diagnosis.healthy


def test_a_bare_encoder_with_a_missing_tensor(tmp_path):
    raw = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 14}
    tensors = InternViT(VisionConfig.from_official(raw)).state_dict()
    save_file({k: v for k, v in tensors.items() if k != "encoder.layers.0.ls1"}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    told(diagnose(tmp_path), "error", WEIGHTS, "encoder.layers.0.ls1", "not complete")


def adapter(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": "OpenGVLab/InternVL2-1B",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    pair = {f"{name}.lora_A.weight": torch.zeros(2, 8), f"{name}.lora_B.weight": torch.zeros(8, 2)}
    save_file(pair, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_known_and_its_faults_told(tmp_path):
    diagnosis = diagnose(adapter(tmp_path / "a"))
    assert diagnosis.layout == "adapter"
    assert diagnosis.findings == ()
    file = "adapter_model.safetensors"
    told(diagnose(adapter(tmp_path / "a", r=4)), "error", file, "has rank 2", "save the adapter again")
    told(diagnose(adapter(tmp_path / "a", peft_type="IA3")), "error", "adapter_config.json", "IA3", "LoRA")
    elsewhere = diagnose(adapter(tmp_path / "a", base_model_name_or_path="/nowhere/base"))
    told(elsewhere, "warning", "adapter_config.json", "/nowhere/base", "base_model_name_or_path")
    tensors = load_file(tmp_path / "a" / file)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, tmp_path / "a" / file)
    told(diagnose(tmp_path / "a"), "error", file, "without their partner", "again")
    (tmp_path / "a" / file).unlink()
    told(diagnose(tmp_path / "a"), "error", file, "is missing", "fetch")


def test_what_loading_refuses_is_never_healthy(folder, tmp_path):
    """Loading is tried, on headers alone: what the checks of the doctor's own do not see is told all the same."""
    saved, tensors = (folder / WEIGHTS).read_bytes(), load_file(folder / WEIGHTS)
    edit_weights(folder, lambda tensors: tensors.update({"mlp1.1.bias": tensors["mlp1.1.bias"].int()}))
    told(diagnose(folder), "error", WEIGHTS, "mlp1.1.bias is of type I32", "real numbers")
    (folder / WEIGHTS).write_bytes(saved)
    (folder / "parts").mkdir()
    (folder / "parts/a.safetensors").write_bytes(saved[:-8])
    (folder / WEIGHTS).unlink()
    names = dict.fromkeys(tensors, "parts/a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    told(diagnose(folder), "error", "parts/a.safetensors", "is cut off", "again")
    (folder / "parts/a.safetensors").write_bytes(saved)
    assert diagnose(folder).healthy
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../a.safetensors")}))
    told(diagnose(folder), "error", INDEX, "outside the folder", "beside")


def test_an_adapter_that_does_not_fit_its_base_is_told(folder, tmp_path):
    place = adapter(tmp_path / "a", base_model_name_or_path=str(folder))
    told(diagnose(place), "error", "adapter_model.safetensors", "adapts a layer of shape", "")
    (tmp_path / "a/adapter_model.safetensors").unlink()
    place = adapter(tmp_path / "b", alpha_pattern={"q_porj": 64})
    told(diagnose(place), "warning", "adapter_config.json", '"q_porj"', "correct the name")
    place = adapter(tmp_path / "c", init_lora_weights="pissa")
    told(diagnose(place), "error", "adapter_config.json", "init_lora_weights is 'pissa'", "save the adapter again")


def test_values_taken_for_granted_are_listed(folder):
    edit(folder / CONFIG, lambda raw: raw["llm_config"].pop("rope_theta"))
    diagnosis = diagnose(folder)
    assert diagnosis.healthy
    told(diagnosis, "warning", CONFIG, "llm_config.rope_theta 10000.0", "original checkpoint")


def test_headers_are_read_without_weights(folder):
    header = read_header(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    assert {name: stored.shape for name, stored in header.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="4 bytes longer"):
        read_header(folder / WEIGHTS)


def run(folder: Path, **options: bool) -> int:
    """The exit code of the command."""
    with pytest.raises(typer.Exit) as done:
        command(folder, **options)
    return done.value.exit_code


def test_the_command_prints_lines_or_json_and_gives_the_exit_code(folder, capsys):
    assert run(folder) == 0
    assert "healthy" in capsys.readouterr().out
    FAULTS["cut weights"][0](folder)
    assert run(folder) == 1
    out = capsys.readouterr().out
    assert f"error    {WEIGHTS}: is cut off" in out
    assert "fix: fetch or save it again" in out
    assert out.strip().endswith("must be mended (1 error)")
    assert run(folder, json=True) == 1
    fields = json.loads(capsys.readouterr().out)
    assert fields["healthy"] is False
    assert fields["findings"][0]["file"] == WEIGHTS


def test_a_sentencepiece_checkpoint_is_healthy(tmp_path):
    llm = {"architectures": ["Phi3ForCausalLM"], "vocab_size": 32020, "hidden_size": 64, "intermediate_size": 64}
    llm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    llm |= {"max_position_embeddings": 4096, "rope_theta": 10000.0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14, "norm_type": "layer_norm", "qk_normalization": False}
    vision |= {"layer_norm_eps": 1e-6, "qkv_bias": True}
    raw = compose(vision, llm, image_size=28, max_tiles=1, img_context_token_id=32013)
    model = fresh(VLMConfig.from_official(raw), seed=0)
    model.image_token_id = 32013
    tokenizer = sorted((GOLDEN / "tokenizers" / "phi3").iterdir())
    diagnosis = diagnose(save_model(model, tmp_path / "model", extra_files=tokenizer))
    assert diagnosis.healthy
    assert [finding.file for finding in diagnosis.findings] == ["generation_config.json"]
    assert diagnosis.facts["tokenizer"] == "sentencepiece, 32,020 tokens"


NAMES = (
    *(CONFIG, WEIGHTS, INDEX, "adapter_config.json", "adapter_model.safetensors", "added_tokens.json", "merges.txt"),
    *("vocab.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "model-00001-of-00002.safetensors", "x.py", "pytorch_model.bin"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    *("model_type", "architectures", "vision_config", "llm_config", "template", "weight_map", "auto_map", "official"),
    *("text_config", "hidden_size", "patch_size", "eos_token_id", "added_tokens_decoder", "r", "peft_type"),
    *("use_llm_lora", "added_tokens", "additional_special_tokens", "bos_token", "base_model_name_or_path"),
)
VALUES = JSON | st.sampled_from(["internvl_chat", "internvl", "mini_internvl", "intern_vit_6b", ["Qwen2ForCausalLM"]])
CONTENT = (
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(lambda value: json.dumps(value).encode())
    | JSON.map(json.dumps).map(lambda text: len(text.encode()).to_bytes(8, "little") + text.encode())
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(st.sampled_from(NAMES), CONTENT, max_size=6), keep=st.booleans(), deep=st.booleans())
def test_no_garbage_makes_it_fall_over(checkpoint, tmp_path, files, keep, deep):
    folder = tmp_path / "garbage"
    shutil.rmtree(folder, ignore_errors=True)
    if keep:
        shutil.copytree(checkpoint, folder)
    else:
        folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    diagnosis = diagnose(folder, deep=deep)
    assert all(finding.severity in ("error", "warning", "note") for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        (finding.what + finding.remedy + finding.file).encode()
    if not keep:
        assert not diagnosis.healthy
