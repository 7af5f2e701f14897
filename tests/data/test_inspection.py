"""Every planted fault is found with its file and row, none on the clean twin, and the clean copy has none."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from mini_internvl.data.convert import convert
from mini_internvl.data.duplicates import Pairs

ROWS = 64


def picture(seed, size=(96, 64)):
    """An image like no other: soft random blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def turns(*said):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]


def row(number):
    name = f"images/{number}.{('png', 'jpg')[number % 2]}"
    said = turns(f"<image>\nWhat is shown here, case {number}?", f"Scene {number}.")
    if number % 4 == 1:
        said += turns("Where?", f"<ref>scene</ref><box>[[{number}, 20, 500, 1000]]</box>")
    return {"id": f"row-{number}", "image": name, "conversations": said}


def write_clean(folder, count=ROWS):
    (folder / "images").mkdir(parents=True)
    rows = [row(number) for number in range(count)]
    for number, one in enumerate(rows):
        picture(number).save(folder / one["image"])
    return rows


def write(path, rows):
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def said(row, place, text):
    row["conversations"][place]["value"] = text


def damaged(path):
    """Rows of pixels that no decoder reads, in a file whose header and end are whole."""
    buffer = io.BytesIO()
    Image.effect_noise((96, 64), 90).convert("RGB").save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[3000:3040] = bytes(40)
    path.write_bytes(content)


BOX = "<ref>scene</ref><box>[[{}]]</box>"
SPOILED_ROWS = {
    "not an object": (lambda r: b"[1, 2]", "not an object"),
    "cut off JSON": (lambda r: json.dumps(r).encode()[:40], "not valid JSON"),
    "not UTF-8": (lambda r: json.dumps(r).encode().replace(b"Scene", b"Sc\xe8ne"), "not valid UTF-8"),
    "no known keys": (lambda r: {"question": "What?", "picture": "a.png"}, "no format reads a row"),
    "half a character": (lambda r: json.dumps(r).encode().replace(b"Scene", b"\\ud83d"), "lone surrogate"),
}
SPOILED = {
    "turns are a text": (lambda r, f: r.update(conversations="What?"), "it must be a list of turns"),
    "a turn without value": (lambda r, f: r["conversations"][1].pop("value"), "has no value"),
    "unknown speaker": (lambda r, f: r["conversations"][1].update({"from": "bot"}), 'unknown speaker "bot"'),
    "answer is a number": (lambda r, f: said(r, 1, 7), "must be a text"),
    "two placeholders": (lambda r, f: said(r, 0, "<image><image>\nWhich?"), "2 <image> placeholders but 1 images"),
    "image in an answer": (lambda r, f: said(r, 1, "<image>"), "is an answer and holds an image"),
    "two questions": (lambda r, f: r["conversations"].insert(0, turns("Hm?")[0]), "the assistant's is due"),
    "no answer": (lambda r, f: r["conversations"].__delitem__(slice(1, None)), "there is no answer to learn"),
    "empty answer": (lambda r, f: said(r, 1, ""), "is empty"),
    "answer of spaces": (lambda r, f: said(r, 1, "  "), "an answer holds only spaces"),
    "question without text": (lambda r, f: said(r, 0, "<image>\n"), "a question holds no text"),
    "question at the end": (
        lambda r, f: r["conversations"].append(turns("And?")[0]),
        "the last question has no answer",
    ),
    "missing image": (lambda r, f: (f / r["image"]).unlink(), "is missing"),
    "empty image": (lambda r, f: (f / r["image"]).write_bytes(b""), "is empty"),
    "a page for an image": (lambda r, f: (f / r["image"]).write_text("<html>not found"), "its content is text"),
    "cut off image": (lambda r, f: (f / r["image"]).write_bytes((f / r["image"]).read_bytes()[:600]), "damaged or cut"),
    "damage within": (lambda r, f: damaged(f / r["image"]), "damaged or cut off"),
    "a strip": (lambda r, f: Image.new("RGB", (4, 1200)).save(f / r["image"]), "one side is more than 200 times"),
    "a web address": (lambda r, f: r.update(image="https://example.org/a.png"), "is a web address"),
    "tiny image": (lambda r, f: picture(1, (5, 5)).save(f / r["image"]), "5x5 pixels"),
    "one colour": (
        lambda r, f: Image.new("RGB", (90, 60), "black").save(f / r["image"]),
        "one colour and nothing else",
    ),
    "box above 1000": (lambda r, f: said(r, 1, BOX.format("10, 20, 1920, 1080")), "a coordinate above 1000"),
    "box below 0": (lambda r, f: said(r, 1, BOX.format("-4, 20, 30, 40")), "a coordinate below 0"),
    "box swapped": (lambda r, f: said(r, 1, BOX.format("300, 20, 100, 400")), "swapped corners"),
    "box without area": (lambda r, f: said(r, 1, BOX.format("30, 20, 30, 400")), "a box has no area"),
    "box in shares": (lambda r, f: said(r, 1, BOX.format("0.1, 0.2, 0.5, 0.75")), "in shares of 1"),
    "box of three": (lambda r, f: said(r, 1, BOX.format("10, 20, 30")), "no list of four numbers"),
    "tag not closed": (lambda r, f: said(r, 1, "<ref>scene</ref><box>[[1, 2, 3, 4]]"), "is not closed"),
    "question's box": (lambda r, f: said(r, 0, "<image>\nWhat is in <box>[[1, 2, 1100, 40]]</box>?"), "in a question"),
    "lost character": (lambda r, f: said(r, 1, "Caf\ufffd"), "U+FFFD"),
    "rendered template": (lambda r, f: said(r, 1, "Scene.<|im_end|>"), "<|im_end|>"),
    "unknown key": (lambda r, f: r.update(mood="good"), 'the key "mood" is not read'),
    "images under another key": (lambda r, f: r.update(audio="a.mp3"), '"audio" would reach no sample'),
    "wrong tile limit": (lambda r, f: r.update(max_tiles="six"), "max_tiles is 'six'"),
    "wrong target": (lambda r, f: r.update(targets={"speed": [1, "x"]}), "targets.speed"),
    "too long": (lambda r, f: said(r, 1, "word " * 700), "more than max_length"),
}


