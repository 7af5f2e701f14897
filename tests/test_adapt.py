"""Adaptations end to end at a tiny size: a domain file of one's own that finds boxes, and clips."""

from __future__ import annotations

import gc
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_internvl import adapt as adaptation
from mini_internvl import plugins
from mini_internvl import report as reports
from mini_internvl.adapt import AdaptConfig, Callbacks, Plan, adapt, geometric_mean, make_plan, make_recipe
from mini_internvl.benchmarks._bddx import example_clip, example_frames
from mini_internvl.benchmarks._example import ExampleImage, Files
from mini_internvl.commands import adapt as command
from mini_internvl.data import DataError
from mini_internvl.data.rows import read_rows
from mini_internvl.domains import load_domain
from mini_internvl.domains._rows import convert
from mini_internvl.engine import Engine, load
from mini_internvl.evaluate.blind import Guesser
from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Interrupted

DOCS = Path(__file__).parent.parent / "docs" / "adapt.md"


@pytest.fixture(scope="session")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ships.py``, the domain file that docs/adapt.md shows, and its raw data in ``raw``."""
    folder = tmp_path_factory.mktemp("ships")
    [code] = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    (folder / "ships.py").write_text(code, encoding="utf-8")
    plugins.find("domains", str(folder / "ships.py")).EXAMPLE.write(folder / "raw")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that need no simulator: four to train on, two to validate, two to test."""
    rows = []
    for number, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"] * 2):
        said = ("The car turns.", "because the road bends.") if number % 2 else ("The car stands.", "as it is red.")
        rows.append({**example_clip(number, *said, speed=number, turning_angle=-number), "split": split})
    return Files(files={"clips.jsonl": rows}, images=example_frames(*rows)).write(tmp_path_factory.mktemp("clips"))


def ships_config(ships: Path, checkpoint: Path, output: Path) -> AdaptConfig:
    """The shortest adaptation to ships; half of the records are faults on purpose."""
    return AdaptConfig(
        domain=str(ships / "ships.py"),
        output=output,
        model=str(checkpoint),
        data=ships / "raw",
        max_faults=0.5,
        batch_size=1,
        device="cpu",
        workers=0,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint, clips):
    """(settings, content of adapt.json, titles of the steps) of an adaptation to clips with a probe of drawn images."""
    settings = AdaptConfig(
        domain="driving-sim",
        output=tmp_path_factory.mktemp("adapt") / "run",
        model=str(checkpoint),
        data=clips,
        epochs=1,
        batch_size=4,
        lr=1e-3,
        general="synth",
        ratio=1,
        probe=["synth"],
        probe_items=2,
        precision="fp32",
        device="cpu",
        workers=0,
        validation_items=2,
    )
    steps: list[str] = []
    return settings, adapt(settings, Callbacks(step=steps.append)), steps


@pytest.mark.slow
def test_a_sweep_adapts_at_every_ratio_and_shows_what_each_learned_and_forgot(minivl, checkpoint, clips, tmp_path):
    output = tmp_path / "sweep"
    command = [
        "adapt", "driving-sim", "--data", clips, "--model", checkpoint, "--output", output, "--epochs", 1,
        "--batch-size", 4, "--general", "synth", "--probe", "synth", "--probe-items", 2, "--device", "cpu",
        "--precision", "fp32", "--workers", 0, "--no-report",
    ]  # fmt: skip
    code, _, err = minivl(*command, "--sweep", "r=0.5,0", "--json")
    assert code == 0, err
    content = json.loads((output / "sweep.json").read_text())
    assert [point.get("ratio") for point in content["points"]] == [None, 0.0, 0.5]
    for point, side in zip(content["points"], ("ratio-0/base", "ratio-0/adapted", "ratio-0.5/adapted"), strict=True):
        for name, metric in content["metrics"].items():
            score = json.loads((output / side / name / "score.json").read_text())
            assert point["values"][name] == score["values"][metric]
        shares = [point["values"]["bddx_text"] / 1000, point["values"]["bddx_signals"] / 100]
        assert point["domain"] == pytest.approx(100 * geometric_mean(shares))
    recipes = [json.loads((output / f"ratio-{ratio}/train/recipe.json").read_text()) for ratio in ("0", "0.5")]
    assert [len(recipe["stages"][0]["data"]) for recipe in recipes] == [1, 5]
    assert (output / "sweep.svg").read_text().count("<circle") == 4  # base, two ratios, the best one's ring
    assert sum(path.name == "answers.sqlite" for path in output.rglob("*")) == 1
    for given, said in (
        (["--sweep", "a"], "no list of numbers"),
        (["--sweep", "0,nan"], "is no number from 0"),
        (["--sweep", "0,inf"], "is no number from 0"),
        (["--sweep", "0", "--ratio", 1], "leave --ratio out"),
    ):
        code, _, err = minivl(*command, *given)
        assert code, given
        assert said in err


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_steps_come_in_order(run):
    _, _, steps = run
    assert steps == [
        "convert",
        *(f"score base: {name}" for name in ("bddx_text", "bddx_signals", "synth")),
        "train",
        "score guess",
        *(f"score adapted: {name}" for name in ("bddx_text", "bddx_signals", "synth")),
        *(f"score blind: {name}" for name in ("bddx_text", "bddx_signals")),
    ]


