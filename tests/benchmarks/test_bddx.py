"""The two BDD-X benchmarks on simulated clips: true answers are perfect, trivial ones are not."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mini_internvl.benchmarks import bddx_signals, bddx_text
from mini_internvl.benchmarks._bddx import CLIPS, example_clip, number_text, read_clips
from mini_internvl.records import Item, Prediction, Score


def answered(items: list[Item], texts: list[str]) -> list[Prediction]:
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def references(items: list[Item]) -> list[str]:
    answers = (item.reference["answer"] for item in items)
    return [answer if isinstance(answer, str) else number_text(answer) for answer in answers]


def of_kind(items: list[Item], kind: str) -> list[Item]:
    return [item for item in items if item.reference["kind"] == kind]


def test_prompts(clips: Path) -> None:
    items = [*bddx_text.items(clips), *bddx_signals.items(clips)]
    assert len(items) == 96
    assert len({item.id for item in items}) == 96
    first = items[0]
    assert first.id == "test-000000/description"
    [message] = first.messages
    assert [part.get("name") for part in message["content"]] == ["Frame-1", "Frame-2", None]
    assert message["content"][-1] == {"type": "text", "text": "What is the car doing?"}
    assert all(item.max_tiles == 1 for item in items)


def test_true_answers_are_perfect(clips: Path) -> None:
    items = list(bddx_text.items(clips))
    score = bddx_text.score(items, answered(items, references(items)))
    assert len(score.values) == 9
    for metric, value in score.values.items():
        if metric.endswith("CIDEr"):
            assert value > 900
        else:
            assert value == pytest.approx(100, abs=1e-4), metric
    assert score.notes["empty"] == 0
    assert score.notes["clips"] == 24

    items = list(bddx_signals.items(clips))
    score = bddx_signals.score(items, answered(items, references(items)))
    assert len(score.values) == 10
    for metric, value in score.values.items():
        assert value == pytest.approx(0 if metric.endswith("RMSE") else 100, abs=1e-6), metric


def clearly_worse(score: Score, share: float) -> None:
    """Every caption metric below ``share`` of a perfect one, but for those that a constant cannot spoil."""
    for metric, value in score.values.items():
        assert value < share * (1000 if metric.endswith("CIDEr") else 100), metric


def test_shuffled_and_constant_captions_are_clearly_worse(clips: Path) -> None:
    items = list(bddx_text.items(clips))
    shuffled: list[Prediction] = []
    constant: list[Prediction] = []
    for kind in bddx_text.QUESTION_KINDS:
        mine = of_kind(items, kind)
        texts = references(mine)
        constant += answered(mine, [Counter(texts).most_common(1)[0][0]] * len(mine))
        random.Random(0).shuffle(texts)
        shuffled += answered(mine, texts)
    clearly_worse(bddx_text.score(items, shuffled), 0.6)
    clearly_worse(bddx_text.score(items, constant), 0.6)


def test_constant_signals_are_clearly_worse(clips: Path) -> None:
    items = list(bddx_signals.items(clips))
    speeds = [item.reference["answer"] for item in of_kind(items, "speed")]
    mean = sum(speeds) / len(speeds)
    texts = [f"{mean:.2f}" if item.reference["kind"] == "speed" else "0.00" for item in items]
    values = bddx_signals.score(items, answered(items, texts)).values
    assert values["speed/RMSE"] > 3
    assert values["turning_angle/RMSE"] > 3
    assert values["speed/A1.0"] < 30
    assert values["turning_angle/A1.0"] < 70
    assert all(value < 90 for metric, value in values.items() if not metric.endswith("RMSE"))


def test_a_clip_without_recording_is_left_out(tmp_path: Path) -> None:
    """Both signals are -1 then, or null; one of them alone may be -1."""
    rows = [
        example_clip(0, "It stops.", "The light is red.", speed=-1.0, turning_angle=-1.0),
        example_clip(1, "It stops.", "The light is red.", speed=0.5, turning_angle=-1.0),
        example_clip(2, "It stops.", "The light is red.", speed=None, turning_angle=2.0),
    ]
    for frame in (frame for row in rows for frame in row["frames"]):
        (tmp_path / frame).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / frame).touch()
    (tmp_path / CLIPS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [item.id for item in bddx_signals.items(tmp_path, "test")]
    assert names == ["test-000001/speed", "test-000001/turning_angle", "test-000002/turning_angle"]


def test_order_missing_and_foreign_predictions(clips: Path) -> None:
    items = list(bddx_text.items(clips))
    predictions = answered(items, references(items))
    full = bddx_text.score(items, predictions)
    again = bddx_text.score(items, [*reversed(predictions), Prediction(item_id="elsewhere", text="x")])
    assert again.values == pytest.approx(full.values)
    missing = bddx_text.score(items, predictions[2:])
    assert missing.items == 48
    assert missing.notes["empty"] == 2
    assert all(missing.values[metric] < full.values[metric] for metric in full.values)


def test_full_needs_both_answers(clips: Path) -> None:
    items = list(bddx_text.items(clips))[:5]  # two clips and one description
    score = bddx_text.score(items, answered(items, references(items)))
    assert score.notes["clips"] == 2
    assert {metric.split("/")[0] for metric in score.values} == {"description", "justification", "full"}


def test_unreadable_numbers_count_with_the_stated_error(clips: Path) -> None:
    items = of_kind(list(bddx_signals.items(clips)), "speed")[:4]
    texts = ["a fast car", *references(items)[1:]]
    score = bddx_signals.score(items, answered(items, texts))
    assert score.notes["unreadable"] == {"speed": 1}
    assert score.values["speed/A5.0"] == 75.0
    assert score.values["speed/RMSE"] == pytest.approx(bddx_signals.WORST["speed"] / 2, rel=1e-6)
    assert score.items == 4
    nothing = bddx_signals.score(items, [])
    assert nothing.notes["unreadable"] == {"speed": 4}
    assert nothing.values["speed/RMSE"] == pytest.approx(bddx_signals.WORST["speed"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12.34", 12.34),
        ("about -3.5 degrees", -3.5),
        ("\u22122.0", -2.0),
        ("+.5", 0.5),
        ("In Frame-4 the speed is 7 m/s2", 4.0),
        ("7m", 7.0),
        ("speed: 7. Then 9", 7.0),
        ("v2 drives", None),
        ("", None),
        ("fast", None),
        ("9" * 400, None),
    ],
)
def test_reading_a_number(text: str, number: float | None) -> None:
    assert bddx_signals.read_number(text) == number


@pytest.mark.parametrize("benchmark", [bddx_text, bddx_signals])
def test_nothing_to_score_is_an_error(benchmark: object) -> None:
    with pytest.raises(ValueError, match="no items"):
        benchmark.score([], [])


ROW = {"id": "a", "split": "test", "frames": ["a.png"], "description": "x", "justification": "y", "speed": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not an object"),
        (json.dumps({"id": "b"}), "no split, frames, description, justification"),
        (json.dumps({**ROW, "id": 3}), '"id" must be a text'),
        (json.dumps({**ROW, "frames": []}), '"frames" must be a list'),
        (json.dumps({**ROW, "speed": "fast"}), '"speed" must be a number or null'),
        (json.dumps({**ROW, "speed": float("nan")}), '"speed" must be a number or null'),
        (json.dumps({**ROW, "id": "b", "frames": ["gone.png"]}), "the frame gone.png is missing"),
        (json.dumps(ROW), 'the id "a" is used twice'),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "clips.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"clips\.jsonl:2: .*{message}"):
        list(read_clips(tmp_path, "test"))


def test_a_folder_without_clips_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clips\.jsonl is missing"):
        list(bddx_text.items(tmp_path))


@pytest.mark.parametrize("benchmark", [bddx_text, bddx_signals])
def test_the_worked_example_and_standard_errors(benchmark: Any, tmp_path: Path) -> None:
    benchmark.EXAMPLE.write(tmp_path / "bddx")
    items = list(benchmark.items(tmp_path))
    assert items == list(benchmark.items(tmp_path / "bddx", "test", protocol="paper"))
    best = benchmark.score(items, answered(items, benchmark.EXAMPLE.good))
    worst = benchmark.score(items, answered(items, benchmark.EXAMPLE.bad))
    assert all(benchmark.right(item, text) for item, text in zip(items, benchmark.EXAMPLE.good, strict=True))
    assert not any(benchmark.right(item, text) for item, text in zip(items, benchmark.EXAMPLE.bad, strict=True))
    assert set(best.values) == set(best.counts) == set(worst.values)
    for metric, value in best.values.items():
        assert (value < worst.values[metric]) == (metric in getattr(benchmark, "LOWER_IS_BETTER", ())), metric
    graded = {metric for metric in best.values if not metric.endswith("B4")}
    assert set(best.errors) == set(worst.errors) == graded


def test_the_error_of_an_rmse_is_that_of_its_square_by_the_delta_method(clips: Path) -> None:
    items = of_kind(list(bddx_signals.items(clips)), "speed")
    errors = [0.1 * number for number in range(len(items))]
    texts = [f"{item.reference['answer'] + error:.4f}" for item, error in zip(items, errors, strict=True)]
    score = bddx_signals.score(items, answered(items, texts))
    squares = [error**2 for error in errors]
    wanted = statistics.stdev(squares) / len(squares) ** 0.5 / (2 * statistics.fmean(squares) ** 0.5)
    assert score.errors["speed/RMSE"] == pytest.approx(wanted, rel=1e-3)
    assert score.counts["speed/A1.0"] == 24


def test_splits_and_protocols_are_checked(clips: Path) -> None:
    with pytest.raises(ValueError, match='the split "dev" is not known; there are: test, validation, train'):
        list(bddx_text.items(clips, "dev"))
    with pytest.raises(ValueError, match='the protocol "x" is not known'):
        bddx_signals.score([], [], protocol="x")
