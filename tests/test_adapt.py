"""One adaptation end to end at a tiny size: files, numbers, report, and going on without asking again."""

from __future__ import annotations

import json

import pytest

from mini_internvl.adapt import AdaptConfig, Listener, adapt, overall
from mini_internvl.engine import Engine


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    """(settings, content of adapt.json, titles of the steps)."""
    pytest.importorskip("Box2D", reason='the simulator is an extra: pip install "mini-internvl[sim]"')
    settings = AdaptConfig(
        domain="driving-sim",
        output=tmp_path_factory.mktemp("adapt") / "run",
        model=str(checkpoint),
        clips={"train": 6, "validation": 3, "test": 3},
        epochs=2,
        general_items=2,
        validation_items=2,
        precision="fp32",
        command="minivl adapt driving-sim",
    )
    steps = []
    return settings, adapt(settings, Listener(step=steps.append)), steps


def test_the_steps_come_in_order(run):
    _, _, steps = run
    assert steps[0] == "data"
    names = [step.partition(":")[0] for step in steps[1:]]
    assert [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name] == [
        "score base",
        "adapt",
        "score adapted",
    ]


def test_everything_is_written(run):
    settings, result, _ = run
    kept = json.loads((settings.output / "adapt.json").read_text())
    assert kept == json.loads(json.dumps(result))
    assert kept["data"]["train"] == 6
    assert kept["data"]["test"] == 3
    assert kept["model"]["parameters"] > 10_000
    assert kept["model"]["sha256"] != kept["adapted_sha256"]
    assert set(kept["benchmarks"]) == {"bddx_text", "bddx_signals"}
    assert (settings.output / "train/best/model.safetensors").exists()
    assert (settings.output / "train/metrics.jsonl").read_text().count("\n") == kept["recipe"]["stages"][0]["steps"]


def test_every_column_has_a_number_on_both_sides(run):
    _, result, _ = run
    assert {column["benchmark"] for column in result["columns"]} == {"bddx_text", "bddx_signals"}
    for column in result["columns"]:
        sides = result["benchmarks"][column["benchmark"]]
        for side in ("base", "adapted"):
            assert isinstance(sides[side]["values"][column["key"]], float), column
            assert sides[side]["items"] > 0


def test_general_ability_is_probed_before_and_after(run):
    _, result, _ = run
    general = result["general"]
    assert set(general["items"].values()) == {2}
    for side in ("base", "adapted"):
        assert general[side].keys() == general["items"].keys()
        assert 0 <= general["mean"][side] <= 100


def test_clips_carry_frames_questions_and_both_answers(run):
    settings, result, _ = run
    assert len(result["clips"]) == 3
    for clip in result["clips"]:
        assert all((settings.output / frame).is_file() for frame in clip["frames"])
        assert clip["questions"]
        for question in clip["questions"]:
            assert {"question", "truth", "base", "adapted", "base_right", "adapted_right"} <= question.keys()


def test_the_same_call_goes_on_without_asking_or_training_again(run, monkeypatch):
    settings, result, _ = run

    def refuse(*args, **kwargs):
        raise AssertionError("asked again")

    monkeypatch.setattr(Engine, "chat_batch", refuse)
    trained = []
    again = adapt(settings, Listener(train=trained.append))
    assert trained == []
    for part in ("benchmarks", "general", "clips", "columns", "recipe", "adapted_sha256"):
        assert again[part] == result[part], part


def test_other_settings_are_refused_in_the_same_folder(run):
    import dataclasses

    settings, _, _ = run
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        adapt(dataclasses.replace(settings, lr=1e-5))


def test_the_command_prints_tables_and_writes_the_report(run, capsys):
    from mini_internvl.commands.adapt import run as command

    settings, _, _ = run
    command(settings, lambda: False)
    out = capsys.readouterr().out
    assert "BDD-X text" in out
    assert "The adapted model" in out or "No clear difference" in out
    page = (settings.output / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert page.count("data:image/") >= 3
    assert 'src="http' not in page
    command(settings, lambda: False, as_json=True)
    assert json.loads(capsys.readouterr().out)["domain"] == "driving-sim"


def test_the_best_checkpoint_is_better_in_relative_terms():
    early, later = (0.031, 0.33), (0.157, 0.17)  # CIDEr of 1000, per cent within 1 m/s: the later one is far better
    assert overall(later) > overall(early)
    assert overall((0.2, 0.4)) == pytest.approx(overall((0.4, 0.2)))
    assert overall((0.5, 0.0)) > overall((0.1, 0.0)) > overall((0.0, 0.0)) == pytest.approx(0.01)
    assert overall([0.5]) > overall([0.4])


def test_training_measures_the_primary_metrics_and_their_mean(run):
    settings, _, _ = run
    rows = [json.loads(line) for line in (settings.output / "train/metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "score" in row]
    assert measured
    for row in measured:
        shares = row["bddx_text description/CIDEr"] / 1000, row["bddx_signals speed/A1.0"] / 100
        assert row["score"] == pytest.approx(overall(shares))