def plant(rows, folder):
    """Spoil rows, each in one way, every other row; returns {line: (name, what is said of it)}."""
    planted, places = {}, iter(range(2, len(rows), 1))
    for name, (spoil, words) in SPOILED_ROWS.items():
        place = next(places)
        rows[place] = spoil(rows[place])
        planted[place + 1] = name, words
    for name, (spoil, words) in SPOILED.items():
        place = next(places)
        spoil(rows[place], folder)
        planted[place + 1] = name, words
    place = next(places)
    rows[place] = {**row(0), "id": "again"}
    planted[place + 1] = "a copy", ":1; "
    place = next(places)
    rows[place] = {**rows[place], "image": "images/1.jpg", "conversations": row(1)["conversations"]}
    planted[place + 1] = "a copy of another", ":2; "
    return planted


@pytest.fixture
def check(minivl, checkpoint):
    def run(*arguments):
        limits = ["--model", checkpoint, "--max-length", 512, "--workers", 1]
        code, out, err = minivl("data", "check", *arguments, *limits, "--json")
        assert out, err
        return code, json.loads(out)

    return run


def wrong(found):
    return [one for one in found["findings"] if one["level"] != "note"]


@pytest.fixture
def spoiled(tmp_path):
    """(file of rows, file of the test set, {line: (name, what is said of it)})."""
    rows, tested = write_clean(tmp_path / "spoiled"), write_clean(tmp_path / "test", 6)
    for number in range(6):
        picture(1000 + number).save(tmp_path / "test" / tested[number]["image"])
    images = tmp_path / "spoiled" / "images"
    (tmp_path / "test/images/2.png").write_bytes((images / "60.png").read_bytes())
    with Image.open(images / "62.png") as image:
        image.resize((150, 100)).save(tmp_path / "test/images/5.jpg", quality=40)
    rows[58].pop("image")
    rows[58]["conversations"] = turns("Who wrote it?", "I.")
    tested[3] = {"id": "text", "conversations": turns("Who wrote it?", "They did.")}
    planted = plant(rows, tmp_path / "spoiled")
    assert len(planted) >= 40
    planted |= {59: ("question", "rows.jsonl:4"), 61: ("image", "rows.jsonl:3"), 63: ("like it", "rows.jsonl:6")}
    return write(tmp_path / "spoiled" / "rows.jsonl", rows), write(tmp_path / "test" / "rows.jsonl", tested), planted


