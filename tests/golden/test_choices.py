"""MMMU, MMBench and GMAI-MMBench against recorded results of the official code, cases and whole tables.

Whole tables go through the benchmarks themselves: written as official files, read, scored.
"""

from __future__ import annotations

import json
import string

import pytest

from mini_internvl.benchmarks import gmai_mmbench, mmbench_cn, mmbench_en, mmmu
from mini_internvl.benchmarks._example import ExampleImage, Files
from mini_internvl.metrics import mmmu as metric
from mini_internvl.metrics.options import answered_letters, infer_option, internvl_answer, multi_answer, through_table
from mini_internvl.records import Prediction

KEYS = {"head": "head", "2024_10": "2024-10"}
IMAGE = ExampleImage(width=8, height=8).base64()
OURS = ("prediction", "options")
"""Fields of the recorded rows that official files lack."""


def _read(golden, name):
    return json.loads((golden / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def _options(row):
    return {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter) is not None}


def _items(benchmark, folder, name, rows, protocol):
    """Items of an official file with these rows."""
    official = [
        {"A": "", "B": ""} | {k: "" if v is None else v for k, v in row.items() if k not in OURS} for row in rows
    ]
    Files(files={name: [{**row, "image": IMAGE} for row in official]}).write(folder)
    return list(benchmark.items(folder, protocol=protocol))


def _score(benchmark, items, rows, protocol):
    """The score of items whose rows hold their predictions."""
    assert items
    predictions = [Prediction(item_id=str(row["index"]), text=row["prediction"] or "") for row in rows]
    return benchmark.score(items, predictions, protocol=protocol)


def _percent(shares):
    numbers = {name: share for name, share in shares.items() if isinstance(share, int | float)}  # not null, not "NaN"
    return {name: pytest.approx(100 * share, abs=1e-7) for name, share in numbers.items()}


def _stopped(value):
    return None if isinstance(value, dict) else value


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
def test_mmbench_cases(golden, name):
    for case in _read(golden, name)["cases"]:
        given, wanted = case["input"], case["expected"]
        kind = "prefetch" if case["type"] == "row" else "can_infer"
        for key, version in KEYS.items():
            letter = infer_option(given["prediction"], given["options"], version=version)
            assert letter == wanted[f"{kind}_{key}"], (case["id"], key)
        processed = internvl_answer(given["prediction"], given["options"])
        assert processed == _stopped(wanted["internvl_post_process"]), case["id"]


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
@pytest.mark.parametrize(
    ("protocol", "key"),
    [
        ("paper", "circular_from_internvl_post_process"),
        ("vlmevalkit-2024-10", "circular_2024_10"),
        ("vlmevalkit-head", "circular_head"),
    ],
)
def test_mmbench_tables(golden, tmp_path, name, protocol, key):
    benchmark = {"mmbench_en": mmbench_en, "mmbench_cn": mmbench_cn}[name]
    data = _read(golden, name)
    rows = [case["input"] for case in data["cases"] if case["type"] == "row"]
    wanted = data["aggregate"][key]
    items = _items(benchmark, tmp_path, benchmark.FILES["dev"], rows, protocol)
    for split, shares in wanted["acc"].items():
        inside = [item for item in items if item.reference["sheet"]["split"] == split]
        score = _score(benchmark, inside, rows, protocol)
        found = {metric.split("/", 1)[-1]: value for metric, value in score.values.items()}
        found["Overall"] = found.pop("accuracy")
        assert found == _percent(shares), split
    for group, hit in wanted["hits"].items():
        inside = [item for item in items if item.reference["index"] % 1_000_000 == int(group)]
        assert _score(benchmark, inside, rows, protocol).values["accuracy"] == 100 * hit, group


def test_mmmu_cases(golden):
    for case in _read(golden, "mmmu")["cases"]:
        given, wanted = case["input"], case["expected"]
        if case["type"] == "open":
            parsed = metric.parse_open(given["response"])
            golds = _listed(given["answer"])
            assert _sorted(parsed) == _sorted(wanted["parsed"]), case["id"]
            assert _sorted(v for gold in golds for v in metric.normalise(gold)) == _sorted(wanted["normalized_gold"])
            assert metric.open_right(parsed, given["answer"]) == wanted["correct"], case["id"]
            continue
        options = dict(zip(string.ascii_uppercase, given["options"], strict=False))
        parsed = metric.parse_choice(given["response"], options)
        assert (parsed is None) == wanted["mmmu_random_choice"], case["id"]
        assert parsed == wanted["mmmu_parsed"], case["id"]
        if parsed is not None:
            assert (parsed in _listed(given["answer"])) == wanted["mmmu_correct"], case["id"]
        processed = internvl_answer(given["response"], {k: text.strip() for k, text in options.items()})
        assert processed == _stopped(wanted["internvl_post_process"]), case["id"]
        assert (processed == given["answer"]) == bool(wanted["internvl_correct"]), case["id"]


def _listed(answer):
    return [answer] if isinstance(answer, str) else answer


def _sorted(values):
    words = ("NaN", "Infinity", "-Infinity")  # how the files write such numbers; parsed texts are in lower case
    return sorted({str(float(v)) if not isinstance(v, str) or v in words else f"'{v}" for v in values})


def test_mmmu_report(golden):
    suite = _read(golden, "mmmu")["suite"]
    rows = []
    for item in suite["items"]:
        answer, gold = item["prediction"], item["answer"]
        is_open = item["question_type"] != "multiple-choice"
        right = metric.open_right(metric.parse_open(answer), gold) if is_open else answer == gold
        rows.append(("_".join(item["id"].split("_")[1:-1]), right))
    report = metric.report(rows)
    assert report == suite["printable"]
    assert list(report) == list(suite["printable"])


@pytest.mark.parametrize(("protocol", "key"), [("paper", "2024_10"), ("vlmevalkit-head", "head")])
def test_mmmu_vlmevalkit(golden, tmp_path, protocol, key):
    suite = _read(golden, "mmmu")["vlmevalkit_suite"]
    wanted = suite[f"vlmevalkit_{key}"]
    for row, hit in zip(suite["rows"], wanted["hits"], strict=True):
        options, letter = metric.as_choice(_options(row), row["answer"])
        inferred = infer_option(through_table(row["prediction"]), options, version=KEYS[key])
        assert (inferred == letter) == bool(hit), row["index"]
    for split, shares in wanted["acc"].items():
        rows = [{**row, "split": "validation"} for row in suite["rows"] if row["split"] == split]
        score = _score(mmmu, _items(mmmu, tmp_path, mmmu.TABLE, rows, protocol), rows, protocol)
        found = {metric.split("/", 1)[-1]: value for metric, value in score.values.items()}
        found["Overall"] = found.pop("accuracy")
        assert found == _percent(shares), split


def test_gmai_cases(golden):
    data = _read(golden, "gmai_mmbench")
    for case in data["cases"]:
        given, wanted = case["input"], case["expected"]
        if case["type"] == "single-choice":
            for key, version in KEYS.items():
                letter = infer_option(given["prediction"], _options(given), version=version) or "Z"
                expected = wanted[f"vlmevalkit_{key}"]
                assert (letter, int(letter == given["answer"])) == (expected["option"], expected["hit"]), case["id"]
            continue
        shares = multi_answer(given["predicted_options"], given["gold_options"])
        assert shares == pytest.approx((wanted["acc"], wanted["recall"]), abs=1e-9), case["id"]
        named = answered_letters(given["raw_style"], dict.fromkeys(string.ascii_uppercase, "option"))
        assert set(named) == set(given["predicted_options"]), case["id"]
    multi = [case["expected"] for case in data["cases"] if case["type"] != "single-choice"]
    macro = data["aggregate_multi"]["macro"]
    assert sum(case["acc"] for case in multi) / len(multi) == pytest.approx(macro["2D Mcls_acc"], abs=1e-9)
    assert sum(case["recall"] for case in multi) / len(multi) == pytest.approx(macro["2D Mcls_recall"], abs=1e-9)


@pytest.mark.parametrize(("protocol", "key"), [("paper", "2024_10"), ("vlmevalkit-head", "head")])
def test_gmai_table(golden, tmp_path, protocol, key):
    data = _read(golden, "gmai_mmbench")
    rows = [case["input"] for case in data["cases"] if case["type"] == "single-choice"]
    wanted = data["aggregate_single"][f"vlmevalkit_{key}"]
    items = _items(gmai_mmbench, tmp_path, gmai_mmbench.VAL[0], rows, protocol)
    values = _score(gmai_mmbench, items, rows, protocol).values
    assert values["accuracy"] == pytest.approx(100 * wanted["overall"], abs=1e-7)
    for group, column in gmai_mmbench.GROUPS.items():
        if column in wanted:
            shares = {name: share for name, share in wanted[column].items() if name != "Overall"}
            lower = str.lower if group == "granularity" else str
            for name, share in _percent(shares).items():
                assert values[f"{group}/{lower(name)}"] == share, name
    for level, column in data["column_map"].items():
        share = data["aggregate_single"][f"paper_columns_{key}"].get(column)
        if isinstance(share, int | float):
            assert values[f"granularity/{level.lower()}"] == pytest.approx(100 * share, abs=1e-7), column


def test_gmai_multi_table(golden, tmp_path):
    data = _read(golden, "gmai_mmbench")
    # A question with one gold option is a single choice in a file.
    multi = [case for case in data["cases"] if case["type"] != "single-choice"]
    cases = [case for case in multi if len(set(case["input"]["gold_options"])) > 1]
    letters = {
        letter for case in cases for name in ("gold", "predicted") for letter in case["input"][f"{name}_options"]
    }
    rows = [
        {
            "index": number,
            "question": "Which are shown?",
            **dict.fromkeys(sorted({"A", "B", *letters}), "finding"),
            "answer": ",".join(case["input"]["gold_options"]),
            "prediction": case["input"]["raw_style"],
        }
        for number, case in enumerate(cases)
    ]
    items = _items(gmai_mmbench, tmp_path, gmai_mmbench.VAL[0], rows, "paper")
    values = _score(gmai_mmbench, items, rows, "paper").values
    for key, name in (("multi/accuracy", "acc"), ("multi/recall", "recall")):
        mean = sum(case["expected"][name] for case in cases) / len(cases)
        assert values[key] == pytest.approx(100 * mean, abs=1e-7)
        if len(cases) == len(multi):
            assert mean == pytest.approx(data["aggregate_multi"]["macro"][f"2D Mcls_{name}"], abs=1e-9)
