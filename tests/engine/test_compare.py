"""Two engines side by side: the same one agrees, every kind of difference is told, the command gives its exit code."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import typer

from mini_internvl.commands import verify
from mini_internvl.engine import Engine, GenerationConfig, load
from mini_internvl.engine.compare import END, Comparison, compare, default_prompts
from mini_internvl.engine.engine import user
from mini_internvl.inputs.chat import find_template
from mini_internvl.model.checkpoint import load_model, save_model

GREEDY = GenerationConfig(max_new_tokens=8)


@pytest.fixture(autouse=True)
def _one_thread():
    """Fixed, so that sums come out in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def second(checkpoint: Path) -> Engine:
    """An engine of the same weights as ``engine``, to be changed."""
    engine = load(checkpoint, device="cpu", dtype="float32")
    with torch.no_grad():
        for parameter in engine.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return engine


def short(first: Engine, second: Engine, **options: object) -> Comparison:
    """Compared on one prompt with an image and one without."""
    prompts = {name: default_prompts()[name] for name in ("wide", "Chinese")}
    return compare(first, second, prompts, max_new_tokens=8, **options)


def test_the_same_model_agrees_on_all_prompts(engine, second):
    seen = []
    result = compare(engine, second, max_new_tokens=6, progress=seen.append)
    assert result.equal
    assert result.prompts == tuple(seen)
    assert (result.tolerance, result.reason) == (1e-3, "both float32")
    by_name = {prompt.name: prompt for prompt in result.prompts}
    assert len(by_name["wide"].tiles) == 1
    assert by_name["wide"].tiles[0] > 1
    assert len(by_name["two images"].tiles) == 2
    assert by_name["Chinese"].tiles == ()
    for prompt in result.prompts:
        assert (prompt.logits, prompt.agreement, prompt.answer_difference) == (0.0, 1.0, None)


def test_the_images_are_the_same_every_time():
    images = [
        [part["image"].tobytes() for message in prompts.values() for part in message[0]["content"] if "image" in part]
        for prompts in (default_prompts(), default_prompts())
    ]
    assert images[0] == images[1]
    assert len(images[0]) == 5


def test_a_changed_weight_is_measured(engine, second):
    with torch.no_grad():
        second.model.language_model.lm_head.weight[7] += 0.5
    result = short(engine, second)
    assert not result.equal
    prompt = result.prompts[1]
    ids = engine.prepare(default_prompts()["Chinese"]).input_ids
    rows = torch.tensor([ids])
    with torch.inference_mode():
        expected = (engine.model(rows) - second.model(rows)).abs().max()
    assert prompt.logits == pytest.approx(float(expected), rel=1e-5)
    assert short(engine, second, tolerance=1e9).equal == all(p.agreement == 1.0 for p in result.prompts)


def test_the_first_differing_token_is_told(engine, second):
    answer = [step.token for step in engine.generate([engine.prepare(default_prompts()["Chinese"])], GREEDY)[0]]
    with torch.no_grad():
        second.model.language_model.lm_head.weight[answer[0]] = 0.0
    prompt = short(engine, second).prompts[1]
    where = prompt.answer_difference
    assert where.index == 0
    assert f"({answer[0]})" in where.first
    assert where.first != where.second
    assert where.gap > 0
    assert prompt.agreement < 1


def test_an_answer_that_ends_early_differs(engine, second):
    ids = [step.token for step in engine.generate([engine.prepare(default_prompts()["Chinese"])], GREEDY)[0]]
    index = next(i for i, token in enumerate(ids) if token not in ids[:i] and i > 0)
    second.stop_ids = frozenset([*second.stop_ids, ids[index]])
    prompt = short(engine, second).prompts[1]
    assert prompt.logits == 0.0
    assert prompt.answer_difference.index == index
    assert prompt.answer_difference.second == END
    assert prompt.answer_difference.gap == 0.0
    assert prompt.agreement == index / len(ids)


def test_other_ids_are_told_instead_of_logits(engine, second):
    second.processor = dataclasses.replace(second.processor, template=find_template("internvl2_5"))
    prompt = short(engine, second).prompts[1]
    assert prompt.logits is None
    assert prompt.agreement is None
    assert not prompt.within(math.inf)
    assert "ids differ from place" in prompt.problem
    where = prompt.prompt_difference
    ids = [e.prepare(default_prompts()["Chinese"]).input_ids for e in (engine, second)]
    assert ids[0][: where.index] == ids[1][: where.index]
    assert f"({ids[0][where.index]})" in where.first
    assert f"({ids[1][where.index]})" in where.second


def test_other_tiles_are_told(engine, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"max_dynamic_patch": 1}))
    prompt = short(engine, load(folder, device="cpu")).prompts[0]
    assert "images are cut into" in prompt.problem
    assert prompt.logits is None


def test_not_a_number_is_never_within(engine, second):
    with torch.no_grad():
        second.model.language_model.norm.weight[0] = float("nan")
    result = short(engine, second, tolerance=1e30)
    assert result.prompts[0].logits == math.inf
    assert not result.equal


def test_a_16_bit_model_gets_a_wider_tolerance(engine, second):
    second.model.to(torch.bfloat16)
    result = short(engine, second)
    assert (result.tolerance, result.reason) == (0.25, "float32 against bfloat16")
    assert result.prompts[0].logits > 0


def test_what_cannot_be_compared_is_refused(engine):
    with pytest.raises(ValueError, match="no prompts"):
        compare(engine, engine, {})
    with pytest.raises(ValueError, match="tolerance is -1"):
        compare(engine, engine, {"a": user("Hi")}, tolerance=-1)


@pytest.fixture
def prompts(tmp_path: Path, image: Path) -> Path:
    """One row of messages with an image and an answer, one of conversations."""
    parts = [{"type": "image", "image": image.name}, {"type": "text", "text": "What is this?"}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A disc."}]},
        {"id": "b", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(first: str, second: str, **options: object) -> int:
    """The exit code of the command."""
    with pytest.raises(typer.Exit) as done:
        verify.command(first, second, **options)
    return done.value.exit_code


def test_the_command_on_prompts_of_a_file(checkpoint, prompts, tmp_path, capsys):
    copy = save_model(load_model(checkpoint), tmp_path / "copy", extra_files=_tokenizer(checkpoint))
    assert run(str(checkpoint), str(copy), prompts=prompts, max_new_tokens=3, device="cpu") == 0
    out, err = capsys.readouterr()
    assert "the same model" in out
    assert "both float32" in out
    assert err.count("logits within 0") == 2
    code = run(str(checkpoint), str(copy), prompts=prompts, max_new_tokens=3, device="cpu", json=True)
    fields = json.loads(capsys.readouterr().out)
    assert (code, fields["equal"]) == (0, True)
    assert [prompt["name"] for prompt in fields["prompts"]] == ["1", "b"]


def test_the_command_on_different_models(checkpoint, prompts, tmp_path, capsys):
    model = load_model(checkpoint)
    with torch.no_grad():
        model.mlp1[3].weight.add_(1.0)
    other = save_model(model, tmp_path / "other", extra_files=_tokenizer(checkpoint))
    assert run(str(checkpoint), str(other), prompts=prompts, max_new_tokens=3, device="cpu") == 1
    out = capsys.readouterr().out
    assert "not the same model" in out
    assert "differs" in out


def test_a_bad_file_of_prompts_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl is missing"):
        verify.command("a", "b", prompts=tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no prompts"):
        verify.command("a", "b", prompts=tmp_path / "empty.jsonl")


def _tokenizer(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix != ".safetensors" and path.name != "config.json"]
