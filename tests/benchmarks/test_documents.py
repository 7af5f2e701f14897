"""ChartQA, DocVQA, InfoVQA, AI2D and OCRBench: prompts, official files, damaged files, exports and traps."""

from __future__ import annotations

import json
import shutil

import pytest

from mini_internvl.benchmarks import ai2d, chartqa, docvqa, infovqa, ocrbench
from mini_internvl.benchmarks._vqa import unique
from mini_internvl.data import DataError
from mini_internvl.records import Item, Prediction

ALL = [chartqa, docvqa, infovqa, ai2d, ocrbench]
SENTENCE = "Answer the question using a single word or phrase."


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Benchmark -> folder with its worked example."""
    root = tmp_path_factory.mktemp("documents")
    return {benchmark: benchmark.EXAMPLE.write(root / benchmark.TITLE) for benchmark in ALL}


@pytest.fixture
def copy(folders, tmp_path):
    """Gives a folder that a test may damage."""

    def make(benchmark):
        return shutil.copytree(folders[benchmark], tmp_path / benchmark.TITLE)

    return make


def answered(items, texts):
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def text_of(item: Item):
    return item.messages[0]["content"][-1]["text"]


def image_of(item: Item):
    return item.messages[0]["content"][0]["image"]


@pytest.mark.parametrize("benchmark", ALL)
def test_examples_in_every_protocol(benchmark, folders):
    for protocol in benchmark.PROTOCOLS:
        items = list(benchmark.items(folders[benchmark], protocol=protocol))
        assert len({item.id for item in items}) == len(items)
        assert json.loads(json.dumps([item.reference for item in items])) == [item.reference for item in items]
        good = benchmark.score(items, answered(items, benchmark.EXAMPLE.good), protocol=protocol)
        nothing = benchmark.score(items, [], protocol=protocol)
        assert set(good.errors) == set(good.values) == set(nothing.values)
        assert not any(nothing.values.values())
        assert nothing.notes["empty"] == len(items) == good.items
    items = list(benchmark.items(folders[benchmark]))
    assert all(benchmark.right(item, text) for item, text in zip(items, benchmark.EXAMPLE.good, strict=True))
    assert not any(benchmark.right(item, text) for item, text in zip(items, benchmark.EXAMPLE.bad, strict=True))


@pytest.mark.parametrize("benchmark", ALL)
def test_hostile_answers(benchmark, folders):
    items = list(benchmark.items(folders[benchmark]))
    for text in ("", "\ud800", "a" * 20_000, "\0\u202e\U0001f44b", "[" * 500, "%", "nan", "1e999"):
        for protocol in benchmark.PROTOCOLS:
            benchmark.score(items, answered(items, [text] * len(items)), protocol=protocol)


@pytest.mark.parametrize("benchmark", ALL)
def test_wrong_names(benchmark, folders, tmp_path):
    with pytest.raises(ValueError, match='the split "x" is not known'):
        list(benchmark.items(folders[benchmark], "x"))
    with pytest.raises(ValueError, match='the protocol "x" is not known'):
        list(benchmark.items(folders[benchmark], protocol="x"))
    with pytest.raises(ValueError, match='the protocol "x" is not known'):
        benchmark.score([], [], protocol="x")
    with pytest.raises(DataError, match="does not exist"):
        list(benchmark.items(tmp_path / "none"))
    with pytest.raises(DataError, match="lacks"):
        list(benchmark.items(tmp_path))


@pytest.mark.parametrize(
    ("benchmark", "place"),
    [
        (chartqa, "chartqa/ChartQA Dataset/test/png/human0.png"),
        (docvqa, "docvqa/val/documents/abcd0001_2.png"),
        (infovqa, "infographicsvqa/infographicsvqa_images/30121.jpeg"),
        (ai2d, "ai2diagram/AI2D_TEST/1.png"),
    ],
)
def test_a_missing_image_is_named_with_its_rows(benchmark, place, copy):
    root = copy(benchmark)
    (root / place).unlink()
    with pytest.raises(DataError, match=rf"jsonl: row \d: the image .*{place.rsplit('/')[-1]} is missing"):
        list(benchmark.items(root))


@pytest.mark.parametrize(
    ("benchmark", "file", "column"),
    [
        (chartqa, "chartqa/test_augmented.jsonl", "answer"),
        (chartqa, "chartqa/test_human.jsonl", "question_id"),
        (docvqa, "docvqa/val.jsonl", "image"),
        (docvqa, "docvqa/val/val_v1.0.json", "answers"),
        (infovqa, "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", "questionId"),
        (ai2d, "ai2diagram/test_vlmevalkit.jsonl", "question"),
    ],
)
def test_a_missing_column_is_named(benchmark, file, column, copy):
    root = copy(benchmark)
    content = benchmark.EXAMPLE.files[file]
    rows = content["data"] if isinstance(content, dict) else content
    damaged = [rows[0], {k: v for k, v in rows[1].items() if k != column}]
    lines = "".join(json.dumps(row) + "\n" for row in damaged)
    (root / file).write_text(json.dumps({**content, "data": damaged}) if isinstance(content, dict) else lines)
    with pytest.raises(DataError, match=f"{file.rsplit('/')[-1]}: row 2: no {column}"):
        list(benchmark.items(root))


@pytest.mark.parametrize(
    ("benchmark", "file", "column", "value", "message"),
    [
        (chartqa, "chartqa/test_human.jsonl", "answer", 42, "answer is neither a text nor a list of texts"),
        (chartqa, "chartqa/test_human.jsonl", "image", None, "image is no text"),
        (ai2d, "ai2diagram/test_vlmevalkit.jsonl", "question_id", [], "question_id is neither text nor whole number"),
        (docvqa, "docvqa/val.jsonl", "question_id", 24580, "the question id 24580 comes twice"),
        (docvqa, "docvqa/val.jsonl", "question_id", 1, "val_v1.0.json has no question 1"),
    ],
)
def test_a_wrong_field_is_named(benchmark, file, column, value, message, copy):
    root = copy(benchmark)
    rows = [dict(row) for row in benchmark.EXAMPLE.files[file]]
    rows[2][column] = value
    (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"row 3: {message}"):
        list(benchmark.items(root))


# ChartQA


def test_chartqa_items(folders):
    items = list(chartqa.items(folders[chartqa]))
    assert [item.id for item in items][:2] == ["human/0", "human/1"]
    assert items[-1].id == "augmented/2"
    assert text_of(items[0]) == f"What share does the red bar have? {SENTENCE}"
    assert image_of(items[0]).endswith("chartqa/ChartQA Dataset/test/png/human0.png")
    assert {(item.max_tiles, item.max_new_tokens) for item in items} == {(12, 100)}
    other = next(chartqa.items(folders[chartqa], "augmented", protocol="vlmevalkit-head"))
    assert text_of(other) == f"How many people were asked in 2016?\n{SENTENCE}"
    assert len(list(chartqa.items(folders[chartqa], "human"))) == 4


def test_chartqa_mean_is_of_halves_not_of_items(folders):
    items = list(chartqa.items(folders[chartqa]))
    texts = [
        text if item.id.startswith("human") else "" for item, text in zip(items, chartqa.EXAMPLE.good, strict=True)
    ]
    score = chartqa.score(items, answered(items, texts))
    assert (score.values["accuracy"], score.values["human"], score.values["augmented"]) == (50.0, 100.0, 0.0)
    assert score.counts == {"human": 4, "augmented": 3}
    half = chartqa.score(items[:4], answered(items[:4], texts[:4]))
    assert half.values == {"accuracy": 100.0, "human": 100.0}


def test_chartqa_reads_the_folder_of_the_internvl_repository(folders, tmp_path):
    shutil.copytree(folders[chartqa], tmp_path / "data")
    assert len(list(chartqa.items(tmp_path))) == 7
    shutil.move(tmp_path / "data/chartqa/test_human.jsonl", tmp_path / "test_human.jsonl")
    assert image_of(next(chartqa.items(tmp_path))).endswith("data/chartqa/ChartQA Dataset/test/png/human0.png")


# DocVQA and InfoVQA


def test_docvqa_items(folders):
    items = list(docvqa.items(folders[docvqa]))
    assert text_of(items[1]) == f"Who sent the letter? {SENTENCE}"
    assert (items[1].id, items[1].max_tiles, items[1].max_new_tokens) == ("24580", 18, 100)
    assert items[0].reference["answers"] == ["0.28", ".28"]  # of the annotation, not the jsonl's first
    assert text_of(next(docvqa.items(folders[docvqa], protocol="vlmevalkit"))).endswith(f"1975?\n{SENTENCE}")
    assert {item.max_tiles for item in infovqa.items(folders[infovqa])} == {24}


def test_docvqa_with_one_of_its_two_files(copy):
    root = copy(docvqa)
    both = [item.reference for item in docvqa.items(root)]
    (root / "docvqa/val.jsonl").unlink()
    assert [item.reference for item in docvqa.items(root)] == both
    (root / "docvqa/val.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in docvqa.EXAMPLE.files["docvqa/val.jsonl"])
    )
    (root / "docvqa/val/val_v1.0.json").unlink()
    items = list(docvqa.items(root))
    assert items[0].reference["answers"] == ["0.28"]
    assert set(docvqa.score(items, []).values) == {"anls"}
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in docvqa.EXAMPLE.files["docvqa/val.jsonl"]]
    (root / "docvqa/val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="has no gold answers; put the RRC's annotation file beside it"):
        list(docvqa.items(root))


def test_figures_by_label(folders):
    items = list(infovqa.items(folders[infovqa]))
    texts = list(infovqa.EXAMPLE.good)
    texts[1] = "no"
    values = infovqa.score(items, answered(items, texts)).values
    assert values["anls"] == 80.0
    assert values["answer_type/None span"] == values["operation/Counting"] == values["evidence/Table/list"] == 0.0
    assert values["answer_type/Image-Span"] == values["evidence/Visual/Layout"] == 100.0
    assert infovqa.score(items, []).counts["evidence/Text"] == 2


@pytest.mark.parametrize("benchmark", [docvqa, infovqa])
def test_the_test_split_is_exported_not_scored(benchmark, folders, tmp_path):
    items = list(benchmark.items(folders[benchmark], "test"))
    predictions = answered(items, ["café", "12"])
    with pytest.raises(ValueError, match="not published"):
        benchmark.score(items, predictions)
    assert not benchmark.right(items[0], "café")
    [path] = benchmark.export(items, predictions[:1], tmp_path / "new")
    ids = [item.reference["question_id"] for item in items]
    assert all(isinstance(name, int) for name in ids)
    assert json.loads(path.read_text()) == [
        {"questionId": ids[0], "answer": "café"},
        {"questionId": ids[1], "answer": ""},
    ]


def test_a_question_without_gold_answers_is_wrong_and_told():
    item = Item(id="1", messages=[], reference={"question_id": 1, "answers": [], "labels": {}})
    score = docvqa.score([item], [Prediction(item_id="1", text="")])
    assert score.values["anls"] == 0.0
    assert score.notes["no gold answer"] == 1


# AI2D


def test_ai2d_items(folders):
    items = list(ai2d.items(folders[ai2d]))
    assert text_of(items[0]) == (
        "Which stage follows the egg?\nA. adult moth\nB. larva\nC. pupa\nD. egg\n"
        "Answer with the option's letter from the given choices directly."
    )
    name = "data/ai2diagram/AI2D_TEST/1.png"
    assert [item.id for item in items[:2]] == [name, f"{name}#2"]
    assert items[0].reference["options"] == {"A": "adult moth", "B": "larva", "C": "pupa", "D": "egg"}
    assert items[4].reference["options"] == {"A": "True", "B": "False"}
    assert {(item.max_tiles, item.max_new_tokens) for item in items} == {(6, 10)}


def test_ai2d_protocols_differ_in_what_they_read(folders):
    items = list(ai2d.items(folders[ai2d]))[:1]
    predictions = answered(items, ["B. larva"])
    assert ai2d.score(items, predictions).values["accuracy"] == 0.0
    assert ai2d.score(items, predictions).notes["more than a letter"] == 1
    assert ai2d.score(items, predictions, protocol="vlmevalkit-head").values["accuracy"] == 100.0
    assert ai2d.read_options("What is A. here?\nB. no option, out of order\nA. yes\nB.\nC: 3") == {
        "A": "yes",
        "B": "",
        "C": "3",
    }


# OCRBench


def test_ocrbench_items(folders, copy):
    items = list(ocrbench.items(folders[ocrbench]))
    assert image_of(items[0]).read().startswith(b"\x89PNG")  # in the table
    assert text_of(items[0]) == f"what is written in the image?\n{SENTENCE}"
    assert {(item.max_tiles, item.max_new_tokens) for item in items} == {(24, 1024)}
    official = list(ocrbench.items(folders[ocrbench], protocol="official"))
    assert image_of(official[0]).endswith("OCRBench_Images/IIIT5K/0.png")
    assert [item.id for item in official] == [item.id for item in items]
    assert [item.reference["answers"] for item in official] == [item.reference["answers"] for item in items]
    root = copy(ocrbench)
    (root / "OCRBench.tsv").unlink()
    assert len(list(ocrbench.items(root))) == 10


def test_ocrbench_points(folders):
    items = list(ocrbench.items(folders[ocrbench]))
    score = ocrbench.score(items, answered(items, ocrbench.EXAMPLE.good))
    assert (score.values["score"], score.values["Text Recognition"], score.values["share"]) == (10.0, 6.0, 100.0)
    assert score.notes["of"] == "10 items asked, 1000 are the benchmark"
    assert next(iter(score.values)) == ocrbench.PRIMARY_METRIC
    formula = Item(id="f", messages=[], reference={"category": "x", "data_set": "HME100k", "answers": ["X + 1"]})
    given = [Prediction(item_id="f", text="X+1")]
    assert ocrbench.score([formula], given).values["score"] == 0.0
    assert ocrbench.score([formula], given, protocol="official").values["score"] == 1.0


def test_ocrbench_points_by_category():
    asked = [("Digit String Recognition", "a"), ("Doc-oriented VQA", "a"), ("Doc-oriented VQA", "b"), ("new", "a")]
    items = [
        Item(id=str(n), messages=[], reference={"category": kind, "data_set": "", "answers": [gold]})
        for n, (kind, gold) in enumerate(asked)
    ]
    values = ocrbench.score(items, answered(items, ["a"] * 4)).values
    assert [values[name] for name in ("Text Recognition", "Doc-oriented VQA", "new", "score")] == [1, 1, 1, 3]


def test_ocrbench_damaged_table(copy):
    root = copy(ocrbench)
    lines = (root / "OCRBench.tsv").read_text().splitlines()
    cells = lines[3].split("\t")
    (root / "OCRBench.tsv").write_text("\n".join([*lines[:3], "\t".join([cells[0], "!!", *cells[2:]])]) + "\n")
    with pytest.raises(DataError, match=r"OCRBench\.tsv: row 3: broken base64"):
        list(ocrbench.items(root))
    (root / "OCRBench.tsv").write_text("\n".join([*lines[:3], "\t".join([*cells[:3], "[1, 2]", cells[4]])]) + "\n")
    with pytest.raises(DataError, match="row 3: answer holds something that is no text"):
        list(ocrbench.items(root))
    (root / "OCRBench.tsv").write_text("index\timage\tquestion\tanswer\n")
    with pytest.raises(DataError, match="no column category"):
        list(ocrbench.items(root))


def test_ids_that_come_again_get_a_number():
    assert unique([7, "7", "a", 7]) == ["7", "7#2", "a", "7#3"]