def test_nothing_is_found_on_the_clean_twin(check, tmp_path):
    path = write(tmp_path / "clean" / "rows.jsonl", write_clean(tmp_path / "clean"))
    write_clean(tmp_path / "other", 3)
    for number in range(3):
        picture(500 + number).save(tmp_path / "other" / row(number)["image"])
    code, found = check(path, "--against", write(tmp_path / "other" / "rows.jsonl", [row(0), row(1), row(2)]))
    assert (code, found["findings"]) == (0, [])
    assert found["summary"]["rows"] == found["summary"]["usable"] == found["summary"]["images"] == ROWS
    assert found["summary"]["spreads"]["tokens"]["largest"] < 512


def test_every_planted_fault_is_found_at_its_row_and_no_other(check, spoiled):
    path, test, planted = spoiled
    code, found = check(path, "--against", test)
    assert code == 1
    told = {}
    for one in wrong(found):
        assert one["file"] == str(path)
        told.setdefault(int(one["place"].removeprefix("line ")), []).append(one["message"])
    for line, (name, words) in planted.items():
        assert any(words in message for message in told.get(line, [])), (name, told.get(line))
    assert told.keys() == planted.keys()


def test_the_clean_copy_has_no_fault_and_the_source_stays(check, spoiled, tmp_path):
    path, test, planted = spoiled
    before = path.read_bytes()
    code, found = check(path, "--against", test, "--fix", tmp_path / "clean.jsonl")
    assert code == 1
    assert path.read_bytes() == before
    changes = [json.loads(line) for line in (tmp_path / "clean.jsonl.changes.jsonl").read_text().splitlines()]
    assert {int(one["place"].removeprefix("line ")) for one in changes} == planted.keys()
    mended = {planted[int(one["place"].removeprefix("line "))][0] for one in changes if one["done"] != "left out"}
    assert mended == {"box swapped", "question at the end", "unknown key"}
    assert found["copy"]["left_out"] == len(planted) - 3
    rows = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert len(rows) == found["copy"]["rows"] == ROWS - len(planted) + 3
    assert any("<box>[[100, 20, 300, 400]]</box>" in str(one) for one in rows)
    assert check(tmp_path / "clean.jsonl", "--against", test)[0] == 0
    code, out = check(tmp_path / "clean.jsonl")
    assert (code, wrong(out)) == (0, [])


def test_a_file_that_a_source_names_twice_stays_once_in_the_clean_copy(check, tmp_path):
    rows = write_clean(tmp_path / "a", 5)
    path = write(tmp_path / "a" / "rows.jsonl", rows)
    meta = {name: {"annotation": "a/rows.jsonl", "root": "a", "repeat_time": 1} for name in ("one", "two")}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for number, source in enumerate(([path, path], [tmp_path / "meta.json"])):
        clean = tmp_path / f"clean{number}.jsonl"
        code, found = check(*source, "--fix", clean)
        assert code == 1
        assert found["copy"]["rows"] == found["copy"]["left_out"] == len(wrong(found)) == 5
        kept = [json.loads(line)["conversations"] for line in clean.read_text().splitlines()]
        assert kept == [one["conversations"] for one in rows]


def test_a_copy_replaces_nothing(minivl, tmp_path, checkpoint):
    path = write(tmp_path / "a" / "rows.jsonl", write_clean(tmp_path / "a", 3))
    before = path.read_bytes()
    code, _, err = minivl("data", "check", path, "--model", checkpoint, "--workers", 1, "--fix", path)
    assert code == 1
    assert "exists already; give a new file" in err
    code, _, err = minivl("data", "check", path, "--model", checkpoint, "--fix", tmp_path / "clean.parquet")
    assert code == 1
    assert "a clean copy is .jsonl" in err
    assert path.read_bytes() == before


