"""Rows of the text in pictures: reading order, questions, sources, stops and restarts, reviews, and RapidOCR itself."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mini_internvl import synth
from mini_internvl.data import DataError
from mini_internvl.data.ocr import Line, PictureText, folder, questions
from mini_internvl.data.ocr.order import in_reading_order
from mini_internvl.data.ocr.reviews import CORRECT, REJECT, Review, read_reviews, write_reviews
from mini_internvl.data.rows import read_samples
from mini_internvl.inputs import boxes
from mini_internvl.records import Interrupted
from mini_internvl.synth import fonts

WIDTHS = (40, 44, 60, 48, 52)


def line(text, x, y, width=100, height=20, confidence=1.0):
    return Line(text=text, box=(x, y, x + width, y + height), confidence=confidence)


def read_sizes(image):
    """A reader that finds the picture's width as its text, and nothing in those 60 pixels wide."""
    if image.width == 60:
        return []
    return [line(f"width {image.width}", 2, 3, 20, 8), line("faint", 2, 20, 20, 8, confidence=0.3)]


def read_nothing_again(image):
    raise AssertionError("a picture was read twice")


def coded(width):
    buffer = io.BytesIO()
    Image.effect_noise((width, 40), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """Five pictures in folders, one of them without text, and one that is damaged."""
    (tmp_path / "scans" / "b").mkdir(parents=True)
    for number, width in enumerate(WIDTHS):
        (tmp_path / "scans" / ("b" if number > 2 else "") / f"{number}.png").write_bytes(coded(width))
    (tmp_path / "scans" / "b" / "9.png").write_bytes(coded(40)[:200])
    return tmp_path / "scans"


def convert(source, out, **given):
    return folder.read_source(source, out, **{"read": read_sizes, "reader_name": "sizes", **given})


def content(out):
    names = (folder.TEXTS, folder.ROWS, folder.FAULTS, folder.RECORD)
    return {name: (out / name).read_bytes() for name in names}


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.booleans(), st.randoms(use_true_random=False)
)
@settings(max_examples=60, deadline=None)
def test_columns_are_read_from_left_to_right_between_lines_across_them(rows, title, foot, rng):
    columns = [2 + count for count in rows]
    end = 40 + 30 * max(columns)
    right = 150 * len(columns) - 50
    wanted = [line("title", 0, 0, right)] if title and len(columns) > 1 else []
    for place, count in enumerate(columns):
        wanted += [
            line(f"{place}-{row}", 150 * place, 40 + 30 * row + place % 3, rng.randint(60, 100)) for row in range(count)
        ]
    wanted += [line("foot", 0, end, right)] if foot and len(columns) > 1 else []
    mixed = rng.sample(wanted, len(wanted))
    assert in_reading_order(mixed) == wanted


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(1, 200), st.integers(1, 40)),
        max_size=30,
        unique=True,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_line_is_lost_or_doubled_however_they_lie(places):
    lines = [line(str(number), *place) for number, place in enumerate(places)]
    assert sorted(in_reading_order(lines), key=lambda one: int(one.text)) == lines


def test_words_of_one_line_are_read_with_their_line():
    row = [line("a", 0, 0), line("b", 200, 3), line("c", 400, 1)]
    assert in_reading_order([row[2], line("d", 0, 40, 500), row[1], row[0]]) == [*row, line("d", 0, 40, 500)]


def test_labels_far_apart_are_no_columns():
    """A chart: its title in the middle, values at their points, and the names of the points below."""
    title, values = (
        line("title", 240, 0, 190),
        [line("3", 530, 80, 50), line("1", 100, 125, 50), line("2", 310, 170, 50)],
    )
    names = [line("a", 90, 410, 60), line("b", 308, 410, 60), line("c", 525, 408, 60)]
    assert in_reading_order([*names, *values, title]) == [title, *values, *names]


def asked(name, *lines):
    picture = PictureText(name=name, image="a.png", width=200, height=100, lines=lines)
    return picture


