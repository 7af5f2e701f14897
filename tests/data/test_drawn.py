"""Writing samples as files: layout, resuming, errors."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mini_internvl import synth
from mini_internvl.data.drawn import write
from mini_internvl.data.rows import read_samples


def test_images_and_lines_agree(tmp_path):
    meta = json.loads(write(["words", "shapes"], 3, tmp_path, seed=5).read_text())
    assert set(meta) == {"synth-words", "synth-shapes"}
    assert meta["synth-words"]["length"] == 3
    lines = [json.loads(line) for line in (tmp_path / "words-train.jsonl").read_text(encoding="utf-8").splitlines()]
    for index, line in enumerate(lines):
        image, questions = synth.draw("words", 5, index)
        with Image.open(tmp_path / line["image"]) as written:
            assert written.tobytes() == image.tobytes()
        assert line["conversations"][0] == {"from": "human", "value": "<image>\n" + questions[0].question}
        assert [t["value"] for t in line["conversations"][1::2]] == [q.answer for q in questions]


def test_a_cut_off_run_goes_on(tmp_path):
    write("words", 5, tmp_path / "whole")
    write("words", 3, tmp_path / "cut")
    path = tmp_path / "cut/words-train.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    seen = []
    write("words", 5, tmp_path / "cut", progress=lambda kind, done, wanted: seen.append((kind, done, wanted)))
    assert seen == [("words", 3, 5), ("words", 4, 5), ("words", 5, 5)]
    assert path.read_bytes() == (tmp_path / "whole/words-train.jsonl").read_bytes()


def test_another_seed_is_refused(tmp_path):
    write("words", 2, tmp_path, seed=1)
    with pytest.raises(ValueError, match="of another run"):
        write("words", 2, tmp_path, seed=2)


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="count is -1"):
        write("words", -1, tmp_path)
    with pytest.raises(ValueError, match="unknown kind"):
        write("sculpture", 1, tmp_path)
    (tmp_path / "words-train.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"words-train\.jsonl:1: not a sample"):
        write("words", 1, tmp_path)


def test_a_drawn_sample_reads_back_with_all_its_fields(tmp_path):
    write("words", 2, tmp_path)
    for index, read in enumerate(read_samples(tmp_path / "words-train.jsonl")):
        drawn = synth.make("words", 0, index)
        assert read.messages[1:] == drawn.messages[1:]
        assert read.messages[0]["content"][1] == drawn.messages[0]["content"][1]
        for field in ("id", "source", "max_tiles", "independent"):
            assert getattr(read, field) == getattr(drawn, field)
        assert list(read.patch_annotations) == list(drawn.patch_annotations)
