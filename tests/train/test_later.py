"""Each later generation goes the whole way of a checkpoint: built, converted, trained, merged, compared, asked.

The steps are the commands that people give, each on what the one before it wrote. Whole vocabularies make each of them
slow, so tokenizers are read once and merging is proved on two prompts.
"""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mini_internvl.commands import merge
from mini_internvl.engine.compare import default_prompts
from mini_internvl.inputs import tokenizer_files
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.lora import lora_layers
from tests.later import CONTEXT
from tests.train.test_build import base_tokenizer


@pytest.fixture(scope="module")
def read_once():
    """One reading of each vocabulary, however many folders hold it; and two prompts of the six to prove a merge on."""
    read, known = tokenizer_files._bpe, {}

    def once(folder, added, pad_token):
        key = (*((folder / name).read_bytes() for name in ("vocab.json", "merges.txt")), tuple(added), pad_token)
        if key not in known:
            known[key] = read(folder, added, pad_token)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_files, "_bpe", once)
        patch.setattr(merge, "default_prompts", lambda: dict([*default_prompts().items()][:2]))
        yield


@pytest.fixture
def run(minivl, read_once):
    """``run("merge", ...)`` -> what it printed as JSON, or its text; a failure shows what it said."""

    def command(*arguments):
        code, out, told = minivl(*arguments)
        assert code == 0, told + out
        return json.loads(out) if "--json" in arguments else out

    return command


def language_model(source, folder):
    """The language model of a whole folder alone, in its plain form."""
    folder.mkdir()
    base_tokenizer(source.with_name(f"{source.name}-tokenizer"), folder)
    raw = json.loads((source / "config.json").read_text())["llm_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    state, prefix = load_file(source / "model.safetensors"), "language_model."
    save_file(
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)},
        folder / "model.safetensors",
    )
    return folder


def write_recipe(folder, model):
    """Two steps with adapters on two pictures."""
    for number in range(2):
        Image.effect_noise((100, 60), 90).convert("RGB").save(folder / f"{number}.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    rows = [{"id": str(number), "image": f"{number}.png", "conversations": turns} for number in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "name": "adapt", "train": ["llm", "vision"], "steps": 2, "batch_size": 2, "lr": 0.05, "max_tiles": 2,
        "data": [{"kind": "jsonl", "path": str(folder / "rows.jsonl")}],
    }  # fmt: skip
    recipe = {"name": "later", "model": str(model), "lora": {"rank": 2}, "stages": [stage]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def write_own(path):
    """Ten pictures, each with a question."""
    rows = []
    for number in range(10):
        Image.effect_noise((60 + number, 60), 90).convert("RGB").save(path.with_name(f"own{number}.png"))
        turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "ab"[number % 2]}]
        rows.append({"id": str(number), "image": f"own{number}.png", "conversations": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", CONTEXT)
def test_a_later_generation_goes_the_whole_way(kind, later, run, tmp_path):
    source, other = later(kind), "mini" if kind.endswith("-Flash") else "native"
    start = source
    if other == "native":  # a router is trained, not built
        llm, start = language_model(source, tmp_path / "llm"), tmp_path / "start"
        built = run("build", "--vision", source, "--llm", llm, "--template", "internvl2_5", start, "--json")
        assert (built["id of <IMG_CONTEXT>"], built["template"]) == (CONTEXT[kind], "internvl2_5")
        before, after = (load_file(folder / "model.safetensors") for folder in (source, start))
        kept = [name for name in after if name.startswith("vision_model") or ".layers." in name]
        assert kept
        assert all(torch.equal(before[name], after[name]) for name in kept)
    run("convert", start, tmp_path / "other", "--to", other)

    run("train", write_recipe(tmp_path, tmp_path / "other"), "--output", tmp_path / "run", "--workers", 0)
    adapter = tmp_path / "run" / "best"
    assert is_adapter(adapter)
    layers = lora_layers(load_adapted(adapter)).values()
    assert any(layer.lora_B.any() for layer in layers)

    merged = tmp_path / "merged"
    told = run("merge", adapter, merged, "--json")
    assert told["difference"] <= told["tolerance"]
    assert told["changed"] > 0
    run("convert", merged, tmp_path / "back", "--to", "official")
    assert run("doctor", tmp_path / "back", "--json")["healthy"]
    assert run(
        "verify", adapter, tmp_path / "back", "--prompts", tmp_path / "rows.jsonl", "--max-new-tokens", 2, "--json"
    )["equal"]
    scored = run(
        "eval", "synth", "--limit", 1, "--kinds", "shapes", "--model", tmp_path / "back", "--max-tiles", 1,
        "--output", tmp_path / "scores", "--no-report", "--json",
    )  # fmt: skip
    assert scored["results"][0]["items"] > 0
    assert not scored["failed"]
    adapted = run(
        "adapt", write_own(tmp_path / "own.jsonl"), "--model", tmp_path / "back", "--lora", 2, "--epochs", 0.2,
        "--workers", 0, "--max-tiles", 1, "--general", "none", "--probe", "none", "--no-report",
        "--output", tmp_path / "adapted", "--json",
    )  # fmt: skip
    assert (adapted["domain"], adapted["benchmarks"]) == ("own", ["own"])
    assert is_adapter(tmp_path / "adapted" / "train" / "best")
