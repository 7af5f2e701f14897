"""Raw annotation files in forms that the worked examples do not show: their order, marks, gaps and damage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from mini_internvl.benchmarks import _dior, class_folders, dior_rsvg, path_vqa, rsvqa_hr, rsvqa_lr
from mini_internvl.benchmarks._questions import Question, split_of
from mini_internvl.benchmarks._regions import tagged
from mini_internvl.data import DataError, Fault
from mini_internvl.data.check import trainable
from mini_internvl.domains import _captions, geochat, pmc_oa
from mini_internvl.domains import class_folders as class_domain
from mini_internvl.domains import dior_rsvg as dior_domain
from mini_internvl.domains import path_vqa as path_domain
from mini_internvl.domains import rsvqa_lr as rsvqa_domain
from mini_internvl.domains._questions import MOST, samples
from mini_internvl.domains._reports import described
from mini_internvl.inputs.messages import image_parts, normalise
from mini_internvl.metrics.short_answers import same_words, word_recall
from mini_internvl.records import Sample


def only(found: Iterable[Sample | Fault]) -> list[Sample]:
    """The samples, all of which can be trained on."""
    kept = [one for one in found if isinstance(one, Sample)]
    for sample in kept:
        trainable(normalise(sample.messages))
    return kept


def reasons(found: Iterable[object]) -> list[str]:
    return [one.reason for one in found if isinstance(one, Fault)]


def test_files_with_a_byte_order_mark_and_other_keys_first_are_read(tmp_path: Path) -> None:
    rsvqa_domain.EXAMPLE.write(tmp_path)
    plain = list(rsvqa_domain.convert(tmp_path, "train"))
    for path in tmp_path.glob("*.json"):
        key = path.stem.rpartition("_")[2]
        held = {"info": {"questions": [{"id": 0}], "a": ["{", "]"]}, "n": [1], **json.loads(path.read_text())}
        path.write_text("\ufeff" + json.dumps({**held, "after": [{"id": 7, key: []}]}, indent=1))
    assert list(rsvqa_domain.convert(tmp_path, "train")) == plain


def test_what_rsvqa_refuses_and_why(tmp_path: Path) -> None:
    rsvqa_domain.EXAMPLE.write(tmp_path)
    assert reasons(rsvqa_domain.convert(tmp_path, "train")) == [
        "LR_split_train_answers.json has no answer 99 in this split",
        "the answer 5 is empty",
        "LR_split_train_answers.json has no answer 6 in this split",
        "the image 2 is not of this split",
        f"the image 4.tif is missing; put it below {tmp_path}/images/RSVQA_L/Images_LR or {tmp_path}/images/Images_LR",
        "question holds no text",
    ]
    path = tmp_path / "LR_split_train_questions.json"
    path.write_text(json.dumps({"answers": []}))
    with pytest.raises(DataError, match="must hold a list under 'questions'"):
        list(rsvqa_domain.convert(tmp_path, "train"))
    path.write_text('{"questions": [{"id": 1, "active": false}, {"id": 2,')
    assert reasons(rsvqa_domain.convert(tmp_path, "train")) == [
        "not valid JSON (nothing between two commas, or the list is cut off)"
    ]


def test_benchmark_and_domain_ask_the_same_of_the_authors_files(tmp_path: Path) -> None:
    rsvqa_domain.EXAMPLE.write(tmp_path)
    [sample] = only(rsvqa_domain.convert(tmp_path, "validation"))
    [item] = rsvqa_lr.items(tmp_path, "validation")
    assert item.messages[0] == sample.messages[0]
    assert item.reference == {"type": "rural_urban", "answer": "rural", "question": "Is it a rural or an urban area"}
    for name in ("questions", "answers", "images"):
        (tmp_path / f"LR_split_val_{name}.json").rename(tmp_path / f"USGS_split_test_phili_{name}.json")
    (tmp_path / "Images_LR").rename(tmp_path / "Data")
    assert [item.id for item in rsvqa_hr.items(tmp_path, "test2")] == ["test2/2"]
    with pytest.raises(DataError, match=r"lacks rsvqa_l_test_instruct\.json or LR_split_test_questions\.json"):
        list(rsvqa_lr.items(tmp_path))


def test_a_benchmark_refuses_the_authors_files_where_a_domain_reports_faults(tmp_path: Path) -> None:
    rsvqa_domain.EXAMPLE.write(tmp_path)
    for name in ("questions", "answers", "images"):
        (tmp_path / f"LR_split_train_{name}.json").rename(tmp_path / f"LR_split_test_{name}.json")
    with pytest.raises(DataError, match=r"the answer 5 is empty; .*question holds no text"):
        list(rsvqa_lr.items(tmp_path))


def test_questions_of_one_image_share_a_sample_up_to_a_limit() -> None:
    asked = [Question(id=str(n), image="b" if n == 3 else "a", prompt="?", answer="!") for n in range(MOST + 6)]
    found = list(samples(asked, "s"))
    assert [(one.id, len(one.messages) // 2) for one in found if isinstance(one, Sample)] == [
        ("0", 3),
        ("3", 1),
        ("4", MOST),
        (str(4 + MOST), 2),
    ]


def test_objects_are_numbered_over_all_files_by_name(tmp_path: Path) -> None:
    dior_domain.EXAMPLE.write(tmp_path)
    folder = tmp_path / "Annotations"
    assert (
        reasons(dior_domain.convert(tmp_path, "train"))[1]
        == "the box [100.0, 0.0, 121.0, 9.0] leaves the image of 120x80"
    )
    (tmp_path / "test.txt").write_text("4\r\n6\r\n")
    items = list(dior_rsvg.items(tmp_path))
    assert [(item.id, item.reference["box"], item.reference["size"]) for item in items] == [
        ("4", [100, 0, 121, 9], [120, 80]),
        ("6", [60, 40, 90, 50], [120, 80]),
    ]
    assert dior_rsvg.right(items[1], "[[500, 500, 750, 625]]")
    (tmp_path / "DIOR_RSVG").mkdir()
    (tmp_path / "test.txt").rename(tmp_path / "DIOR_RSVG" / "test.txt")
    assert list(dior_rsvg.items(tmp_path)) == items
    (folder / "00001.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"00001\.xml is no XML .*the numbers of all later objects depend on it"):
        list(dior_domain.convert(tmp_path, "train"))
    (tmp_path / "train.txt").write_text("1\ntwo\n")
    with pytest.raises(DataError, match='holds "two"; it must hold one object number a line'):
        list(dior_domain.convert(tmp_path, "train"))


def test_an_entity_bomb_in_an_annotation_is_no_XML(tmp_path: Path) -> None:
    dior_domain.EXAMPLE.write(tmp_path)
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 10}">' for n in range(12))
    text = f"<!DOCTYPE a [{entities}]><annotation><filename>&e11;</filename></annotation>"
    (tmp_path / "Annotations" / "00002.xml").write_text(text)
    with pytest.raises(DataError, match=r"00002\.xml is no XML"):
        list(dior_domain.convert(tmp_path, "train"))


def classes_of(folder: Path) -> dict[str, list[str]]:
    return {split: [one.id for one in only(class_domain.convert(folder, split))] for split in class_domain.SPLITS}


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "", "Testing"), ("train", "val", ""), ("train", "", "")]
)
def test_folders_of_splits_have_the_names_that_people_give_them(names: tuple[str, ...], tmp_path: Path) -> None:
    image = class_folders.EXAMPLE.images["test/sea_lake/1.jpg"].png()
    for name, count in zip(names, (30, 10, 10), strict=True):
        for kind in ("Forest", "test tube") if name else ():
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(count):
                (tmp_path / name / kind / f"{number}.jpg").write_bytes(image)
    found = {split: [item.id for item in class_folders.items(tmp_path, split)] for split in class_folders.SPLITS}
    places = {"train": names[0], "validation": names[1] or names[0], "test": names[2] or names[0]}
    shown = [
        Path(image_parts(item.messages)[0].source).relative_to(tmp_path).as_posix()
        for split in class_folders.SPLITS
        for item in class_folders.items(tmp_path, split)
    ]
    taken = [f"{places[split]}/{name}" for split in class_folders.SPLITS for name in found[split]]
    assert shown == taken
    assert len(shown) == len(set(shown)) == 60 + 20 * sum(map(bool, names[1:]))
    assert all(found.values())
    assert classes_of(tmp_path) == {split: found[split] for split in class_domain.SPLITS}


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    image = class_folders.EXAMPLE.images["test/sea_lake/1.jpg"].png()
    for kind in ("train", "bus"):
        (tmp_path / kind).mkdir()
        for number in range(20):
            (tmp_path / kind / f"{number}.jpg").write_bytes(image)
    answers = {one.reference["answer"] for one in class_folders.items(tmp_path, "train")}
    assert answers == {"train", "bus"}


def test_the_hash_of_a_name_splits_classes_the_same_everywhere(tmp_path: Path) -> None:
    image = class_folders.EXAMPLE.images["test/sea_lake/1.jpg"].png()
    for name in ("Forest", "River"):
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / f"{name}_{number}.jpg").write_bytes(image)
    parts = {split: [item.id for item in class_folders.items(tmp_path, split)] for split in class_folders.SPLITS}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 120
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 84, "validation": 16, "test": 20}
    assert parts["validation"][:2] == [f"Forest/Forest_{n}.jpg" for n in (15, 17)]
    assert split_of("Forest/Forest_15.jpg") == "validation"
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for name in ("Forest", "River"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    found = classes_of(tmp_path)
    assert found["validation"] == parts["validation"]
    assert len(found["train"]) == 120 - 16
    with pytest.raises(DataError, match="holds no class folders"):
        list(class_folders.items(tmp_path, "test"))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{<10><20><30><40>|<0>}", "<box>[[100, 200, 300, 400]]</box>"),
        ("{<10><20><30><40>}<delim>{<0><0><100><100>|<180>}", "<box>[[100, 200, 300, 400], [0, 0, 1000, 1000]]</box>"),
        (
            "<p>a b</p>{<10><20><30><40>|<-0>} and <p>c</p>",
            "<ref>a b</ref><box>[[100, 200, 300, 400]]</box> and <ref>c</ref>",
        ),
        ("{<40><40><60><60>|<45>}", "<box>[[394, 288, 606, 712]]</box>"),
        ("no boxes {at all}", "no boxes {at all}"),
    ],
)
def test_rotated_boxes_become_upright_ones(text: str, written: str) -> None:
    assert tagged(text, lambda: (200, 100)) == written
    assert tagged(text.replace("|<45>", "|<-45>"), lambda: (200, 100)) == written


@pytest.mark.parametrize(
    "text", ["{<1><2><3>|<4>}", "{<30><20><10><40>|<0>}", "{<1><2><3><104>|<4>}", "<p>open", "{<a><2><3><4>|<0>}"]
)
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no box|leaves the image|can be read"):
        tagged(text, lambda: (200, 100))


def test_geochat_conversations_keep_their_images_and_texts(tmp_path: Path) -> None:
    geochat.EXAMPLE.write(tmp_path)
    assert len(only(geochat.convert(tmp_path, "train"))) == 3
    assert reasons(geochat.convert(tmp_path, "train"))[1:] == [
        "the box {<77><981><83><990>|<29>} leaves the image; its numbers are per cent of the sides",
        "{<1><2><3>|<4>} is no box; it must be four numbers and an angle",
        "a turn holds no text",
        "conversations is null; it must be a list of turns",
    ]


def test_pathology_images_come_out_of_parquet_and_pickles_are_refused_by_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = class_folders.EXAMPLE.images["test/sea_lake/1.jpg"].png()
    (tmp_path / "train_qa.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"train_qa\.pkl is a pickle, which can run code"):
        list(path_domain.convert(tmp_path, "train"))
    rows = [
        {"image": {"bytes": image, "path": "a.jpg"}, "question": "is it?", "answer": word} for word in ("yes", "a cell")
    ]
    (tmp_path / "data").mkdir()
    for part, row in enumerate(rows):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"data/test-0000{part}-of-00002.parquet")
    items = list(path_vqa.items(tmp_path))
    assert [(item.id, item.reference["kind"]) for item in items] == [("1", "closed"), ("2", "open")]
    (tmp_path / "data/test-00000-of-00002.parquet").rename(tmp_path / "data/train-00000-of-00001.parquet")
    [sample] = only(path_domain.convert(tmp_path, "train"))
    assert sample.messages[0]["content"][0] == {"type": "image", "image": image}


def test_short_answers_are_compared_in_words() -> None:
    assert same_words(" Yes. ", "yes")
    assert same_words("the LEFT\nlobe", "the left lobe")
    assert not same_words("", "")
    assert not same_words("yes it is", "yes")
    assert word_recall("a large mass in the lung", "lung mass") == 1
    assert word_recall("no", "no no") == 0.5
    assert word_recall("anything", "") == 0


def test_annotation_files_of_examples_are_what_the_authors_write() -> None:
    text = _dior.annotation("a.jpg", ("a ship", (1, 2, 3, 4)))
    assert (
        "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox><description>a ship</description>"
        in text
    )


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("FINDINGS: Clear\n lungs.\nIMPRESSION:\nNormal.\n", "Findings: Clear lungs.\nImpression: Normal."),
        (" TECHNIQUE:  PA.\n IMPRESSION: 1. No change: stable.", "Impression: 1. No change: stable."),
        ("INDICATION: Cough.\n\nCHEST, TWO VIEWS: Heart is large.\nNOTIFICATION:\n", "Heart is large."),
        ("Portable film,\nno sections", "Portable film, no sections"),
        ("FINDINGS:\nIMPRESSION:\n", ""),
        (" \n", ""),
    ],
)
def test_of_a_report_what_the_image_shows_is_kept(report: str, text: str) -> None:
    assert described(report) == text


def test_a_caption_is_asked_for_in_several_wordings_the_same_on_every_run(tmp_path: Path) -> None:
    pmc_oa.EXAMPLE.write(tmp_path)
    rows = [{"image": "PMC1_fig1_1.jpg", "caption": f"Caption {n}."} for n in range(40)]
    (tmp_path / pmc_oa.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = only(pmc_oa.convert(tmp_path, "train"))
    asked = [sample.messages[0]["content"][1]["text"] for sample in found]
    assert set(asked) == set(_captions.WORDINGS["figure"])
    assert found == only(pmc_oa.convert(tmp_path, "train"))
    assert len({sample.id for sample in found}) == 40
