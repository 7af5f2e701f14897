"""Malformed run folders: the message names the file and the key or line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_internvl.report import run_folder


def test_reads_what_the_adaptation_writes(result: dict[str, Any], write: Callable[..., Path]) -> None:
    data = run_folder.read_result(write(result))
    assert data["title"] == "Driving (simulated BDD-X)"
    assert data["general"]["kinds"] == ["shapes", "words", "charts"]
    assert data["general"]["mean"] == {"base": 71.0, "adapted": 69.5}
    assert data["columns"][0] == {**result["columns"][0], "unit": ""}


def test_fills_in_what_is_absent(result: dict[str, Any], write: Callable[..., Path]) -> None:
    del result["general"]["mean"], result["title"]
    result["clips"] = None
    data = run_folder.read_result(write(result))
    assert data["general"]["mean"]["adapted"] == pytest.approx((79.0 + 69.0 + 60.5) / 3)
    assert data["title"] == "driving-sim"
    assert data["clips"] == []


def put(data: Any, path: str, value: Any) -> None:
    """Set ``data["a"][0]["b"]`` for the path "a.0.b"; a value of ... deletes it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("|")]
    for part in parents:
        data = data[part]
    if value is ...:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", ..., 'the key "model" is missing'),
        ("model", "nano", '"model" must be an object'),
        ("model|name", None, 'the key "model.name" is missing'),
        ("model|parameters", "8M", '"model.parameters" must be a whole number'),
        ("benchmarks", [], '"benchmarks" must be an object'),
        ("benchmarks|bddx_text|adapted", ..., 'the key "benchmarks.bddx_text.adapted" is missing'),
        ("benchmarks|bddx_text|base|values", ..., 'the key "benchmarks.bddx_text.base.values" is missing'),
        (
            "benchmarks|bddx_text|base|values|full/B4",
            "high",
            '"benchmarks.bddx_text.base.values.full/B4" must be a number',
        ),
        ("columns", ..., 'the key "columns" is missing'),
        ("columns|2", "B4", '"columns[2]" must be an object'),
        ("columns|2|key", ..., 'the key "columns[2].key" is missing'),
        ("columns|2|higher_is_better", 1, '"columns[2].higher_is_better" must be true or false'),
        ("columns|2|benchmark", "other", '"columns[2].benchmark" is "other"'),
        ("general|base", ..., 'the key "general.base" is missing'),
        ("general|base|words", "many", '"general.base.words" must be a number'),
        ("general|mean|base", True, '"general.mean.base" must be a number'),
        ("clips", {}, '"clips" must be a list'),
        ("clips|1", 7, '"clips[1]" must be an object'),
        ("clips|1|frames|0", 7, '"clips[1].frames" must be a list of paths'),
        ("clips|1|questions", ..., 'the key "clips[1].questions" is missing'),
        ("clips|1|questions|3", "why", '"clips[1].questions[3]" must be an object'),
        ("clips|1|questions|3|base_right", "yes", '"clips[1].questions[3].base_right" must be true or false'),
        ("recipe", "fast", '"recipe" must be an object'),
    ],
)
def test_malformed_results(
    result: dict[str, Any], write: Callable[..., Path], path: str, value: Any, message: str
) -> None:
    put(result, path, value)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run_folder.read_result(write(result))
    assert "adapt.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapt.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapt\.json"):
        run_folder.read_result(tmp_path)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapt\.json does not exist; is .* the folder of a finished adaptation"):
        run_folder.read_result(tmp_path / "nothing")


def test_a_log_beside_the_result_or_in_train(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n\n{"step": 2, "lo')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text('{"step": 7}\n')
    assert run_folder.read_metrics(tmp_path) == [{"step": 7}]


@pytest.mark.parametrize("line", ['{"step": ', "[]", '{"loss": 1.0}', '{"step": "one"}'])
def test_malformed_logs(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: "):
        run_folder.read_metrics(tmp_path)