@pytest.mark.parametrize(("texts", "said"), [(("Open daily", "9 to 5"), "en"), (("营业时间", "9:00"), "zh")])
def test_questions_are_in_the_language_of_the_text_and_true_of_it(tmp_path, texts, said):
    (tmp_path / "a.png").write_bytes(coded(40))
    lines = [line(text, 10, 10 + 30 * place, 80, 20) for place, text in enumerate(texts)]
    seen = set()
    for number in range(20):
        sample = questions.ask(asked(f"picture {number}", *lines), lines, tmp_path / "a.png")
        assert sample == questions.ask(asked(f"picture {number}", *lines), lines, tmp_path / "a.png")
        turns = [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in sample.messages]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            plain = boxes.parse(question)
            seen.add(question)
            if answer == "\n".join(texts):
                assert question in questions.READ_ALL[said]
            elif "<ref>" in question:
                [(text, [box])] = boxes.parse(answer)
                assert f"<ref>{text}</ref>" in question
                assert box == boxes.to_thousand(lines[texts.index(text)].box, 200, 100)
            else:
                [(_, [box])] = plain
                assert box == boxes.to_thousand(lines[texts.index(answer)].box, 200, 100)
    assert len(seen) > 8, "the forms are drawn from the name"


def test_a_text_that_holds_tags_is_a_fault(tmp_path):
    (tmp_path / "a.png").write_bytes(coded(40))
    for text in ("<box>[[1, 2, 3, 4]]</box>", "a <image> b"):
        with pytest.raises(ValueError, match=r"tag|image"):
            questions.ask(asked("a", line(text, 0, 0)), [line(text, 0, 0)], tmp_path / "a.png")


def test_a_folder_becomes_rows_that_training_reads(source, tmp_path):
    written = convert(source, tmp_path / "out")
    assert (written.rows, written.without_text, len(written.faults)) == (4, 1, 1)
    assert "9.png" in str(written.faults[0])
    samples = read_samples(tmp_path / "out" / folder.ROWS)
    assert [sample.id for sample in samples] == ["0.png", "1.png", "b/3.png", "b/4.png"]
    assert all("faint" not in str(sample.messages) for sample in samples)
    assert all(f"width {width}" in str(s.messages) for s, width in zip(samples, (40, 44, 48, 52), strict=True))


def test_a_stopped_run_goes_on_and_workers_change_nothing(source, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    convert(source, whole)
    for steps in (2, 1):
        left = iter([False] * (steps - 1) + [True])
        with pytest.raises(Interrupted, match="stopped after"):
            convert(source, parts, should_stop=lambda left=left: next(left))
        with (parts / folder.TEXTS).open("a") as file:
            file.write('{"name": "half')
        assert folder.write(parts).rows, "what is read already can be used"
    convert(source, parts, workers=2)
    assert content(parts) == content(whole)


def test_another_least_confidence_needs_no_second_reading(source, tmp_path):
    convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", min_confidence=0.2, read=read_nothing_again)
    assert "faint" in (tmp_path / "out" / folder.ROWS).read_text()
    with pytest.raises(DataError, match="min-confidence"):
        convert(source, tmp_path / "other", min_confidence=1.0, read=lambda image: [line("a", 0, 0, confidence=0.9)])


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    convert(source, tmp_path / "out")
    with pytest.raises(DataError, match="another folder"):
        convert(source, source)
    with pytest.raises(DataError, match="another folder"):
        convert(source / "b", tmp_path / "out")
    (source / "00.png").write_bytes(coded(40))
    with pytest.raises(DataError, match="was changed"):
        convert(source, tmp_path / "out")
    with pytest.raises(DataError, match="no picture"):
        convert(tmp_path / "out", tmp_path / "new")


def test_two_runs_do_not_share_a_folder(source, tmp_path):
    convert(source, tmp_path / "out")
    with folder.held(tmp_path / "out"), pytest.raises(DataError, match=r"in use by process \d+"):
        convert(source, tmp_path / "out", read=read_nothing_again)
    convert(source, tmp_path / "out", read=read_nothing_again)


def shard(path, *, described):
    with tarfile.open(path, "w") as tar:
        for number, width in enumerate(WIDTHS):
            members = {f"{number:04d}.png": coded(width), f"{number:04d}.txt": b"a caption"}
            if described:
                members[f"{number:04d}.json"] = b'{"caption": "a caption"}'
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": coded(width), "path": None} for width in WIDTHS]
    pyarrow.parquet.write_table(pyarrow.table({"Image": [*images, None], "n": list(range(6))}), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "tar", "tar without json", "jsonl"])
