"""ChartQA, DocVQA, InfoVQA, AI2D and OCRBench against the recorded scores; counts and cases are read from the files."""

from __future__ import annotations

import json

import pytest

from mini_internvl.benchmarks import ai2d, chartqa, docvqa, infovqa, ocrbench
from mini_internvl.metrics.anls import anls, similarity
from mini_internvl.metrics.options import infer_option
from mini_internvl.records import Item, Prediction

CLOSE = 1e-9
PROTOCOLS = {
    "internvl": "paper",
    "internvl_exact_match": "paper",
    "standard_argument_order": "standard-order",
    "vlmevalkit_2024_10": "vlmevalkit-2024-10",
    "vlmevalkit_head": "vlmevalkit-head",
}
"""Key of the recorded scores -> protocol."""


def _read(golden, name):
    return json.loads((golden / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def _asked(references, texts):
    """Items without images, and the answers to them."""
    items = [Item(id=str(number), messages=[], reference=reference) for number, reference in enumerate(references)]
    return items, [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def _close(value, wanted):
    return value == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


def _recorded(wanted):
    """Whether a metric was recorded: not where the official code stopped or had nothing to average."""
    return isinstance(wanted, int | float)


def _hit(wanted):
    """The recorded result of a case; what stops the official code counts as wrong."""
    if isinstance(wanted, dict):
        wanted = wanted.get("score", wanted.get("hit", 0.0))
    return float(wanted)


def _chartqa(cases):
    references = [{"half": case["input"]["split"], "answers": case["input"]["answer"]} for case in cases]
    return _asked(references, [case["input"]["prediction"] for case in cases])


def test_chartqa_cases(golden):
    cases = _read(golden, "chartqa")["cases"]
    assert cases
    for case in cases:
        items, predictions = _chartqa([case])
        for key, wanted in case["expected"].items():
            score = chartqa.score(items, predictions, protocol=PROTOCOLS[key])
            assert score.values["accuracy"] == 100 * _hit(wanted), (case["id"], key)


def test_chartqa_halves(golden):
    data = _read(golden, "chartqa")
    items, predictions = _chartqa(data["cases"])
    wanted = data["aggregate"]
    score = chartqa.score(items, predictions)
    other = chartqa.score(items, predictions, protocol="standard-order")
    halves = [half for half in chartqa.HALVES if _recorded(wanted[half])]
    for half in halves:
        assert _close(score.values[half], 100 * wanted[half])
        assert score.counts[half] == wanted[f"n_{half}"]
        assert _close(other.values[half], 100 * wanted[f"{half}_standard_argument_order"])
    if len(halves) == len(chartqa.HALVES):
        assert _close(score.values["accuracy"], wanted["average_of_two_splits_percent"])


LABELS = {"answer_type": "answer_types", "evidence": "evidence_types", "operation": "operation_types"}
"""Group of metrics -> its name in the official report."""


def _rows(cases):
    fields = {"answer_type": "answer_type", "evidence": "evidence", "operation": "operation/reasoning"}
    return [
        {"answer": case["input"]["prediction"], "golds": case["input"]["answers"]}
        | {group: case["input"].get(field, []) for group, field in fields.items()}
        for case in cases
    ]


@pytest.mark.parametrize("name", ["docvqa", "infovqa"])
def test_anls_cases(golden, name):
    for case in _read(golden, name)["cases"]:
        text, golds, wanted = case["input"]["prediction"], case["input"]["answers"], case["expected"]
        assert _close(anls(text, golds), _hit(wanted["anls"])), case["id"]
        assert _close(anls(text, golds), _hit(wanted["vlmevalkit"])), case["id"]
        assert _close(similarity(text, golds), _hit(wanted["nls_no_threshold"])), case["id"]


@pytest.mark.parametrize("benchmark", [docvqa, infovqa])
def test_anls_aggregates(golden, benchmark):
    data = _read(golden, benchmark.LAYOUT.benchmark)
    rows, wanted = _rows(data["cases"]), data["aggregate"]
    references = [{"answers": row["golds"], "labels": {group: row[group] for group in LABELS}} for row in rows]
    items, predictions = _asked(references, [row["answer"] for row in rows])
    score = benchmark.score(items, predictions)
    assert _close(score.values["anls"], 100 * wanted["anls"])
    assert _close(benchmark.score(items, predictions, protocol="vlmevalkit").values["anls"], 100 * wanted["anls"])
    assert _close(score.values["anls"], wanted["vlmevalkit_overall_percent"])
    for key in (key for key in wanted if key.startswith("anls_threshold_")):
        threshold = float(key.removeprefix("anls_threshold_"))
        found = [anls(row["answer"], row["golds"], threshold=threshold) for row in rows]
        assert _close(sum(found) / len(found), wanted[key]), key
    for group, official in LABELS.items():
        recorded = wanted.get("scores_by_types", {}).get(official, {})
        for label, value in recorded.items():
            if not _recorded(value):
                continue
            assert _close(score.values[f"{group}/{label}"], 100 * value), label


def test_ai2d(golden):
    data = _read(golden, "ai2d")
    cases = data["cases"]
    references = [{"answers": [case["input"]["answer"]], "options": case["input"]["options"]} for case in cases]
    items, predictions = _asked(references, [case["input"]["prediction"] for case in cases])
    assert len(cases) == data["aggregate"]["n"]
    for key, metric in (
        ("internvl_exact_match", "internvl_accuracy"),
        ("vlmevalkit_head", "vlmevalkit_head_accuracy"),
        ("vlmevalkit_2024_10", "vlmevalkit_2024_10_accuracy"),
    ):
        protocol = PROTOCOLS[key]
        for case, item, prediction in zip(cases, items, predictions, strict=True):
            wanted = case["expected"][key]
            score = ai2d.score([item], [prediction], protocol=protocol)
            assert score.values["accuracy"] == 100 * _hit(wanted), (case["id"], key)
            if isinstance(wanted, dict) and "option" in wanted:
                version = protocol.removeprefix("vlmevalkit-")
                assert (infer_option(prediction.text, item.reference["options"], version=version) or "Z") == wanted[
                    "option"
                ]
        score = ai2d.score(items, predictions, protocol=protocol)
        assert _close(score.values["accuracy"], 100 * data["aggregate"][metric])


OCRBENCH = {"official": "official", "vlmevalkit": "paper"}


def _ocrbench(rows):
    """Items and answers of (category, data set, gold answers, answer)."""
    references = [
        {"category": category, "data_set": data_set, "answers": [golds] if isinstance(golds, str) else golds}
        for category, data_set, golds, _ in rows
    ]
    return _asked(references, [row[3] or "" for row in rows])


def test_ocrbench_cases(golden):
    data = _read(golden, "ocrbench")
    cases = [case["input"] for case in data["cases"]]
    items, predictions = _ocrbench([(c["type"], c["dataset_name"], c["answers"], c.get("predict")) for c in cases])
    for key, protocol in OCRBENCH.items():
        for case, item, prediction in zip(data["cases"], items, predictions, strict=True):
            score = ocrbench.score([item], [prediction], protocol=protocol)
            assert score.values["score"] == _hit(case["expected"][key]), (case["id"], key)
    wanted = data["aggregate_cases"]
    official = ocrbench.score(items, predictions, protocol="official")
    assert official.values["score"] == pytest.approx(wanted["official_sum"])
    _check_points(ocrbench.score(items, predictions), wanted["vlmevalkit"])


def test_ocrbench_suite(golden):
    suite = _read(golden, "ocrbench")["suite_1000"]
    items, predictions = _ocrbench(suite["items"])
    score = ocrbench.score(items, predictions)
    _check_points(score, suite["vlmevalkit"])
    assert _close(score.values["share"], suite["vlmevalkit"]["Final Score Norm"])
    _check_points(ocrbench.score(items, predictions, protocol="official"), suite["official_report"])


def _check_points(score, wanted):
    for name, value in wanted.items():
        if name == "Final Score":
            assert score.values["score"] == pytest.approx(value)
        elif name != "Final Score Norm":
            metrics = [metric for metric in score.values if metric.split("/")[-1] == name]
            assert sum(score.values[metric] for metric in metrics) == pytest.approx(value), name
