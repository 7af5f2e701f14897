"""``minivl adapt`` on data as people have them, each kind by one command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from mini_internvl.data.rows import read_rows
from mini_internvl.records import Sample

COUNT = 12  # pictures of each kind of data


def picture(number: int) -> Image.Image:
    image = Image.new("RGB", (60, 40), (number * 20, 90, 200))
    ImageDraw.Draw(image).rectangle((5, 5, 20 + number, 30), fill="white")
    return image


def save(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def json_list(folder: Path) -> str:
    """LLaVA's form: one list, indented."""
    names = [f"images/{number}.png" for number in range(COUNT)]
    save(folder, *names)
    rows = [
        {
            "id": f"row-{number}",
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": ("the car", "the word")[number % 2]},
                {"from": "human", "value": "How many?"},
                {"from": "gpt", "value": str(number % 3)},
            ],
        }
        for number, name in enumerate(names)
    ]
    (folder / "mine.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return "mine.json"


def coco(folder: Path) -> str:
    names = [f"{number}.png" for number in range(COUNT)]
    save(folder / "images", *names)
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": name, "width": 60, "height": 40} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "category_id": n % 2, "bbox": [5, 5, 15 + n, 25]} for n in range(COUNT)],
        "categories": [{"id": 0, "name": "car"}, {"id": 1, "name": "word"}],
    }
    (folder / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    return "labels.json"


def yolo(folder: Path) -> str:
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        save(folder / "yolo" / split / "images", *(f"{split}{number}.png" for number in range(count)))
        (folder / "yolo" / split / "labels").mkdir()
        for number in range(count):
            text = "0 0.3 0.4 0.2 0.5\n" * (1 + number % 2)
            (folder / "yolo" / split / "labels" / f"{split}{number}.txt").write_text(text, encoding="utf-8")
    (folder / "yolo/data.yaml").write_text("nc: 1\nnames: [car]\n", encoding="utf-8")
    return "yolo"


def table(folder: Path) -> str:
    save(folder, *(f"{number}.png" for number in range(COUNT)))
    with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image_path", "question", "A", "B", "answer"])
        for number in range(COUNT):
            lines.writerow([f"{number}.png", "What is this?", "a car", "a word", "AB"[number % 2]])
    return "mine.csv"


def class_folders(folder: Path) -> str:
    for name in ("car", "word"):
        for split, count in (("train", 5), ("val", 2), ("test", 2)):
            save(folder / "photos" / split / name, *(f"{number}.png" for number in range(count)))
    return "photos"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "format", "shapes"),
    [
        (json_list, "a JSON list", {"the same words", "whole numbers, exact"}),
        (coco, "COCO, 12 objects of 2 classes", {"yes or no", "whole numbers, exact", "boxes, F1 at an IoU of 0.5"}),
        (yolo, "YOLO, 15 objects of 1 class", {"yes or no", "whole numbers, exact", "boxes, F1 at an IoU of 0.5"}),
        (table, "a table", {"the letter of an option"}),
        (class_folders, "a folder of pictures for each of 2 classes", {"the same words"}),
    ],
)
def test_one_command_adapts_to_what_people_have(
    write: Callable[[Path], str], format: str, shapes: set[str], minivl, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / write(tmp_path)
    options = ["--epochs", "1", "--batch-size", "8", "--max-tiles", "2", "--max-length", "2000", "--device", "cpu"]
    more = ["--workers", "0", "--no-report", "--json", "--lora", "2"]
    code, out, err = minivl("adapt", path, "--model", checkpoint, "--output", tmp_path / "run", *options, *more)
    assert code == 0, err
    result = json.loads(out)
    assert f"{path}: {format}" in err
    told = [line for line in err.splitlines() if " test questions: " in line]
    assert {line.rpartition(": ")[2] for line in told} == shapes
    assert (result["domain"], result["benchmarks"]) == (path.stem, ["own"])
    score = json.loads((tmp_path / "run/adapted/own/score.json").read_text(encoding="utf-8"))
    assert score["max_tiles"] == 2
    assert score["primary_metric"] in score["values"]
    rows = [one for one in read_rows(tmp_path / "run/rows/train.jsonl") if isinstance(one, Sample)]
    assert len(rows) == result["data"]["train"]["rows"] >= 5
    assert list(result["validation"]) == ["own mean"]


def test_crops_and_other_options_that_do_not_fit_are_told(minivl, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / coco(tmp_path)
    given = ["--model", checkpoint, "--output", tmp_path / "run"]
    for arguments, message in (
        ([path, "--data", tmp_path], "is the data already; leave --data out"),
        ([path, "--build", "train=3"], "labels builds nothing by train; it takes crop"),
        (["driving-sim", "--crop", "64"], "driving-sim builds nothing by crop"),
        ([tmp_path / table(tmp_path), "--crop", "64"], "holds no boxes (COCO, Pascal VOC, YOLO)"),
    ):
        code, _, err = minivl("adapt", *arguments, *given)
        assert code == 1
        assert message in err


def contents(folder: Path) -> dict[Path, bytes]:
    """Path -> bytes of every file of a run that says what it is of."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("seconds.json", ".lock")]
    return {path.relative_to(folder): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_a_finished_run_is_not_taken_for_one_of_other_data(minivl, checkpoint: Path, tmp_path: Path) -> None:
    """Its scores would be of a model that was trained on other rows, some of them in the test set now."""
    path = tmp_path / json_list(tmp_path)
    command = [
        "adapt", path, "--model", checkpoint, "--output", tmp_path / "run", "--epochs", 1, "--batch-size", 4,
        "--general", "none", "--probe", "none", "--device", "cpu", "--precision", "fp32", "--workers", 0, "--no-report",
    ]  # fmt: skip
    code, _, err = minivl(*command)
    assert code == 0, err
    before = contents(tmp_path / "run")
    assert {Path("adapt.json"), Path("data/train.jsonl"), Path("rows/train.jsonl")} <= before.keys()
    code, _, err = minivl(*command, "--crop", 64)
    assert code == 1
    assert "(crop 0 then, 64 now) is not the data that the run in" in err
    rows = json.loads(path.read_text(encoding="utf-8"))
    for one in rows:
        one["conversations"][1]["value"] = "a tree"
    path.write_text(json.dumps(rows), encoding="utf-8")
    code, _, err = minivl(*command)
    assert code == 1
    assert "is not the data that the run in" in err
    assert contents(tmp_path / "run") == before
    code, _, err = minivl(*command, "--extend")
    assert code == 1
    assert "so nothing would be learnt from the data as it is now; give it more steps (minivl adapt: --epochs)" in err
    code, _, err = minivl(*command[:5], tmp_path / "other", *command[6:])
    assert code == 0, err
