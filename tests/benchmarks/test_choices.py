"""MMMU, MMBench and GMAI-MMBench: prompts, limits, judges, bad files, sheets for the servers."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openpyxl import load_workbook

from mini_internvl.benchmarks import gmai_mmbench, mmbench_cn, mmbench_en, mmmu
from mini_internvl.data import DataError
from mini_internvl.records import Item, JudgeError, Prediction

ALL = [
    (mmmu, mmmu.TABLE),
    (mmbench_en, mmbench_en.FILES["dev"]),
    (mmbench_cn, mmbench_cn.FILES["dev"]),
    (gmai_mmbench, gmai_mmbench.VAL[0]),
]


def answered(items: list[Item], texts: list[str]) -> list[Prediction]:
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def prompt(item: Item) -> str:
    return item.messages[-1]["content"][-1]["text"]


def images(item: Item) -> list[Any]:
    return list(item.messages[-1]["content"][:-1])


def change(path: Path, row: int, **cells: str) -> None:
    """Change cells of a table's row (from 1)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows[row - 1].update(cells)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_mmbench_prompts(tmp_path: Path) -> None:
    mmbench_en.EXAMPLE.write(tmp_path)
    mmbench_cn.EXAMPLE.write(tmp_path)
    item = list(mmbench_en.items(tmp_path))[1]
    assert prompt(item) == (
        "The middle is where the diagonals cross.\nIs the disc left of the middle?\nA. no\nB. yes\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (item.id, item.max_tiles, item.max_new_tokens) == ("1", 6, 100)
    assert images(item)[0]["image"].read().startswith(b"\x89PNG")
    item = next(mmbench_cn.items(tmp_path))
    assert prompt(item) == "框里画的是什么？\nA. 圆盘\nB. 星星\nC. 树\nD. None\n请直接回答选项字母。"


def test_mmmu_prompts(tmp_path: Path) -> None:
    mmmu.EXAMPLE.write(tmp_path)
    paper, script = list(mmmu.items(tmp_path)), list(mmmu.items(tmp_path, protocol="internvl"))
    assert prompt(paper[1]) == (
        "Which of <image 1> and <image 2> is larger?\nA. <image 1>\nB. <image 2>\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompt(paper[2]) == "How many discs are in <image 1>?\nAnswer the question directly."
    assert prompt(script[2]) == "How many discs are in <image 1>?\nAnswer the question using a single word or phrase."
    assert [part.get("scale") for part in images(paper[1])] == [2, None]
    assert [part.get("max_tiles") for part in images(script[1])] == [None, 1]
    assert [(item.max_tiles, item.max_new_tokens) for item in paper[:2]] == [(12, 1024), (24, 1024)]
    assert [(item.max_tiles, item.max_new_tokens) for item in script[:2]] == [(6, 10), (12, 10)]
    assert [item.id for item in mmmu.items(tmp_path, "dev")] == ["6"]


def test_gmai_prompts(tmp_path: Path) -> None:
    items = list(gmai_mmbench.items(gmai_mmbench.EXAMPLE.write(tmp_path)))
    assert prompt(items[3]) == "图中显示的是什么？\nA. 肺炎\nB. 正常\n请直接回答选项字母。"
    assert prompt(items[5]).endswith("\nD. oedema\n" + gmai_mmbench.MULTI_SUFFIX)
    assert items[6].reference["answer"] == ["B", "C"]
    assert items[0].max_tiles == 6
    assert [item.id for item in gmai_mmbench.items(tmp_path, "test")] == ["4551", "25831"]
    change(tmp_path / gmai_mmbench.TEST[10], 1, index="4551")
    again = [item.id for item in gmai_mmbench.items(tmp_path, "test")]
    assert again == ["4551", "GMAI_mm_bench_TEST_part_11/4551"]


@pytest.mark.parametrize(("benchmark", "name"), ALL)
def test_bad_files(benchmark: ModuleType, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=name):
        list(benchmark.items(tmp_path))
    path = benchmark.EXAMPLE.write(tmp_path) / name
    change(path, 2, image="no base64!", answer="")
    with pytest.raises(DataError, match=f"{name}: row 2: .*answer"):
        list(benchmark.items(tmp_path))
    change(path, 2, answer="A")
    with pytest.raises(DataError, match=f"{name}: row 2: broken base64"):
        list(benchmark.items(tmp_path))
    change(path, 2, image="aGVsbG8=", index="")
    change(path, 3, image="")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("question", "Frage", 1), encoding="utf-8")
    with pytest.raises(DataError, match="no column question"):
        list(benchmark.items(tmp_path))


def test_a_question_counts_with_all_rotations(tmp_path: Path) -> None:
    items = list(mmbench_en.items(mmbench_en.EXAMPLE.write(tmp_path)))
    texts = [*mmbench_en.EXAMPLE.good[:-1], "I cannot tell."]  # the last rotation of the first question
    score = mmbench_en.score(items, answered(items, texts))
    assert (score.values["accuracy"], score.counts["accuracy"], score.items) == (75, 4, 11)
    assert score.partial == "1 of 4 questions need a judge and count as wrong: the accuracy is a lower bound"
    judged = mmbench_en.score(items, answered(items, texts), judge=lambda text, **_: mmbench_en.EXAMPLE.good[-1])
    assert (judged.values["accuracy"], judged.partial) == (100, "")
    part = mmbench_en.score(items[:4], answered(items[:4], texts[:4]))
    assert part.notes == {"undecided": 0, "incomplete": 4, "no_first_row": 0}
    assert mmbench_en.score(items[8:], []).notes["no_first_row"] == 3


def test_protocols_of_mmbench_differ(tmp_path: Path) -> None:
    items = [item for item in mmbench_en.items(mmbench_en.EXAMPLE.write(tmp_path)) if item.reference["index"] == 1]
    values = {
        protocol: mmbench_en.score(items, answered(items, ["Answer: A"]), protocol=protocol).values["accuracy"]
        for protocol in mmbench_en.PROTOCOLS
    }
    assert values == dict.fromkeys(mmbench_en.PROTOCOLS, 100)
    assert not mmbench_en.right(items[0], "Both B and A")
    assert mmbench_en.right(items[0], "Answer: B")  # the capital A comes first


def test_judges(tmp_path: Path) -> None:
    items = list(mmmu.items(mmmu.EXAMPLE.write(tmp_path)))
    texts = ["the first", "B", "18", "the power house", "E"]

    def judge(text: str, **_: Any) -> str:
        return "A"

    without, judged = mmmu.score(items, answered(items, texts)), mmmu.score(items, answered(items, texts), judge=judge)
    assert (without.values["accuracy"], judged.values["accuracy"]) == (60, 100)
    assert without.partial.startswith("2 of 5 answers need a judge")
    assert judged.partial == ""

    def broken(text: str, **_: Any) -> str:
        raise JudgeError("no network")

    with pytest.raises(JudgeError):
        mmmu.score(items, answered(items, texts), judge=broken)


def test_mmmu_without_a_judge(tmp_path: Path) -> None:
    items = list(mmmu.items(mmmu.EXAMPLE.write(tmp_path), protocol="official"))
    texts = ["hm", "(B)", "x = 18", "mitochondria", ""]
    score = mmmu.score(items, answered(items, texts), protocol="official")
    again = mmmu.score(items[::-1], answered(items, texts), protocol="official")
    assert score.values == again.values
    assert score.notes["random"] == 2
    script = mmmu.score(items, answered(items, texts), protocol="internvl")
    assert script.notes["unreadable"] == 1
    assert script.notes["report"]["Overall-Science"] == {"num": 3, "acc": 0.667}


def test_several_gold_answers(tmp_path: Path) -> None:
    mmmu.EXAMPLE.write(tmp_path)
    change(tmp_path / mmmu.TABLE, 3, answer="['1/3', '0.33']")
    items = list(mmmu.items(tmp_path, protocol="internvl"))[2:3]
    assert mmmu.score(items, answered(items, ["0.333"]), protocol="internvl").values["accuracy"] == 100


def test_odd_answers(tmp_path: Path) -> None:
    for benchmark, _ in ALL:
        items = list(benchmark.items(benchmark.EXAMPLE.write(tmp_path)))
        for text in ("", "\ud800\x00", "word " * 20_000, "A\n" * 9, "“Ａ”"):
            for protocol in benchmark.PROTOCOLS:
                assert benchmark.score(items, answered(items, [text] * len(items)), protocol=protocol).items
        assert benchmark.score(items, []).values["accuracy"] == 0
        assert benchmark.score([], []).items == 0


def test_an_option_may_read_none(tmp_path: Path) -> None:
    item = list(gmai_mmbench.items(gmai_mmbench.EXAMPLE.write(tmp_path)))[2]
    assert gmai_mmbench.right(item, "NA")
    assert not gmai_mmbench.right(item, "")
    assert not gmai_mmbench.right(item, "nan")


def sheet(path: Path) -> list[list[Any]]:
    return [[cell.value for cell in row] for row in load_workbook(path).active]


def test_mmbench_sheet(tmp_path: Path) -> None:
    items = list(mmbench_en.items(mmbench_en.EXAMPLE.write(tmp_path), "test"))
    (path,) = mmbench_en.export(items, answered(items[:2], ["B. a star", "=\x01 2"]), tmp_path / "out")
    assert path.name == "mmbench_test_en_20231003.xlsx"
    head, first, second, third = sheet(path)
    assert head == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
    assert first == [0, "What is drawn in the frame?", "a disc", "a star", "a tree", "None", "B", "test"]
    assert second[2:7] == ["no", "yes", None, None, "= 2"]
    assert third[6] is None


def test_gmai_sheets(tmp_path: Path) -> None:
    items = list(gmai_mmbench.items(gmai_mmbench.EXAMPLE.write(tmp_path), "test"))
    paths = gmai_mmbench.export(items, answered(items, ["A", "=b"]), tmp_path / "out")
    assert [path.name for path in paths] == ["GMAI_mm_bench_TEST_part_1.xlsx", "GMAI_mm_bench_TEST_part_11.xlsx"]
    head, row = sheet(paths[1])
    assert (head[0], head[-1], "image" in head) == ("index", "prediction", False)
    assert (row[0], row[3], row[-1]) == (25831, "=b", "=b")


def test_export_needs_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(mmbench_en.items(mmbench_en.EXAMPLE.write(tmp_path), "test"))
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("openpyxl"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'mini-internvl\[export\]'"):
        mmbench_en.export(items, [], tmp_path)
