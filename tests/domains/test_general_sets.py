"""The general data sets of the paper in forms that the worked examples do not show."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.benchmarks import chartqa as chart_benchmark
from mini_internvl.data import DataError, Fault
from mini_internvl.domains import ai2d, as_v2, chartqa, docvqa, geoqa_plus, llava_zh, sharegpt4v, synthdog
from mini_internvl.domains._conversations import example_row, of_square
from mini_internvl.inputs.boxes import to_thousand
from mini_internvl.records import Sample


@pytest.mark.parametrize("listed", ["3.png\n", "3,7\n", "\ufeffid\r\n3\r\n", '"3"\n'])
def test_diagrams_of_the_test_are_left_out_in_any_form_of_their_list(tmp_path: Path, listed: str) -> None:
    ai2d.EXAMPLE.write(tmp_path)
    (tmp_path / ai2d.TEST_IDS).write_text(listed)
    samples = only(ai2d.convert(tmp_path, "train"))
    assert len(samples) == 3
    assert not any("Is it the test?" in str(sample.messages) for sample in samples)


@pytest.mark.parametrize("listed", ["", "\n", "id\n", "<html>Not found</html>"])
def test_a_list_of_test_diagrams_without_numbers_is_refused(tmp_path: Path, listed: str) -> None:
    ai2d.EXAMPLE.write(tmp_path)
    (tmp_path / ai2d.TEST_IDS).write_text(listed)
    with pytest.raises(DataError, match=r"ai2d_test_ids\.csv names no diagram .*fetch it again"):
        list(ai2d.convert(tmp_path, "train"))


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


def square(box: tuple[float, ...], width: int, height: int) -> list[float]:
    """What LLaVA's tools make of a box in pixels: shares of the square whose middle the image is."""
    side = max(width, height)
    image = Image.new("L", (side, side))
    corner = ((side - width) // 2, (side - height) // 2)
    image.paste(255, (*corner, corner[0] + width, corner[1] + height))
    left, top, _, _ = image.getbbox()
    return [(edge + (left, top)[place % 2]) / side for place, edge in enumerate(box)]


@given(st.data(), st.integers(2, 300), st.integers(2, 300))
def test_boxes_of_a_square_become_boxes_of_the_image(data: st.DataObject, width: int, height: int) -> None:
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    found = of_square(square((x1, y1, x2, y2), width, height), width, height)
    wanted = to_thousand((x1, y1, x2, y2), width, height)
    assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= 1
    assert all(0 <= edge <= 1000 for edge in found)


def test_a_box_in_the_margin_of_the_square_is_refused_and_a_rounded_one_is_not() -> None:
    assert of_square((0, 0.245, 1, 0.755), 200, 100) == (0, 0, 1000, 1000)
    for box in ((0, 0.2, 1, 0.5), (0, 0.5, 1, 0.8), (0.5, 0.3, 1.1, 0.5)):
        with pytest.raises(ValueError, match="leaves the image of 200x100"):
            of_square(box, 200, 100)
    with pytest.raises(ValueError, match="x1 <= x2"):
        of_square((0.5, 0.5, 0.4, 0.6), 200, 100)


def test_the_files_without_square_pad_give_the_boxes_of_the_others(tmp_path: Path) -> None:
    as_v2.EXAMPLE.write(tmp_path)
    stem, image = as_v2.FILES["region"], "coco/train2017/000000000025.jpg"
    for name, box in ((stem, "[[250, 250, 500, 750]]"), (f"{stem}_wo_square_pad", "[[250, 125, 500, 875]]")):
        folder = tmp_path / name
        (folder / image).parent.mkdir(parents=True)
        (folder / image).write_bytes((tmp_path / "data" / image).read_bytes())
        row = example_row(image, f"<image>\nWhat is at <box>{box}</box>?", "A disc.")
        (folder / f"{name}.json").write_text(json.dumps([row]))
    padded, plain = (
        only(as_v2.convert(tmp_path / name, "train"))[0].messages[0]["content"][1]["text"]
        for name in (stem, f"{stem}_wo_square_pad")
    )
    assert padded == plain == "What is at <box>[[250, 125, 501, 876]]</box>?"


def test_what_is_wrong_with_a_relation_is_told(tmp_path: Path) -> None:
    as_v2.EXAMPLE.write(tmp_path)
    told = reasons(as_v2.convert(tmp_path, "train"))
    assert told[:3] == [
        "<box>[[290, 202, 835]]</box> holds no boxes; they are lists of four numbers",
        "a <box> is not closed",
        "a turn holds no text",
    ]
    assert told[4].startswith("a box is x1, y1, x2, y2 with x1 <= x2")
    assert "leaves the image of 120x80" in told[5]
    assert told[6].endswith("its numbers are 0 to 999")
    for path in tmp_path.glob("rec_*.json"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds none of rec_conversation_22k_wo_square_pad\.json"):
        list(as_v2.convert(tmp_path, "train"))


def test_one_file_of_the_long_captions_is_enough_and_none_is_an_error(tmp_path: Path) -> None:
    sharegpt4v.EXAMPLE.write(tmp_path)
    whole = only(sharegpt4v.convert(tmp_path, "train"))
    first = tmp_path / f"{sharegpt4v.FILES['cap100k']}.json"
    lines = "".join(json.dumps(row) + "\n" for row in json.loads(first.read_text()))
    first.with_suffix(".jsonl").write_text(lines)  # InternVL's form
    first.unlink()
    assert only(sharegpt4v.convert(tmp_path, "train")) == whole
    first.with_suffix(".jsonl").unlink()
    assert only(sharegpt4v.convert(tmp_path, "train")) == whole[1:]
    (tmp_path / f"{sharegpt4v.FILES['mix665k']}.json").unlink()
    with pytest.raises(DataError, match=r"Lin-Chen/ShareGPT4V"):
        list(sharegpt4v.convert(tmp_path, "train"))


def test_chinese_conversations_are_read_from_internvls_lines_too(tmp_path: Path) -> None:
    llava_zh.EXAMPLE.write(tmp_path)
    path = tmp_path / "llava_instruct_150k_zh.json"
    rows = [row for row in json.loads(path.read_text()) if isinstance(row, dict)]
    whole = only(llava_zh.convert(tmp_path, "train"))
    for row in rows:
        row["image"] = f"train2017/{row.get('image', 'none')}"
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.unlink()
    assert only(llava_zh.convert(tmp_path, "train")) == whole


def test_pickles_of_geometry_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Mix-train.pk").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"Mix-train\.pk is a pickle, which can run code .* InternVL's geoqa\+\.jsonl"):
        list(geoqa_plus.convert(tmp_path, "train"))
    (tmp_path / "data/Mix-train.pk").unlink()
    with pytest.raises(DataError, match=r"geoqa\+\.jsonl is missing"):
        list(geoqa_plus.convert(tmp_path, "train"))


def test_pages_come_out_of_parquet_and_of_shards(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    page = synthdog.EXAMPLE.images["train/image_1.jpg"].png()
    truth = json.dumps({"gt_parse": {"text_sequence": "Tommy's  Heroes"}})
    (tmp_path / "hub/data").mkdir(parents=True)
    for part in range(2):
        row = {"image": {"bytes": page, "path": None}, "ground_truth": truth}
        table = pyarrow.Table.from_pylist([row, {**row, "image": None}])
        parquet.write_table(table, tmp_path / f"hub/data/train-0000{part}-of-00002-ab.parquet")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/train-000.tar", "w") as tar:
        for name, content in (("1.json", f'{{"ground_truth": {json.dumps(truth)}}}'.encode()), ("1.png", page)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    hub, shards = (list(synthdog.convert(tmp_path / name, "train")) for name in ("hub", "shards"))
    assert [one.id for one in only(hub)] == ["1", "3"]
    assert reasons(hub) == ["image holds no image"] * 2
    for sample in (*only(hub), *only(shards)):
        assert sample.messages[0]["content"][0]["image"] == page
        assert sample.messages[1]["content"] == "Tommy's Heroes"
    assert len(shards) == 1
    assert not list(synthdog.convert(tmp_path / "hub", "validation"))
    with pytest.raises(DataError, match="holds neither train-"):
        list(synthdog.convert(tmp_path, "train"))
