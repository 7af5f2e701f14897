"""``minivl quantize``: from a checkpoint to a folder that answers through OpenVINO, compared before it is kept."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("openvino")
pytest.importorskip("nncf")
from mini_internvl import load, load_model
from mini_internvl.commands.quantize import rows
from mini_internvl.engine import beside, hub
from mini_internvl.engine.backends import openvino as backend
from mini_internvl.evaluate.model import load_evaluated
from mini_internvl.model.files import CheckpointError
from mini_internvl.quantize import export, run
from mini_internvl.quantize.agreement import Agreement


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano in int4, its encoder in int8, inside a copy of nano's folder."""
    model = tmp_path_factory.mktemp("quantised") / "model"
    shutil.copytree(hub.NANO, model)
    told: list[str] = []
    theirs = logging.NullHandler()
    logging.getLogger("nncf").addHandler(theirs)
    folder, _ = run.quantise(
        str(model),
        None,
        export.Plan(bits=4),
        pictures=None,
        tiles=16,
        limit=2,
        force=False,
        progress=lambda title, *_: told.append(title),
    )
    assert folder == model / beside.FOLDER
    assert {"decoder", "encoder", "comparing"} <= set(told)
    assert theirs.level == logging.NOTSET  # what listens to NNCF hears the rest as before
    logging.getLogger("nncf").removeHandler(theirs)
    return folder


@pytest.fixture
def model(quantised: Path, tmp_path: Path) -> Path:
    """A copy of nano with its quantised form, which was twice as fast."""
    folder = tmp_path / "copied"
    shutil.copytree(quantised.parent, folder)
    edit(folder, plain=2.0)
    return folder


def edit(model: Path, *, plain: float, **facts: object) -> None:
    """Say that the plain model took so many seconds, and the quantised one a single one."""
    path = model / beside.FOLDER / backend.FACTS
    told = json.loads(path.read_text())
    told["agreement"]["seconds"] = {"plain": plain, "quantised": 1.0}
    path.write_text(json.dumps(told | facts))


@pytest.mark.slow
def test_a_quantised_nano_answers_as_before_and_says_what_it_is(quantised: Path) -> None:
    facts = json.loads((quantised / backend.FACTS).read_text())
    same, score = facts["agreement"], facts["agreement"]["score"]
    assert facts["bits"] == 4
    assert facts["bytes"] < facts["plain_bytes"] / 2
    assert 0.99 < same["worst_cosine"] <= same["cosine"] <= 1
    assert same["tokens"] >= 0.9
    assert same["places"] > same["pictures"]
    assert all(same["seconds"][name] > 0 for name in ("plain", "quantised"))
    assert score["items"] == 6
    assert abs(score["plain"] - score["quantised"]) < 40
    assert "Drawn images" in (quantised / run.PAGE).read_text()
    operations = pytest.importorskip("openvino").Core().read_model(quantised / backend.DECODER).get_ops()
    assert not any(one.get_type_name() == "Subtract" for one in operations)  # zero points, which cost time
    assert [row[0] for row in rows(facts)][1] == "features, mean cosine"


@pytest.mark.slow
def test_the_folder_is_chosen_by_what_it_holds(quantised: Path, minivl, image: Path) -> None:
    assert load(quantised).backend.arithmetic == "openvino cpu int4 int8"
    code, out, err = minivl("ask", image, "What colour is the square?", "--model", quantised, "--json")
    assert code == 0, err
    assert json.loads(out)["text"]
    code, out, _ = minivl("eval", "synth", "--model", quantised, "--limit", 1, "--output", quantised.parent / "scored")
    assert code == 0
    code, _, err = minivl("quantize", quantised, quantised.parent / "again")
    assert code == 1
    assert "is quantised already" in err
    with pytest.raises(ValueError, match=r"is torch's, and .* is quantised already"):
        load(quantised, dtype="int8")
    with pytest.raises(CheckpointError, match=r"only answers, through OpenVINO; give the checkpoint"):
        load_model(quantised)
    code, out, _ = minivl("doctor", quantised)
    assert code == 1
    assert "minivl quantize wrote this folder" in out


@pytest.mark.slow
def test_what_lies_beside_a_model_answers_for_it_where_it_was_faster(model: Path, minivl, image: Path) -> None:
    code, out, err = minivl("ask", image, "What colour is the square?", "--model", model)
    assert (code, bool(out)) == (0, True)
    assert "OpenVINO answers with int4 weights, 2.0 times as fast when it was measured; --backend torch takes" in err
    _, _, err = minivl("ask", image, "What colour is the square?", "--model", model, "--backend", "torch")
    assert "OpenVINO" not in err
    plain = "torch cpu float32"
    for engine in (load(model, "own"), load(model, dtype="float32"), load_evaluated(str(model)).engine):
        assert (engine.arithmetic, engine.note) == (plain, "")
    edit(model, plain=1.1)
    assert load(model).arithmetic == plain
    edit(model, plain=2.0, problem="too few tokens agree")
    assert load(model).arithmetic == plain


