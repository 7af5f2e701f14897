"""The general data sets of the paper in forms that the worked examples do not show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini_internvl.benchmarks import chartqa as chart_benchmark
from mini_internvl.data import DataError, Fault
from mini_internvl.domains import ai2d, chartqa, docvqa
from mini_internvl.records import Sample


def only(found: Iterable[Sample | Fault]) -> list[Sample]:
    return [one for one in found if isinstance(one, Sample)]


def reasons(found: Iterable[Sample | Fault]) -> list[str]:
    return [one.reason for one in found if isinstance(one, Fault)]


def test_the_charts_benchmark_asks_the_authors_files_as_internvls(tmp_path: Path) -> None:
    """The same questions in both forms give the same items, but for where the images lie."""
    published, original = (tmp_path / name for name in ("published", "original"))
    chart_benchmark.EXAMPLE.write(published)
    chart_benchmark.EXAMPLE.write(original)
    for half in chart_benchmark.HALVES:
        path = original / f"chartqa/test_{half}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        written = [
            {"imgname": Path(row["image"]).name, "query": row["question"], "label": row["answer"]} for row in rows
        ]
        for row in written:
            row["label"] = row["label"][0] if isinstance(row["label"], list) else row["label"]
        (original / f"chartqa/ChartQA Dataset/test/test_{half}.json").write_text(json.dumps(written))
    for split in ("test", "human", "augmented"):
        for protocol in ("paper", "vlmevalkit-head"):
            ours, theirs = (
                list(chart_benchmark.items(folder, split, protocol=protocol)) for folder in (original, published)
            )
            assert [item.id for item in ours] == [item.id for item in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert one.messages[0]["content"][1] == other.messages[0]["content"][1]
                assert (one.max_tiles, one.max_new_tokens) == (other.max_tiles, other.max_new_tokens)
                assert one.reference["half"] == other.reference["half"]
    (original / "chartqa/ChartQA Dataset/test/test_human.json").unlink()
    with pytest.raises(DataError, match=r"lacks test_human\.jsonl"):
        list(chart_benchmark.items(original))


def test_the_faults_of_charts_say_where_they_are(tmp_path: Path) -> None:
    chartqa.EXAMPLE.write(tmp_path)
    faults = [one for one in chartqa.convert(tmp_path, "train") if isinstance(one, Fault)]
    assert [f"{fault.file.name}:{fault.place}" for fault in faults[:2]] == ["train_human.json:row 3"] * 1 + [
        "train_human.json:row 4"
    ]
    assert faults[2].reason.startswith("the image 9.png is missing; put it below ")


def test_letters_stand_where_the_diagrams_texts_stood(tmp_path: Path) -> None:
    ai2d.EXAMPLE.write(tmp_path)
    found = only(ai2d.convert(tmp_path, "train"))
    drawn = tmp_path / "abc_images/1.png"
    plain, lettered = (Image.open(path).convert("L") for path in (tmp_path / "images/1.png", drawn))
    plain, lettered = np.asarray(plain), np.asarray(lettered)
    inside = lettered[10:31, 20:61]
    assert (inside.min(), inside.max(), inside[0, 0]) == (0, 255, 255)  # black on white
    high, wide = (np.ptp(places) + 1 for places in np.nonzero(inside < 128))
    assert 14 <= high <= 21  # as high as the rectangle allows
    assert wide < 25
    changed = plain != lettered
    changed[10:31, 20:61] = False
    assert not changed.any()
    drawn.write_bytes((tmp_path / "images/2.png").read_bytes())  # InternVL's own images are taken as they are
    assert only(ai2d.convert(tmp_path, "train")) == found
    assert drawn.read_bytes() == (tmp_path / "images/2.png").read_bytes()


def test_faults_of_diagrams_name_file_question_and_remedy(tmp_path: Path) -> None:
    ai2d.EXAMPLE.write(tmp_path)
    faults = [one for one in ai2d.convert(tmp_path, "train") if isinstance(one, Fault)]
    told = [f"{fault.file.name} {fault.place}: {fault.reason}" for fault in faults]
    assert told[0] == (
        '1.png.json question "Is the answer there?": correctAnswer is 2; it must be the place of one of 2 answerTexts, '
        "from 0"
    )
    assert told[1] == '1.png.json question "Are there options?": answerTexts is no list of texts'
    assert told[2].endswith("2.png.json is missing, which says where the letters stand")
    assert told[3].endswith("4.png is missing")
    (tmp_path / "annotations/2.png.json").write_text('{"text": {"T0": {"rectangle": [[9, 9], [2, 20]]}}}')
    assert "the annotation T0 has no rectangle [[x1, y1], [x2, y2]] with its letter" in reasons(
        ai2d.convert(tmp_path, "train")
    )


def test_the_test_of_the_diagrams_is_never_trained_on(tmp_path: Path) -> None:
    ai2d.EXAMPLE.write(tmp_path)
    (tmp_path / "ai2d_test_ids.csv").write_text("1\r\n2\n3\n")
    assert not only(ai2d.convert(tmp_path, "train"))
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(DataError, match=r"ai2d_test_ids\.csv is missing"):
        list(ai2d.convert(tmp_path, "train"))


@pytest.mark.parametrize(
    ("annotations", "pages"),
    [
        ("train/train_v1.0.json", "train/documents"),
        ("spdocvqa_qas/train_v1.0_withQT.json", "spdocvqa_images"),
        ("docvqa/train_v1.0.json", "docvqa/documents"),
    ],
)
def test_scanned_pages_are_found_in_the_old_release_and_in_the_new_one(
    annotations: str, pages: str, tmp_path: Path
) -> None:
    docvqa.EXAMPLE.write(tmp_path / "given")
    for old, new in (("train/train_v1.0_withQT.json", annotations), ("train/documents", pages)):
        (tmp_path / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / old).rename(tmp_path / new)
    found = only(docvqa.convert(tmp_path, "train"))
    assert [sample.id for sample in found] == ["337", "343"]
    assert found[0].messages[0]["content"][0]["image"].startswith(str(tmp_path / pages))