@pytest.mark.slow
def test_what_does_not_see_answers_the_domains_questions_too(run):
    settings, result, _ = run
    for side in ("guess", "blind"):
        assert sorted(path.name for path in (settings.output / side).iterdir()) == ["bddx_signals", "bddx_text"]
        for name in result["benchmarks"]:
            score = json.loads((settings.output / side / name / "score.json").read_text())
            assert score["items"] == 4
            assert score["values"].keys() == sections(settings.output)[name].lines.keys()
            for metric, line in sections(settings.output)[name].lines.items():
                assert line.baselines[side] == score["values"][metric]
    assert score["blind"] is True
    guess = Guesser(read_rows(settings.output / "rows/train.jsonl"))
    for name in result["benchmarks"]:
        for row in lines(settings.output / "guess" / name / "predictions.jsonl"):
            assert row["answer"] == guess(row["question"])


def sections(folder: Path) -> dict[str, reports.Section]:
    parts = reports.read_parts(folder)
    found = reports.compare(parts.results, parts.base, parts.baselines)
    return {section.result.benchmark: section for section in found}


@pytest.mark.slow
def test_both_evaluations_are_ordinary_ones_of_the_same_items(run):
    settings, result, _ = run
    assert result["benchmarks"] == ["bddx_text", "bddx_signals"]
    assert result["probe"] == ["synth"]
    for name in (*result["benchmarks"], *result["probe"]):
        base, adapted = ({**json.loads((settings.output / side / name / "score.json").read_text())} for side in SIDES)
        assert base["benchmark"] == name
        assert base["values"].keys() == adapted["values"].keys()
        assert base["prompt_sha256"] == adapted["prompt_sha256"]
        assert base["model"] == result["model"]
        assert adapted["model"]["path"] == str(settings.output / "train/best")
        assert adapted["model"]["sha256"] != base["model"]["sha256"]
        before, after = (lines(settings.output / side / name / "predictions.jsonl") for side in SIDES)
        assert [row["id"] for row in before] == [row["id"] for row in after]
        assert len(before) == base["items"] == (6 if name == "synth" else 4)


SIDES = ("base", "adapted")


@pytest.mark.slow
def test_training_measures_the_primary_metrics_and_their_mean(run):
    settings, result, _ = run
    measured = [row for row in lines(settings.output / "train/metrics.jsonl") if "score" in row]
    assert measured
    assert result["validation"] == {"bddx_text description/CIDEr": 2, "bddx_signals speed/A1.0": 2}
    for row in measured:
        shares = row["bddx_text description/CIDEr"] / 1000, row["bddx_signals speed/A1.0"] / 100
        assert row["score"] == pytest.approx(geometric_mean(shares))


@pytest.mark.slow
def test_the_same_call_goes_on_without_converting_asking_or_training_again(run, monkeypatch):
    settings, result, _ = run
    kept = (settings.output / "rows/train.jsonl").stat().st_mtime_ns

    def refuse(*args, **kwargs):
        raise AssertionError("asked again")

    monkeypatch.setattr(Engine, "chat_batch", refuse)
    trained = []
    again = adapt(settings, Callbacks(train=trained.append))
    assert trained == []
    assert (settings.output / "rows/train.jsonl").stat().st_mtime_ns == kept
    for part in ("benchmarks", "settings", "data", "model", "adapted_model"):
        assert again[part] == result[part], part


