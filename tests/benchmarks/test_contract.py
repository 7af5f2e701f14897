"""Every benchmark keeps the contract of mini_internvl/benchmarks/__init__.py; a new file is covered by its EXAMPLE."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from mini_internvl import plugins
from mini_internvl.records import Prediction


@pytest.mark.parametrize("name", plugins.list_names("benchmarks"))
def test_benchmark(name: str, tmp_path: Path) -> None:
    benchmark = plugins.find("benchmarks", name)
    assert benchmark.__doc__
    rows, good, bad = benchmark.EXAMPLE
    if not isinstance(rows, list):
        assert inspect.signature(benchmark.items).parameters["root"].default is None, "it draws its items"
        return
    for row in rows:
        for frame in row.get("frames", []):
            (tmp_path / frame).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / frame).touch()
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    items = list(benchmark.items(tmp_path, "test"))
    assert len({item.id for item in items}) == len(items) == len(good) == len(bad)
    for item in items:
        assert item.messages[-1]["role"] == "user"
        parts = item.messages[-1]["content"]
        assert all(Path(part["image"]).is_file() for part in parts if part["type"] == "image")
        assert parts[-1]["text"]

    def scored(answers: list[str]) -> dict[str, float]:
        predictions = [Prediction(item_id=item.id, text=text) for item, text in zip(items, answers, strict=True)]
        score = benchmark.score(items, predictions)
        assert score.benchmark == name
        assert score.items == len(items)
        return dict(score.values)

    assert all(benchmark.right(item, text) for item, text in zip(items, good, strict=True))
    assert not any(benchmark.right(item, text) for item, text in zip(items, bad, strict=True))
    best, worst = scored(good), scored(bad)
    assert benchmark.HEADLINE in best
    assert set(best) == set(worst)
    assert set(benchmark.LOWER_IS_BETTER) < set(best)
    for figure, value in best.items():
        if figure in benchmark.LOWER_IS_BETTER:
            assert value < worst[figure], figure
        else:
            assert value > worst[figure], figure
