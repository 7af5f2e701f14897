"""MathVista and DriveLM: prompts, files, protocols, judges, stitched images and submissions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini_internvl.benchmarks import drivelm, mathvista
from mini_internvl.benchmarks._drivelm_views import Stitched
from mini_internvl.data import DataError
from mini_internvl.inputs.images import load_image
from mini_internvl.metrics.drivelm import CAMERAS
from mini_internvl.records import Item, JudgeError, Prediction


def answered(items: list[Item], texts: list[str]) -> list[Prediction]:
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def parts(item: Item) -> list[dict]:
    return list(item.messages[-1]["content"])


@pytest.fixture(scope="module")
def maths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mathvista.EXAMPLE.write(tmp_path_factory.mktemp("mathvista"))


@pytest.fixture
def driving(tmp_path: Path) -> Path:
    return drivelm.EXAMPLE.write(tmp_path)


# MathVista.


def test_mathvista_prompt_is_the_query(maths: Path) -> None:
    item = next(iter(mathvista.items(maths)))
    assert parts(item)[-1]["text"] == "Hint: Please answer the question.\nQuestion: Question 0?"
    assert (item.max_tiles, item.max_new_tokens) == (6, 1024)
    assert next(iter(mathvista.items(maths, protocol="internvl"))).max_new_tokens == 4096
    with pytest.raises(ValueError, match='protocol "x" is not known'):
        list(mathvista.items(maths, protocol="x"))


def test_mathvista_judge(maths: Path) -> None:
    items = list(mathvista.items(maths))
    predictions = answered(items, ["it is 14", "0.5", "C", "三角形", "8", "1,200"])
    alone = mathvista.score(items, predictions)
    assert alone.values["accuracy"] == pytest.approx(400 / 6)
    assert alone.partial == "2 of 6 replies need a judge and count as wrong: the accuracy is a lower bound"
    asked: list[str] = []

    def judge(prompt: str, *, temperature: float = 0.0, system: str = "") -> str:
        asked.append(prompt)
        return " 14 " if "it is 14" in prompt else "1,200"

    score = mathvista.score(items, predictions, judge=judge)
    assert score.values["accuracy"] == pytest.approx(500 / 6)
    assert score.partial == ""
    assert score.values["prefetch_rate"] == pytest.approx(400 / 6)
    assert len(asked) == 2
    tail = "\n\nHint: Please answer the question.\nQuestion: Question 0?\nReply: it is 14\nExtracted answer: "
    assert asked[0].endswith(tail)
    table = score.notes["table"][0]
    assert (table["tot"], table["prefetch"], table["hit"]) == (6, 4, 5)


def test_mathvista_judge_errors_pass_through(maths: Path) -> None:
    items = list(mathvista.items(maths))

    def judge(prompt: str, *, temperature: float = 0.0, system: str = "") -> str:
        raise JudgeError("no connection")

    for protocol in ("paper", "official"):
        with pytest.raises(JudgeError, match="no connection"):
            mathvista.score(items, answered(items, ["it is 14"] * 6), protocol=protocol, judge=judge)


def test_mathvista_official_protocols(maths: Path) -> None:
    items = list(mathvista.items(maths))
    predictions = answered(items, ["Answer: 14", "0.5", 'The answer is "C".', "三角形", "8", "1200"])
    values = {name: mathvista.score(items, predictions, protocol=name) for name in mathvista.PROTOCOLS}
    assert values["official"].notes["undecided"] == 2
    assert values["official-quick"].notes["undecided"] == 1
    assert values["internvl-quick"].partial == ""
    scores = values["internvl-quick"].notes["scores"]
    assert scores["average"] == {"accuracy": "83.33", "correct": 5, "total": 6}
    assert scores["skills"]["arithmetic reasoning"]["total"] == 4


def official_json(folder: Path, **changes: object) -> Path:
    problem = {
        "pid": "7",
        "question": "How many?",
        "image": "images/7.jpg",
        "choices": None,
        "unit": None,
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
        "query": "Hint: a number.\nQuestion: How many?",
        "metadata": {"task": "math word problem", "skills": ["arithmetic reasoning"], "language": "english"},
    }
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images" / "7.jpg")
    (folder / "testmini.json").write_text(json.dumps({"7": problem | changes}))
    return folder


def test_mathvista_official_file(tmp_path: Path) -> None:
    [item] = mathvista.items(official_json(tmp_path), protocol="official")
    assert item.id == "7"
    assert Path(parts(item)[0]["image"]).is_file()
    assert mathvista.score([item], answered([item], ["1.23"]), protocol="official").values["accuracy"] == 100
    assert mathvista.score([item], answered([item], ["1.23"])).values["accuracy"] == 0  # no rounding
    json.dumps(dict(item.reference))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, r"row 1: no query; take the file"),
        ({"image": "images/8.jpg"}, r"row 1: the image images/8.jpg is missing"),
        ({"question_type": "essay"}, "row 1: question_type is 'essay'"),
        ({"question_type": "multi_choice"}, "row 1: no choices"),
        ({"precision": "two"}, "row 1: precision is 'two'"),
    ],
)
def test_mathvista_bad_files(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list(mathvista.items(official_json(tmp_path, **change)))


def test_mathvista_bad_table(tmp_path: Path) -> None:
    rows = mathvista.EXAMPLE.files[mathvista.TABLE]

    def write(*rows: dict) -> None:
        replace(mathvista.EXAMPLE, files={mathvista.TABLE: rows}).write(tmp_path)

    path = tmp_path / mathvista.TABLE
    write(rows[0], {**rows[1], "image": "%%%"})
    with pytest.raises(DataError, match=r"MathVista_MINI\.tsv: row 2: broken base64"):
        list(mathvista.items(tmp_path))
    write({name: cell for name, cell in rows[0].items() if name != "skills"})
    with pytest.raises(DataError, match="no column skills"):
        list(mathvista.items(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"lacks MathVista_MINI\.tsv"):
        list(mathvista.items(tmp_path))


# DriveLM.


def test_drivelm_prompts(driving: Path) -> None:
    items = list(drivelm.items(driving))
    text = parts(items[1])[-1]["text"]
    question = "What is the moving status of object <c1,CAM_FRONT,[500, 250]>? Options: A. Going ahead. B. Stopped."
    assert text == f"{question} {drivelm.OBJECTS}"
    assert parts(items[4])[-1]["text"] == items[4].reference["question"]  # nothing about objects
    assert (items[0].max_tiles, items[0].max_new_tokens) == (12, 200)
    [asked] = drivelm.items(driving, "val_q_only")
    assert (
        parts(asked)[-1]["text"] == f"<image>\nWhat are the important objects in the current scene? {drivelm.OBJECTS}"
    )
    assert asked.reference["question"] == "What are the important objects in the current scene?"
    official = next(iter(drivelm.items(driving, protocol="official")))
    assert [part.get("name") for part in parts(official)] == [*CAMERAS, None]
    json.dumps([dict(item.reference) for item in items])


def test_drivelm_stitches_when_a_image_is_opened(driving: Path) -> None:
    items = list(drivelm.items(driving))
    stitched = parts(items[0])[0]["image"]
    assert isinstance(stitched, Stitched)
    assert parts(items[1])[0]["image"] is stitched
    assert not (driving / "stitch").exists()
    image = load_image(stitched)
    assert image.size == (2688, 896)
    red, green, blue = np.asarray(image.crop((0, 0, 500, 60))).transpose(2, 0, 1)
    assert ((red > 200) & (green < 90) & (blue > 200)).sum() > 500  # the camera's name
    assert (driving / "stitch" / "scene1_frame1.jpg").is_file()
    assert [path.name for path in (driving / "stitch").iterdir()] == ["scene1_frame1.jpg"]
    assert parts(next(iter(drivelm.items(driving))))[0]["image"] == str(driving / "stitch" / "scene1_frame1.jpg")


def test_drivelm_reads_views_in_place(driving: Path) -> None:
    """Left to right, top to bottom, each in its own cell."""
    for number, camera in enumerate(CAMERAS):
        [path] = (driving / "nuscenes" / "samples" / camera).iterdir()
        Image.new("RGB", (160, 90), (20 * number, 100, 200)).save(path, "PNG")
    image = load_image(parts(next(iter(drivelm.items(driving))))[0]["image"])
    reds = [image.getpixel((896 * column + 600, 448 * row + 300))[0] for row in (0, 1) for column in range(3)]
    assert reds == pytest.approx([0, 20, 40, 60, 80, 100], abs=3)


def test_drivelm_without_a_judge(driving: Path) -> None:
    items = list(drivelm.items(driving))
    score = drivelm.score(items, answered(items, list(drivelm.EXAMPLE.good)))
    assert score.partial.startswith("without a judge")
    assert "final" not in score.values
    assert {"accuracy", "language", "match/distance"} <= set(score.values)
    assert score.notes["dropped"] == 1  # it asks about an object that the first answer does not name
    nothing = drivelm.score(items, [])
    assert nothing.notes["dropped"] == 2
    assert nothing.values["accuracy"] == 0.0


def test_drivelm_judge_prompt_and_replies(driving: Path) -> None:
    items = list(drivelm.items(driving))
    heard: list[tuple[str, float, str]] = []

    def judge(prompt: str, *, temperature: float = 0.0, system: str = "") -> str:
        heard.append((prompt, temperature, system))
        return "I would say 80/100." if "Brake" in prompt else "cannot tell"

    score = drivelm.score(items, answered(items, list(drivelm.EXAMPLE.good)), judge=judge)
    assert score.values["chatgpt"] == 80
    assert score.values["match/judge"] == 0
    assert score.notes["judge_unreadable"] == 1
    assert heard[0][0].endswith("Reference answer: Brake gently to a stop.\nAnswer to grade: Brake gently to a stop.")
    assert heard[0][1:] == (0.6, drivelm.JUDGE_SYSTEM)


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("62", 62),
        (" 7.5\n", 7.5),
        ("85/100", 85),
        ("Score: 41.", 41),
        ("1000 or 12", 12),
        ("nan", None),
        ("good", None),
    ],
)
def test_drivelm_grades(reply: str, mark: float | None) -> None:
    assert drivelm.read_grade(reply) == mark


def test_drivelm_submission(driving: Path, tmp_path: Path) -> None:
    items = list(drivelm.items(driving, "val_q_only"))
    paths = drivelm.export(items, answered(items, ["A bus <c1,CAM_FRONT,[500, 250]>."]), tmp_path / "out")
    output, submission = (json.loads(path.read_text()) for path in paths)
    names = ["method", "team", "authors", "email", "institution", "country", "results"]
    assert list(submission) == names
    assert submission["results"] == output
    assert output == [
        {
            "id": "scene2_frame1_0",
            "question": "What are the important objects in the current scene?",
            "answer": "A bus <c1,CAM_FRONT,800.0,450.0>.",
            "gt_answer": "",
        }
    ]
    with pytest.raises(ValueError, match="no published answers"):
        drivelm.score(items, [])


def test_drivelm_converted_file_alone(driving: Path) -> None:
    (driving / "v1_1_val_nus_q_only.json").unlink()
    with pytest.raises(DataError, match=r"scene2_frame1\.jpg: no such stitched image"):
        list(drivelm.items(driving, "val_q_only"))
    folder = driving / "images" / "drivelm" / "stitch"
    folder.mkdir(parents=True)
    Image.new("RGB", (30, 10)).save(folder / "scene2_frame1.jpg")
    [item] = drivelm.items(driving, "val_q_only")
    assert parts(item)[0]["image"] == str(folder / "scene2_frame1.jpg")
    assert (item.id, item.reference["scene"], item.reference["number"]) == ("scene2_frame1_0", "scene2", 0)


def test_drivelm_bad_files(driving: Path) -> None:
    path = driving / "v1_1_val_nus.json"
    data = json.loads(path.read_text())
    rows = data["scene1"]["key_frames"]["frame1"]["QA"]
    del rows["perception"][1]["tag"]
    del rows["planning"][0]["Q"]
    path.write_text(json.dumps(data))
    with pytest.raises(
        DataError, match=r"scene1_frame1_1: no tag of 0 to 3; row scene1_frame1_4: no Q; .*extract_data"
    ):
        list(drivelm.items(driving))
    path.unlink()
    with pytest.raises(DataError, match=r"lacks v1_1_val_nus\.json"):
        list(drivelm.items(driving))


def test_drivelm_missing_view(driving: Path) -> None:
    for path in (driving / "nuscenes" / "samples" / "CAM_BACK").iterdir():
        path.unlink()
    with pytest.raises(
        DataError, match=r"scene1_frame1\.jpg: no view \.\./nuscenes/samples/CAM_BACK/a__CAM_BACK__1\.jpg"
    ):
        list(drivelm.items(driving))
