"""``minivl merge --alpha`` and ``--sweep``: what is written, what is scored, what is refused, resuming."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from mini_internvl import plugins
from mini_internvl.commands import _sweep
from mini_internvl.commands._interpolate import read_ends
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.adapter import load_adapted, save_adapter, tensors_hash
from mini_internvl.model.checkpoint import CheckpointError, load_model, read_state, save_model
from mini_internvl.model.lora import LoraConfig, adapter_parameters, add_lora, merge_lora


def moved(checkpoint, folder, *, dtype="float32", layout="official"):
    """The tiny checkpoint with every weight changed a little."""
    model = load_model(checkpoint)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    files = [checkpoint / name for name in FILES if (checkpoint / name).exists()]
    return save_model(model, folder, dtype=dtype, layout=layout, extra_files=files)


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    return moved(checkpoint, tmp_path_factory.mktemp("moved") / "trained")


@pytest.fixture
def adapter(checkpoint, tmp_path):
    model = add_lora(load_model(checkpoint), LoraConfig(rank=2), seed=1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return save_adapter(model, tmp_path / "adapter", base=str(checkpoint), base_hash=tensors_hash(checkpoint))


def expected(base, other, alpha):
    first, second = (dict(state.items()) for state in (base, other))
    return {name: (1 - alpha) * first[name].double() + alpha * second[name].double() for name in first}


def assert_written(folder, wanted, atol=1e-6):
    found = dict(read_state(folder))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=0, atol=atol)


def test_a_checkpoint_on_the_line(minivl, checkpoint, trained, tmp_path):
    code, out, err = minivl("merge", trained, tmp_path / "out", "--base", checkpoint, "--alpha", 0.3)
    assert code == 0, err
    assert "0.7 * " in out
    assert "0.3 * " in out
    assert "beyond" not in out
    wanted = expected(dict(read_state(checkpoint)), dict(read_state(trained)), 0.3)
    assert_written(tmp_path / "out", wanted)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in trained.iterdir()}
    load_model(tmp_path / "out")


def test_beyond_the_trained_weights_says_so(minivl, checkpoint, trained, tmp_path):
    code, out, _ = minivl("merge", trained, tmp_path / "out", "--base", checkpoint, "--alpha", 1.5)
    assert code == 0
    assert "beyond the trained weights" in out
    code, _, err = minivl("merge", trained, tmp_path / "far", "--base", checkpoint, "--alpha", 2.5)
    assert code == 1
    assert "alpha is 2.5; give one from 0" in err


def test_an_adapter_on_the_line(minivl, checkpoint, adapter, tmp_path):
    code, out, err = minivl("merge", adapter, tmp_path / "out", "--alpha", 0.5, "--json")
    assert code == 0, err
    assert json.loads(out)["base"] == str(checkpoint)
    merged = merge_lora(load_adapted(adapter)).state_dict()
    assert_written(tmp_path / "out", expected(dict(read_state(checkpoint)), merged, 0.5))


def test_layout_and_type_are_the_trained_ones(checkpoint, tmp_path):
    trained = moved(checkpoint, tmp_path / "trained", dtype="bfloat16", layout="mini")
    done = read_ends(trained, str(checkpoint)).write(0.5, tmp_path / "out")
    assert done["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "mini_internvl"
    wanted = expected(dict(read_state(checkpoint)), dict(read_state(trained)), 0.5)
    assert_written(tmp_path / "out", {name: value.bfloat16().double() for name, value in wanted.items()}, atol=1e-2)


def test_heads_go_along_with_the_trained_weights_alone(checkpoint, trained, tmp_path):
    source = shutil.copytree(trained, tmp_path / "trained")
    (source / "heads.json").write_text("{}")
    (source / "heads.safetensors").write_bytes(b"weights")
    ends = read_ends(source, str(checkpoint))
    assert ends.write(0.5, tmp_path / "half")["heads_left_out"]
    assert not (tmp_path / "half/heads.json").exists()
    assert not ends.write(1.0, tmp_path / "one")["heads_left_out"]
    assert (tmp_path / "one/heads.safetensors").read_bytes() == b"weights"


def test_what_does_not_belong_together_is_refused(minivl, checkpoint, trained, adapter, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**raw, "template": "phi3-chat"}))
    with pytest.raises(CheckpointError, match=r"the chat template is phi3-chat in .*give the checkpoint"):
        read_ends(other, str(checkpoint))
    renamed = shutil.copytree(trained, tmp_path / "renamed")
    for path in renamed.glob("*token*.json"):
        path.write_text(path.read_text().replace("<box>", "<cup>"))
    with pytest.raises(CheckpointError, match=r"different tokenizers: token .* is '<cup>' and '<box>'"):
        read_ends(renamed, str(checkpoint))
    with pytest.raises(CheckpointError, match=r"does not say what it was trained from; .*--base"):
        read_ends(trained, None)
    with pytest.raises(CheckpointError, match="is an adapter; merge it into its base first"):
        read_ends(trained, str(adapter))
    with pytest.raises(CheckpointError, match="was trained on weights with sha256"):
        read_ends(adapter, str(trained))
    code, _, err = minivl("merge", trained, tmp_path / "out")
    assert code == 1
    assert "give --alpha to merge whole checkpoints" in err
    for more, said in (
        (["--alpha", "0.5", "--sweep", "0,1"], "give one of them"),
        (["--domain", "synth"], "the benchmarks of a --sweep"),
        (["--sweep", "0,1", "--base", checkpoint], "at least one benchmark"),
    ):
        code, _, err = minivl("merge", trained, tmp_path / "out", *more)
        assert (code, said in " ".join(err.split())) == (2, True), err
    code, _, err = minivl("merge", trained, tmp_path / "out", "--sweep", "0,a", "--domain", "synth")
    assert (code, "give alphas such as" in err) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(checkpoint, trained, tmp_path, minivl):
    """The folder of an adaptation, its evaluations in it, as ``minivl adapt`` leaves them."""
    data = plugins.find("benchmarks", "chartqa").EXAMPLE.write(tmp_path / "data")
    folder = tmp_path / "run"
    shutil.copytree(trained, folder / "train/best")
    for side, model in (("base", checkpoint), ("adapted", folder / "train/best")):
        given = ("--model", model, "--output", folder / side, "--no-report", "--device", "cpu")
        assert minivl("eval", "chartqa", "--data", data, *given)[0] == 0
        assert minivl("eval", "synth", "--kinds", "shapes", "--limit", 1, *given)[0] == 0
    shutil.move(folder / "base/answers.sqlite", folder / "answers.sqlite")
    facts = {"benchmarks": ["chartqa"], "probe": ["synth"], "checkpoint": "train/best"}
    (folder / "adapt.json").write_text(json.dumps({**facts, "model": {"path": str(checkpoint)}}))
    return folder


def test_a_sweep_of_an_adaptation(minivl, run, checkpoint, monkeypatch):
    command = ("merge", run, "--sweep", "1,0,0.5", "--device", "cpu")
    code, out, err = minivl(*command)
    assert code == 0, err
    content = json.loads((run / "merge/sweep.json").read_text())
    assert [point["alpha"] for point in content["points"]] == [0, 0.5, 1]
    for side, point in (("base", content["points"][0]), ("adapted", content["points"][-1])):
        for name, value in point["values"].items():
            kept = json.loads((run / side / name / "score.json").read_text())
            assert value == kept["primary_value"]
    middle = json.loads((run / "merge/alpha-0.5/chartqa/score.json").read_text())
    assert middle["model"]["alpha"] == 0.5
    assert middle["model"]["sha256"] not in [content["base"], content["trained"]]
    assert not (run / "merge/alpha-0.5/weights").exists()
    assert "best alpha: " in out
    assert "largest balance" in out
    picture = (run / "merge/sweep.svg").read_text()
    assert picture.count('class="ring"') == 1
    assert picture.count('class="dot"') == 3

    asked = []
    chat = _sweep.load_evaluated
    monkeypatch.setattr(_sweep, "load_evaluated", lambda *a, **k: asked.append(a) or _silent(chat(*a, **k)))
    code, again, err = minivl(*command)  # every answer is known
    assert code == 0, err
    assert again == out
    assert len(asked) == 3


def _silent(evaluated):
    def chat_batch(*arguments, **options):
        raise AssertionError("an answered question was asked again")

    evaluated.engine.chat_batch = chat_batch
    return evaluated


def test_the_best_alpha_is_written_by_the_rule(checkpoint, trained, tmp_path, monkeypatch, minivl):
    scores = {0: (10.0, 90.0), 0.25: (50.0, 85.0), 0.75: (52.0, 80.0), 1: (53.0, 20.0)}

    def score(asked, evaluated, output, cache, should_stop):
        return scores[evaluated.facts["alpha"]][asked.name == "synth"]

    monkeypatch.setattr(_sweep, "_score", score)
    data = plugins.find("benchmarks", "chartqa").EXAMPLE.write(tmp_path / "data")
    command = ("merge", trained, tmp_path / "out", "--base", checkpoint, "--sweep", "0,0.25,0.75,1")
    command += ("--domain", "chartqa", "--data", data, "--general", "synth", "--kinds", "shapes", "--limit", 1)
    code, out, err = minivl(*command, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["best"] == {"alpha": 0.25, "checkpoint": str(tmp_path / "out/best")}
    assert content["points"][1]["balance"] == pytest.approx((51 * 86) ** 0.5)
    wanted = expected(dict(read_state(checkpoint)), dict(read_state(trained)), 0.25)
    assert_written(tmp_path / "out/best", wanted)
    scores[0] = (60.0, 90.0)
    code, out, err = minivl(*command, "--json")
    assert code == 0, err
    assert json.loads(out)["best"] == {"alpha": 0, "checkpoint": str(checkpoint)}
    assert not (tmp_path / "out/best").exists()
    code, _, err = minivl("merge", trained, tmp_path, *command[3:])
    assert (code, "holds no sweep" in err) == (1, True)