@pytest.mark.slow
def test_other_settings_are_refused_in_the_same_folder(run):
    settings, _, _ = run
    steps: list[str] = []
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        adapt(replace(settings, lr=1e-5), Callbacks(step=steps.append))
    assert steps == ["convert"]  # before the base is asked


@pytest.mark.slow
def test_what_is_trained_on_is_what_the_domain_says(run):
    settings, _, _ = run
    samples = list(read_rows(settings.output / "rows/train.jsonl"))
    assert samples == list(load_domain("driving-sim").convert(settings.data, "train"))
    assert {(sample.max_tiles, sample.independent) for sample in samples} == {(1, True)}


@pytest.mark.slow
def test_it_trains_on_the_device_that_scores(run):
    settings, _, _ = run
    recipe = json.loads((settings.output / "train/recipe.json").read_text(encoding="utf-8"))
    assert recipe["device"] == settings.device == "cpu"


def test_a_device_that_is_named_is_the_one_that_trains(checkpoint):
    config = AdaptConfig(domain="driving-sim", output=Path("x"), model=str(checkpoint), device="cuda:1")
    assert make_recipe(config, make_plan(config), {"train": {"rows": 8}}).device == "cuda:1"


def test_validation_answers_end_where_the_checkpoints_own_settings_say(checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}', encoding="utf-8")
    stops, benchmark = [], plugins.find("benchmarks", "synth")

    def answered(engine, benchmark, items):
        stops.append(engine.stop_ids)
        return SimpleNamespace(values={benchmark.PRIMARY_METRIC: 50.0}), []

    monkeypatch.setattr(adaptation, "evaluate", answered)
    engine = load(folder, device="cpu")
    asked = SimpleNamespace(benchmark=benchmark, name="synth", items=[])
    found = adaptation._probe(folder, [asked])(engine.model)
    assert found["score"] == pytest.approx(0.5, abs=0.02)
    assert stops == [engine.stop_ids]
    assert {3, 4} < engine.stop_ids


def test_validation_asks_about_all_classes_though_files_are_in_their_order(tmp_path):
    domain = load_domain("class-folders")
    for name in ("forest", "river", "road"):
        for split in ("train", "val", "test"):
            (tmp_path / split / name).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "val" / name / f"{number}.png").write_bytes(ExampleImage().png())
    config = AdaptConfig(domain="class-folders", output=tmp_path / "run", validation_items=20)
    [asked] = adaptation._validation(config, domain, tmp_path)
    assert len(asked.items) == 20
    assert {item.reference["answer"] for item in asked.items} == {"forest", "river", "road"}
    assert asked.items == adaptation._validation(config, domain, tmp_path)[0].items


def test_a_domain_of_ones_own_goes_the_whole_way_from_the_command_line(minivl, ships, checkpoint, tmp_path):
    settings = ships_config(ships, checkpoint, tmp_path / "run")
    code, out, err = minivl(
        *("adapt", ships / "ships.py", "--data", ships / "raw", "--model", checkpoint, "--output", tmp_path / "run"),
        *(
            "--max-faults",
            "0.5",
            "--batch-size",
            "1",
            "--device",
            "cpu",
            "--lora",
            "2",
            "--freeze-vision",
            "--workers",
            "0",
        ),
    )
    assert code == 0, err
    assert "adapters of rank 2, encoder frozen" in err
    assert "train: 1 rows, 1 unusable" in err
    assert "DIOR-RSVG (domain)" in out
    assert "no clear difference" in out.lower()
    assert (tmp_path / "run/train/best/adapter_config.json").is_file()
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Ships in aerial images" in page
    [fault] = lines(settings.output / "rows/faults.jsonl")
    assert fault["place"] == "line 2"