@pytest.mark.slow
def test_what_lies_beside_a_model_is_left_out_when_the_model_has_changed(model: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(backend, "missing", lambda: f"OpenVINO is not installed; {backend.INSTALL}")
        engine = load(model)
    assert engine.arithmetic == "torch cpu float32"
    assert engine.note.endswith(f"would answer 2.0 times as fast: OpenVINO is not installed; {backend.INSTALL}")
    (model / "notes.txt").write_text("What decides no answer may change.")
    assert load(model).arithmetic.startswith("openvino")
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    engine = load(model)
    assert engine.arithmetic == "torch cpu float32"
    assert engine.note.endswith(f"was made of other files; write it again: minivl quantize {model}")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no graph", "a broken graph", "broken facts", "facts of before"])
def test_a_damaged_form_beside_a_model_does_not_keep_the_model_from_answering(model: Path, damage: str) -> None:
    form = model / beside.FOLDER
    if damage == "no graph":
        (form / backend.ENCODER).unlink()
    elif damage == "facts of before":
        (form / backend.FACTS).write_text('{"bits": 4, "encoder_bits": 8}')
    else:
        (form / (backend.DECODER if damage == "a broken graph" else backend.FACTS)).write_text("<net/>")
    engine = load(model)
    assert engine.arithmetic == "torch cpu float32"
    assert engine.note.startswith("the quantised form is left out: ")
    assert str(form) in engine.note


@pytest.mark.slow
def test_a_form_that_would_not_be_used_is_told(model: Path, minivl) -> None:
    """Quantising again takes the place of the one that is there."""
    (model / beside.FOLDER / "agreement").rename(model / "earlier")
    code, out, err = minivl("quantize", model, "--tiles", 4, "--limit", 1, "--bits", 8, "--force")
    assert code == 0, err
    assert json.loads((model / beside.FOLDER / backend.FACTS).read_text())["bits"] == 8
    used = load(model).arithmetic.startswith("openvino")
    assert (f"--model {model} still answers as it is" in err) is not used
    assert f"--model {model if used else model / beside.FOLDER}" in out.splitlines()[-1]


def test_a_model_without_a_folder_needs_one_to_write(minivl) -> None:
    code, _, err = minivl("quantize", "nano")
    assert code == 1
    assert "nano is no folder of yours; say where to write: minivl quantize MODEL OUTPUT" in err


@pytest.mark.slow
def test_what_cannot_be_read_by_this_version_names_the_fix(quantised: Path, tmp_path: Path) -> None:
    for path in quantised.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / backend.DECODER).write_text("<net/>")
    with pytest.raises(ValueError, match=r"made by OpenVINO .* write it again with minivl quantize"):
        backend.load(tmp_path)
    (tmp_path / "encoder.bin").unlink()
    with pytest.raises(ValueError, match=r"encoder\.bin is missing"):
        backend.load(tmp_path)


@pytest.mark.slow
def test_an_answer_that_changes_too_much_is_refused(checkpoint: Path, minivl, tmp_path: Path) -> None:
    """Random weights have no margin, so int4 changes their tokens; nothing is left of the refused folder."""
    for index in range(2):
        Image.new("RGB", (60, 60), (90 * index, 80, 120)).save(tmp_path / f"{index}.png")
    out = tmp_path / "out"
    options = ("--pictures", tmp_path, "--tiles", 2, "--limit", 1)
    code, _, err = minivl("quantize", checkpoint, out, *options)
    assert code == 1
    assert "of the tokens agree, less than 85%; nothing was written" in err
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_bounds_are_those_of_the_bits() -> None:
    figures = {"pictures": 1, "cosine": 0.99, "worst_cosine": 0.9, "tokens": 0.9, "places": 10, "seconds": {}}
    assert Agreement(**figures).problem(4) == ""
    assert Agreement(**figures).problem(8) == "90.0% of the tokens agree, less than 95%"
    assert "cosine is 0.9700" in Agreement(**{**figures, "cosine": 0.97}).problem(4)
    assert Agreement(**{**figures, "cosine": float("nan")}).problem(4)


@pytest.mark.parametrize(("bits", "encoder"), [(3, 8), (4, 4)])
def test_other_bits_are_refused(bits: int, encoder: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        export.Plan(bits=bits, encoder_bits=encoder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 pictures"):
        run.read_pictures(tmp_path)
