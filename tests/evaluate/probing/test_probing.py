"""Probing: which pictures a source gives, what encoders tell of them, what is kept, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl import synth
from mini_internvl.data import DataError
from mini_internvl.evaluate.probing import ProbeSettings, open_encoder, probe, read_task
from mini_internvl.evaluate.probing import features as module
from mini_internvl.evaluate.probing.features import Wanted, collect, pool
from mini_internvl.evaluate.probing.shown import patch_maps, turned
from mini_internvl.evaluate.probing.tasks import Picture
from mini_internvl.metrics.linear_probe import choose
from mini_internvl.metrics.neighbours import vote
from mini_internvl.model.config import VisionConfig
from mini_internvl.model.vision import InternViT
from mini_internvl.records import Interrupted


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probe"


def vit(width=16, layers=2, seed=0):
    torch.manual_seed(seed)
    config = VisionConfig(
        hidden_size=width, intermediate_size=24, layers=layers, heads=2, image_size=56, patch_size=14, layer_scale=0.5
    )
    return InternViT(config).eval()


def colours(folder, *, splits=True, count=6):
    """Class folders: red and blue pictures, easy to tell apart."""
    rng = np.random.default_rng(0)
    for split in ("train", "test") if splits else ("",):
        for name, colour in (("Red", (200, 30, 30)), ("deep_blue", (30, 30, 200))):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 25, (40, 60, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_class_folders_are_a_task(tmp_path):
    task = read_task(colours(tmp_path / "colours"), test=5)
    assert (task.name, task.classes) == ("colours", ("deep blue", "red"))
    assert (len(task.train), len(task.test)) == (12, 5)
    assert {task.classes[one.label] for one in task.test} == {"red", "deep blue"}
    assert task.train[0].load().size == (60, 40)
    again = read_task(tmp_path / "colours", test=5)
    assert [one.id for one in again.test] == [one.id for one in task.test]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_with_labels_are_a_task(tmp_path, ending):
    colours(tmp_path / "c")
    rows = [
        {"file_name": f"c/{split}/{name}/{number}.png", "label": label, "split": "val" if number == 5 else split}
        for split in ("train", "test")
        for name, label in (("Red", 0), ("deep_blue", 1))
        for number in range(6)
    ]
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        lines = [",".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(["file_name,label,split", *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(path)
    assert task.classes == ("0", "1")
    assert (len(task.train), len(task.test)) == (10, 10)  # those for validation are not asked
    assert [task.classes[one.label] for one in task.test] == ["0"] * 5 + ["1"] * 5


def test_questions_without_labels_and_splits_are_a_task(tmp_path):
    colours(tmp_path / "c", splits=False, count=40)
    rows = [
        {
            "image": f"c/{name}/{number}.png",
            "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": name}],
        }
        for name in ("Red", "deep_blue") for number in range(40)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(path)
    assert task.classes == ("Red", "deep_blue")
    assert 40 <= len(task.train) < 70
    assert len(task.test) >= 8
    assert not {str(one.source) for one in task.train} & {str(one.source) for one in task.test}


def test_drawn_kinds_are_tasks():
    task = read_task("shapes", train=30, test=12)
    assert (len(task.train), len(task.test)) == (30, 12)
    image, label = synth.draw_labelled(*task.test[3].source)
    assert task.classes[task.test[3].label] == label
    assert image.tobytes() == task.test[3].load().tobytes()
    with pytest.raises(ValueError, match="have no classes; kinds that have: clothes, digits, shapes"):
        read_task("charts", train=2, test=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png", "label": "x", "split": "holdout"}], "rows.jsonl:1: split is"),
        ([{"image": "a.png", "label": "x", "split": s} for s in ("train", "test")], "two classes"),
        ([{"label": "x"}], "rows.jsonl:1: "),
        (
            [{"image": "a.png", "label": a, "split": b} for a, b in (("x", "train"), ("y", "train"), ("z", "test"))],
            'the class "z", which no training',
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        read_task(path)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="neither a file or folder nor a kind"):
        read_task(tmp_path / "nothing")


def test_features_are_class_token_and_means_of_patches(tmp_path):
    task, encoder = read_task(colours(tmp_path / "c")), open_encoder(vit())
    found = collect(encoder, task.train, Wanted(layers=(0, 2), size=56, grid=2))
    assert found.shape == (12, 2, 5, 16)
    tile = module._tile(task.train[7], Wanted(layers=(2,), size=56))
    with torch.inference_mode():
        state = encoder.model.hidden_states(tile)[2][0]
    np.testing.assert_allclose(found[7, 1, 0], state[0], atol=1e-5)
    np.testing.assert_allclose(found[7, 1, 2], state[1:].view(4, 4, 16)[:2, 2:].mean((0, 1)), atol=1e-5)
    whole = collect(encoder, task.train, Wanted(layers=(2,), size=56))[:, 0]
    np.testing.assert_allclose(pool(whole, "mean")[7], state[1:].mean(0), atol=1e-5)
    assert pool(whole, "both").shape == (12, 32)
    np.testing.assert_allclose(pool(whole, "cls")[7], state[0], atol=1e-5)


def test_what_was_computed_is_read_again_and_damage_is_made_good(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    task, encoder, wanted = read_task(colours(tmp_path / "c")), open_encoder(vit()), Wanted(layers=(2,), size=56)
    first = collect(encoder, task.train, wanted)
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) == 3
    files[0].write_bytes(b"no weights")
    asked = []
    monkeypatch.setattr(
        module,
        "_encode",
        lambda one, pictures, w, do=module._encode: asked.append(len(pictures)) or do(one, pictures, w),
    )
    again = collect(encoder, task.train, wanted)
    assert (again == first).all()
    assert len(asked) == 1
    Image.new("RGB", (30, 30)).save(task.train[0].source)  # another picture in its place
    assert (collect(encoder, task.train, wanted)[0] != first[0]).any()
    other = collect(open_encoder(vit(seed=1)), task.train, wanted)
    assert (other != first).any()


def test_a_full_disk_stops_no_probe(tmp_path, cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    task, encoder, wanted = read_task(colours(tmp_path / "c")), open_encoder(vit()), Wanted(layers=(2,), size=56)
    monkeypatch.setattr(module, "BLOCK", 5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_file", full)
        found = collect(encoder, task.train, wanted)
    assert caplog.text.count("No space left") == 1
    assert f"delete {cache} or set" in caplog.text
    assert not list(cache.rglob("*.safetensors"))
    assert (collect(encoder, task.train, wanted) == found).all()


def test_a_stopped_call_goes_on(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    task, encoder = read_task(colours(tmp_path / "c")), open_encoder(vit())
    answers = iter([False, True])
    with pytest.raises(Interrupted, match="after 5 of 12"):
        collect(encoder, task.train, Wanted(layers=(2,), size=56), should_stop=lambda: next(answers))
    assert len(list(cache.rglob("*.safetensors"))) == 1


def test_a_probe_tells_what_its_measures_tell(tmp_path):
    task = read_task(colours(tmp_path / "c", count=12))
    student, teacher = open_encoder(vit(), name="student"), open_encoder(vit(24, 3, seed=2), name="teacher")
    found = probe([student], [task], teacher=teacher, settings=ProbeSettings(pool="both"), folder=tmp_path / "out")
    assert [(one.task, one.model) for one in found.results] == [("c", "student"), ("c", "teacher")]
    result = found.result("c", "student")
    wanted = Wanted(layers=(2,), size=56)
    train, test = (pool(collect(student, side, wanted)[:, 0], "both") for side in (task.train, task.test))
    known, asked = (np.array([one.label for one in side]) for side in (task.train, task.test))
    assert result.measures["knn"].marks == tuple(vote(train, known, test) == asked)
    assert result.measures["linear"].marks == tuple(choose(train, known).predict(test) == asked)
    assert result.measures["linear"].value == 100.0
    assert result.width == 32
    assert 1 <= result.rank <= 24
    (agreement,) = found.agreements
    assert agreement.cka.shape == (3, 4)
    assert set(agreement.mapped) == {0, 1, 2}
    assert not agreement.plain  # of different widths
    kept = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert kept == json.loads(json.dumps(found.as_json()))
    assert probe([student], [task], teacher=teacher, settings=ProbeSettings(pool="both")).as_json() == kept


def test_an_encoder_agrees_with_itself(tmp_path):
    task = read_task(colours(tmp_path / "c", count=12))
    other = vit()
    with torch.no_grad():
        other.encoder.layers[-1].mlp.fc2.bias.add_(1e-6)
    found = probe([open_encoder(vit(), name="a")], [task], teacher=open_encoder(other, name="b"))
    (agreement,) = found.agreements
    assert min(agreement.plain.values()) > 0.99999
    assert np.diag(agreement.cka) == pytest.approx(np.ones(3), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"), [({"layer": 3}, "states 0 to 2"), ({"image_size": 60}, "multiple of 14")]
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    task = read_task(colours(tmp_path / "c"))
    with pytest.raises(ValueError, match=message):
        probe([open_encoder(vit())], [task], settings=ProbeSettings(**settings))
    with pytest.raises(ValueError, match="different names"):
        probe([open_encoder(vit()), open_encoder(vit(seed=1))], [task])


def test_the_command(minivl, checkpoint, tmp_path):
    colours(tmp_path / "c")
    arguments = ["probe", checkpoint, "--teacher", "nano", "--data", tmp_path / "c", "--output", tmp_path / "out"]
    code, out, err = minivl(*arguments)
    assert code == 0, err
    assert "linear probe" in out
    assert "checkpoint - nano" in out
    assert "mapped cosine" in out
    code, out, err = minivl(*arguments, "--json")
    found = json.loads(out)
    assert [one["name"] for one in found["models"]] == ["checkpoint", "nano"]
    assert found["results"][0]["measures"]["linear"]["items"] == 12
    code, out, err = minivl("probe", tmp_path / "none", "--data", tmp_path / "c")
    assert code == 1
    assert "neither a checkpoint folder" in err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    code, out, err = minivl("probe", tmp_path / "adapter", "--data", tmp_path / "c")
    assert code == 1
    assert "merge it first" in err


def test_maps_have_one_basis_and_others_are_turned_to_it():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 8, 8, 3)) * (5, 2, 1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    np.testing.assert_allclose(turned(target @ turn, target), target, atol=1e-9)
    fine = np.kron(target.transpose(0, 3, 1, 2), np.ones((2, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(turned(target @ turn, fine), target, atol=0.05)  # of another grid


def test_maps_show_what_differs(tmp_path):
    image = Image.new("RGB", (56, 56), (200, 30, 30))
    image.paste((30, 30, 200), (28, 0, 56, 56))
    image.save(tmp_path / "halves.png")
    picture, encoder = Picture(id="1", label=0, source=str(tmp_path / "halves.png")), open_encoder(vit())
    wanted = {"encoder": Wanted(layers=(0,), size=56)}
    with torch.no_grad():
        encoder.model.embeddings.position_embedding.zero_()
    maps = patch_maps([encoder], [picture], reference="encoder", wanted=wanted)["encoder"]
    assert maps.shape == (1, 4, 4, 3)
    assert len(np.unique(maps[0, :, :2].reshape(-1, 3)[:, 0])) == 1
    assert abs(int(maps[0, 0, 0, 0]) - int(maps[0, 0, 3, 0])) == 255