def test_the_raw_data_is_converted_once_and_again_only_when_it_has_changed(ships, tmp_path):
    raw, asked = shutil.copytree(ships / "raw", tmp_path / "raw"), []
    domain = load_domain(str(ships / "ships.py"))

    def converted():
        asked.clear()
        counting = replace(domain, convert=lambda raw, split: asked.append(split) or domain.convert(raw, split))
        found = convert(counting, raw, tmp_path / "rows", max_faults=0.5, should_stop=lambda: False)
        return {split: (kept["rows"], kept["faults"]) for split, kept in found.items()}

    assert converted() == {"train": (1, 1), "validation": (1, 0)}
    assert asked == ["train", "validation"]
    assert converted() == {"train": (1, 1), "validation": (1, 0)}
    assert asked == []
    rows = (raw / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (raw / "train.jsonl").write_text(f"{rows[0]}\n{rows[0].replace('1.png', 'gone.png')}\n", encoding="utf-8")
    assert converted() == {"train": (1, 1), "validation": (1, 0)}
    assert asked == ["train", "validation"]
    assert "gone.png is missing" in (tmp_path / "rows/faults.jsonl").read_text(encoding="utf-8")


def test_rows_of_a_training_that_has_begun_are_not_overwritten_by_others(ships, tmp_path):
    raw, rows = shutil.copytree(ships / "raw", tmp_path / "raw"), tmp_path / "rows"
    domain = load_domain(str(ships / "ships.py"))
    more = {"max_faults": 0.5, "should_stop": lambda: False, "fixed": tmp_path}
    convert(domain, raw, rows, **more)
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    whole = (raw / "train.jsonl").read_text(encoding="utf-8")
    (raw / "train.jsonl").write_text(whole.replace("the red ship", "the blue ship"), encoding="utf-8")
    with pytest.raises(DataError, match=r"raw \(train\) is not the data that the run in .* began with; put it back"):
        convert(domain, raw, rows, **more)
    assert {path.name: path.read_bytes() for path in rows.iterdir()} == before
    (raw / "train.jsonl").write_text(whole, encoding="utf-8")
    assert convert(domain, raw, rows, **more)["train"]["rows"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "rows"]


def test_too_many_faults_stop_the_run_with_their_places(ships, checkpoint, tmp_path):
    settings = replace(ships_config(ships, checkpoint, tmp_path / "run"), max_faults=0.1)
    with pytest.raises(ValueError, match=r"train\.jsonl:2: .*1 of 3 records cannot be used.*--max-faults 0\.1.*lists"):
        adapt(settings)
    assert lines(tmp_path / "run/rows/faults.jsonl")[0]["reason"]
    assert not (tmp_path / "run/base").exists()


def test_the_base_is_out_of_memory_while_the_model_trains(ships, checkpoint, tmp_path):
    held = []

    def count(progress):
        gc.collect()
        held.append(sum(type(one) is InternVL for one in gc.get_objects()))

    before = sum(type(one) is InternVL for one in gc.get_objects())
    adapt(ships_config(ships, checkpoint, tmp_path / "run"), Callbacks(train=count))
    assert set(held) == {before + 1}


def test_it_stops_in_every_step_and_goes_on(ships, checkpoint, tmp_path):
    settings = ships_config(ships, checkpoint, tmp_path / "run")
    for when in ("convert", "score base: dior_rsvg", "train", "score adapted: dior_rsvg"):
        seen: list[str] = []
        with pytest.raises(Interrupted):
            adapt(settings, Callbacks(step=seen.append, should_stop=lambda seen=seen, when=when: seen[-1] == when))
        assert seen[-1] == when
        assert not (tmp_path / "run/adapt.json").exists()
    adapt(settings)
    assert (tmp_path / "run/adapt.json").exists()


def test_building_stops_too(tmp_path, checkpoint):
    """A domain's build hears of it through the progress that it reports."""
    (tmp_path / "made.py").write_text(
        (DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0])
        + "\n\ndef build(folder, *, seed, progress):\n    EXAMPLE.write(folder)\n    progress(1, 2)\n    1 / 0\n",
        encoding="utf-8",
    )
    settings = AdaptConfig(domain=str(tmp_path / "made.py"), output=tmp_path / "run", model=str(checkpoint))
    with pytest.raises(Interrupted, match="stopped at 1 of 2"):
        adapt(settings, Callbacks(should_stop=lambda: True))