def test_findings_do_not_depend_on_the_number_of_processes(check, spoiled):
    path, test, _ = spoiled
    one, two = (check(path, "--against", test, "--workers", count)[1] for count in (1, 2))
    assert one == two


def test_a_quick_check_decodes_nothing(check, spoiled):
    path, _, planted = spoiled
    missed = {"damage within", "tiny image", "one colour", "question", "image", "like it"}
    code, found = check(path, "--quick")
    lines = {int(one["place"].removeprefix("line ")) for one in wrong(found)}
    assert code == 1
    assert lines == {line for line, (name, _) in planted.items() if name not in missed}


def test_rows_of_any_file_are_checked(check, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = write_clean(tmp_path / "rows", 8)
    said(rows[5], 1, "   ")
    write(tmp_path / "rows" / "a.jsonl", rows)
    (tmp_path / "list.json").write_text(json.dumps([{**one, "image": f"rows/{one['image']}"} for one in rows]))
    meta = {"mine": {"annotation": "rows/a.jsonl", "root": "rows", "repeat_time": 2}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    inside = [{**one, "image": {"bytes": (tmp_path / "rows" / one["image"]).read_bytes()}} for one in rows]
    parquet.write_table(pyarrow.Table.from_pylist(inside), tmp_path / "rows.parquet", row_group_size=3)
    convert(tmp_path / "list.json", tmp_path / "rows.tar")
    numbered = ("list.json", "rows.parquet", "rows.tar")
    for path, place in (("rows", "line 6"), ("meta.json", "line 6"), *((name, "row 6") for name in numbered)):
        code, found = check(tmp_path / path)
        assert code == 1
        assert [(one["place"], one["kind"]) for one in wrong(found)] == [(place, "text")]
        assert found["summary"]["images"] == 8


def test_rows_that_are_cut_to_the_limit_are_told_and_not_wrong(check, tmp_path):
    rows = write_clean(tmp_path / "a", 3)
    rows[1]["conversations"] = turns("<image>\nQ?", "A.", "word " * 250, "B.", "word " * 250, "C.")
    code, found = check(write(tmp_path / "a" / "rows.jsonl", rows))
    assert code == 0
    assert [(one["place"], one["kind"]) for one in found["findings"]] == [("line 2", "length")]
    assert found["summary"]["shortened"] == 1


def test_a_test_set_needs_no_answers_and_is_not_passed_over_in_silence(minivl, check, checkpoint, tmp_path):
    path = write(tmp_path / "a" / "rows.jsonl", write_clean(tmp_path / "a", 4))
    asked = [{"image": "a/images/2.png", "conversations": turns("What?")}, {"picture": "a/images/3.jpg"}]
    code, found = check(path, "--against", write(tmp_path / "test.jsonl", asked))
    assert (code, [one["place"] for one in wrong(found)]) == (1, ["line 3"])
    (told,) = found["odd"]
    assert told.startswith("1 rows of the test set cannot be read and are compared with nothing")
    assert f"{tmp_path / 'test.jsonl'}:2: no format reads a row with the keys picture" in told
    arguments = ["data", "check", path, "--model", checkpoint, "--workers", 1, "--against"]
    code, _, err = minivl(*arguments, write(tmp_path / "unknown.jsonl", asked[1:]))
    assert code == 1
    assert "nothing can be compared with the test set" in err


def test_images_that_a_viewer_shows_otherwise_are_told_and_not_wrong(check, tmp_path):
    rows = write_clean(tmp_path / "a", 6)
    images = [tmp_path / "a" / one["image"] for one in rows]
    picture(0).save(images[0], "GIF", save_all=True, append_images=[picture(1)])
    glass = picture(2).convert("RGBA")
    glass.putpixel((3, 3), (9, 9, 9, 0))
    glass.save(images[2])
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (1, 3):
        picture(number).save(images[number], exif=exif)
    said(rows[3], 1, "Here: <ref>it</ref><box>[[1, 2, 30, 40]]</box>")
    rows[1]["conversations"] = turns("<image>\nWhat?", "It.")
    code, found = check(write(tmp_path / "a" / "rows.jsonl", rows))
    assert code == 0
    told = {one["place"]: one["message"] for one in found["findings"]}
    assert told.keys() == {"line 1", "line 3", "line 4"}
    assert "several frames" in told["line 1"]
    assert "transparent places" in told["line 3"]
    assert "EXIF turns" in told["line 4"]


def test_the_same_question_with_other_answers_is_told_and_not_wrong(check, tmp_path):
    rows = write_clean(tmp_path / "a", 3)
    rows[2] = {
        **rows[0],
        "id": "other",
        "conversations": turns(rows[0]["conversations"][0]["value"], "Something else."),
    }
    code, found = check(write(tmp_path / "a" / "rows.jsonl", rows))
    assert code == 0
    assert [(one["place"], one["kind"]) for one in found["findings"]] == [("line 3", "answer")]


def test_what_is_printed_names_rows_and_costs(minivl, checkpoint, spoiled):
    code, out, _ = minivl("data", "check", spoiled[0], "--model", checkpoint, "--max-length", 512, "--workers", 1)
    assert code == 1
    assert "64 rows, " in out
    assert f"  {spoiled[0]}:3: not an object with named fields" in out
    assert "more (--show" in out
    assert "tokens stand for images" in out
    assert out.rstrip().endswith("rows")


def near(folder, number, quality=60):
    """A smaller copy of a picture, compressed again."""
    with Image.open(folder / row(number)["image"]) as image:
        image.resize((48, 32)).save(folder / f"images/near-{number}.jpg", quality=quality)
    return f"images/near-{number}.jpg"


def test_the_same_question_and_answer_about_a_picture_that_looks_the_same_is_a_likely_duplicate(check, tmp_path):
    rows = write_clean(tmp_path / "a", 8)
    rows[6] = {**rows[2], "id": "again", "image": near(tmp_path / "a", 2)}
    rows[7] = {**rows[5], "id": "part", "image": near(tmp_path / "a", 5), "conversations": turns("Where?", "")}
    rows[7]["conversations"][1] = rows[5]["conversations"][3]
    path = write(tmp_path / "a" / "rows.jsonl", rows)
    code, found = check(path, "--fix", tmp_path / "clean.jsonl")
    assert code == 1
    assert [(one["place"], one["kind"], one["fix"]) for one in found["findings"]] == [
        ("line 7", "near-duplicate", ""),
        ("line 8", "near-duplicate", ""),
    ]
    assert f"stand at {path}:3 already" in found["findings"][0]["message"]
    assert f"stand at {path}:6 already" in found["findings"][1]["message"]
    assert found["copy"]["rows"] == 8


def test_other_questions_or_answers_about_a_picture_that_looks_the_same_are_no_fault(check, tmp_path):
    rows = write_clean(tmp_path / "a", 8)
    asked = rows[2]["conversations"][0]["value"]
    rows[5] = {**rows[2], "id": "same picture", "conversations": turns("<image>\nIs it large?", "yes")}
    rows[6] = {"id": "other", "image": near(tmp_path / "a", 2), "conversations": turns("<image>\nIs it new?", "yes")}
    rows[7] = {"id": "answer", "image": near(tmp_path / "a", 2), "conversations": turns(asked, "Something else.")}
    code, found = check(write(tmp_path / "a" / "rows.jsonl", rows))
    assert (code, found["findings"]) == (0, [])


def test_rows_with_more_than_they_share_are_no_duplicates():
    pairs = Pairs()
    for number, (images, said) in enumerate([((1,), [5, 6]), ((1,), [5]), ((1,), [5, 7]), ((2,), [5]), ((1,), [7])]):
        pairs.add(number, images, said)
    assert pairs.repeated(6).tolist() == [0, 0, 2, 3, 2, 5]
    assert Pairs().repeated(2).tolist() == [0, 1]
