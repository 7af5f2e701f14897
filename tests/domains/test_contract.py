"""Every domain keeps the contract of mini_internvl/domains/__init__.py; a new file is covered without a test edited."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from mini_internvl import plugins
from mini_internvl.records import Sample


def below(sample: Sample, root: Path) -> Sample:
    """The sample with its image paths put below ``root``."""
    messages = []
    for message in sample.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {**part, "image": str(root / part["image"])} if part["type"] == "image" else part for part in content
            ]
        messages.append({**message, "content": content})
    return dataclasses.replace(sample, messages=messages)


@pytest.mark.parametrize("name", plugins.list_names("domains"))
def test_domain(name: str, tmp_path: Path) -> None:
    domain = plugins.find("domains", name)
    assert domain.__doc__
    assert isinstance(domain.RECIPE, Mapping)
    assert {"epochs", "lr", "general_ratio"} <= set(domain.RECIPE)
    for benchmark in domain.BENCHMARKS:
        plugins.find("benchmarks", benchmark)

    record, expected = domain.EXAMPLE
    for frame in record.get("frames", []):
        (tmp_path / frame).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / frame).touch()
    (tmp_path / "clips.jsonl").write_text(json.dumps(record) + "\n")
    assert list(domain.convert(tmp_path, "train")) == [below(expected, tmp_path)]
    assert list(domain.convert(tmp_path, "test")) == []
    with pytest.raises(ValueError, match="split"):
        list(domain.convert(tmp_path, "holdout"))
    with pytest.raises(ValueError, match="missing"):
        list(domain.convert(tmp_path / "nowhere"))