def plan(checkpoint: Path | None, **given: object) -> Plan:
    """The plan of an adaptation to clips that are never read."""
    model = None if checkpoint is None else str(checkpoint)
    return make_plan(AdaptConfig(**{"domain": "driving-sim", "output": Path("x"), "model": model, **given}))


def test_a_released_model_takes_the_papers_settings_and_nano_its_own(checkpoint):
    """The tiny checkpoint stands for any model that is not nano."""
    other, nano = plan(checkpoint), plan(None)
    assert (other.recipe.lr, other.recipe.loss_reduction, other.recipe.drop_path) == (1e-5, "square", 0.1)
    assert (other.recipe.max_tiles, nano.recipe.max_tiles) == (12, 6)
    assert other.recipe.ratio == 0
    assert other.general.sources == ()
    assert not other.probe
    assert any("no general data" in line for line in other.lines)
    assert any("not probed" in line for line in other.lines)
    assert (nano.recipe.lr, nano.recipe.loss_reduction, nano.recipe.drop_path) == (2.5e-4, "token", 0.0)
    assert {source.kind for source in nano.general.sources} == {"synth"}
    assert sum(source.weight for source in nano.general.sources) == pytest.approx(1.0)
    assert list(nano.probe) == ["synth"]


def test_settings_given_replace_the_domains(checkpoint, tmp_path):
    (tmp_path / "general.jsonl").write_text("{}\n", encoding="utf-8")
    made = plan(checkpoint, general=str(tmp_path / "general.jsonl"), ratio=0.25, lr=3e-5, max_tiles=4, lora=8)
    assert (made.recipe.lora_lr, made.recipe.max_tiles) == (3e-5, 4)
    [source] = made.general.sources
    assert (source.path, source.weight) == (str(tmp_path / "general.jsonl"), 0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 1.0}, "mixes general data in; say which with --general"),
        ({"general": "gone.json"}, "general data gone.json is no file"),
        ({"probe": ["chartqa"]}, "chartqa reads its questions from a folder; give it with --probe-data"),
        ({"probe": ["bddx_text"], "probe_data": Path(".")}, "scores the domain already"),
        ({"probe": ["chartqx"]}, "did you mean chartqa"),
        ({"data": Path("nowhere")}, "nowhere is no folder"),
        ({"lr": -1.0}, "lr is -1"),
        ({"domain": "driving"}, "did you mean driving_sim"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(given, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        plan(checkpoint, **given)


def test_a_missing_report_dependency_is_told_before_the_work(minivl, ships, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    arguments = (
        "adapt",
        ships / "ships.py",
        "--data",
        ships / "raw",
        "--model",
        checkpoint,
        "--output",
        tmp_path / "r",
    )
    code, _, err = minivl(*arguments)
    assert code == 1
    assert "jinja2" in err
    assert not (tmp_path / "r").exists()


def test_an_unreadable_probe_is_told_before_the_model_is_scored(ships, checkpoint, tmp_path):
    settings = replace(
        ships_config(ships, checkpoint, tmp_path / "run"), probe=["chartqa"], probe_data=tmp_path / "gone"
    )
    with pytest.raises(ValueError, match="gone does not exist"):
        adapt(settings)
    assert not (tmp_path / "run/base").exists()


def test_the_best_checkpoint_is_better_in_relative_terms():
    early, later = (0.031, 0.33), (0.157, 0.17)  # CIDEr of 1000, per cent within 1 m/s: the later one is far better
    assert geometric_mean(later) > geometric_mean(early)
    assert geometric_mean((0.2, 0.4)) == pytest.approx(geometric_mean((0.4, 0.2)))
    assert geometric_mean((0.5, 0.0)) > geometric_mean((0.1, 0.0)) > geometric_mean((0.0, 0.0)) == pytest.approx(0.01)
    assert geometric_mean([0.5]) > geometric_mean([0.4])


def test_the_command_of_the_report_can_be_typed_again(minivl, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "run", lambda config, should_stop, **how: seen.append(config))
    code, _, err = minivl("adapt", "driving-sim", "--output", "my runs/a", "--general", "none")
    assert code == 0, err
    assert seen[0].command == "minivl adapt driving-sim --output 'my runs/a' --general none"