def test_files_of_rows_become_rows(kind, source, tmp_path):
    if kind == "parquet":
        file = parquet(tmp_path / "a.parquet")
    elif kind == "jsonl":
        names = ["0.png", "1.png", "2.png", "b/3.png", "b/4.png"]
        file = source / "a.jsonl"
        file.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    else:
        file = shard(tmp_path / "a.tar", described=kind == "tar")
    written = convert(file, tmp_path / "out")
    assert (written.rows, written.without_text, len(written.faults)) == (4, 1, 1 if kind == "parquet" else 0)
    samples = read_samples(tmp_path / "out" / folder.ROWS)
    assert [sample.id for sample in samples] == [f"{file.name}/{number:08d}" for number in (1, 2, 4, 5)]
    kept = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert kept == ([] if kind == "jsonl" else [f"{number:08d}.png" for number in (1, 2, 4, 5)])


def test_reviews_are_applied_to_the_rows(source, tmp_path):
    out = tmp_path / "out"
    convert(source, out)
    corrected = Review(verdict=CORRECT, lines=(line("breadth 44", 2, 3, 20, 8),))
    write_reviews(out, {"0.png": Review(verdict=REJECT), "1.png": corrected})
    assert read_reviews(out)["1.png"].lines == corrected.lines
    written = folder.write(out)
    assert (written.rows, written.rejected, written.corrected, written.without_text) == (3, 1, 1, 1)
    text = (out / folder.ROWS).read_text()
    assert "breadth 44" in text
    assert "width 44" not in text
    assert "width 40" not in text
    (out / "reviews.jsonl").write_text('{"name": "0.png", "verdict": "fine"}\n')
    with pytest.raises(DataError, match="line 1: no review"):
        folder.write(out)


def poster(path, texts, font, size=(640, 360)):
    """Texts in two columns of known lines, drawn large."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for place, text in enumerate(texts):
        pen.text((30 + place // 3 * 330, 30 + place % 3 * 60), text, font=font, fill="black")
    image.save(path)


@pytest.mark.slow
def test_rapidocr_reads_known_texts_in_order(tmp_path):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    source, rng = tmp_path / "scans", random.Random(0)
    source.mkdir()
    font = fonts.load(fonts.BUILT_IN, 28)
    known = {}
    for number in range(3):
        words = [synth.lexicon.word(rng, "train").upper() + f" {rng.randrange(100, 1000)}" for _ in range(6)]
        known[f"{number}.png"] = words
        poster(source / f"{number}.png", words, font)
    for workers in (1, 2):
        folder.read_source(source, tmp_path / f"out{workers}", workers=workers)
    assert content(tmp_path / "out1") == content(tmp_path / "out2")
    for picture in folder.read_texts(tmp_path / "out1"):
        assert [one.text for one in picture.lines] == known[picture.name]
        left, top, right, bottom = picture.lines[0].box
        assert (left, top) == pytest.approx((30, 35), abs=12)
        assert bottom - top == pytest.approx(30, abs=12)
        assert right < 330


@pytest.mark.slow
def test_rapidocr_reads_chinese(tmp_path):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    path = fonts.pick_cjk(random.Random(0))
    if path is None:
        pytest.skip("no font here draws Chinese")
    (tmp_path / "scans").mkdir()
    poster(tmp_path / "scans" / "a.png", ["今天天气很好", "营业时间"], fonts.load(path, 40))
    folder.read_source(tmp_path / "scans", tmp_path / "out")
    [picture] = folder.read_texts(tmp_path / "out")
    assert [one.text for one in picture.lines] == ["今天天气很好", "营业时间"]
    assert "图" in str(read_samples(tmp_path / "out" / folder.ROWS)[0].messages)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_same_rows_and_goes_on(source, tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from mini_internvl.data.ray_workers import ray_map

    file = shard(tmp_path / "a.tar", described=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        for given in (source, file):
            whole, parts = tmp_path / f"{given.name} whole", tmp_path / f"{given.name} parts"
            convert(given, whole)
            with pytest.raises(Interrupted):
                convert(given, parts, mapped=ray_map, workers=2, should_stop=lambda: True)
            convert(given, parts, mapped=ray_map, workers=2)
            assert content(parts) == content(whole)
    finally:
        ray.shutdown()
