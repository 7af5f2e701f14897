"""Every domain goes the whole way from its official files in small: rows, check, preview, training, scores, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mini_internvl import plugins
from mini_internvl.adapt import AdaptConfig, adapt
from mini_internvl.adapt import plan as planning
from mini_internvl.data import DataError
from mini_internvl.domains import Domain, load_domain
from mini_internvl.evaluate.questions import read_questions
from mini_internvl.report import build, read_parts


def with_test_files(domain: Domain, raw: Path, folder: Path) -> Domain:
    """The domain, its benchmarks reading their own worked examples where that of the domain has none of their files."""
    found = {}
    for name, (benchmark, use) in domain.benchmarks.items():
        try:
            there = bool(use.test and read_questions(name, benchmark, data=raw / use.folder, split=use.test).items)
        except (DataError, ValueError):
            there = False
        if not there:
            example = benchmark.EXAMPLE.write(folder / name)
            use = dataclasses.replace(use, folder=str(example), validation=None)
        found[name] = (benchmark, use)
    return dataclasses.replace(domain, benchmarks=found)


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.list_names("domains"))
def test_from_official_files_to_a_report(name, checkpoint, minivl, tmp_path, monkeypatch):
    raw = plugins.find("domains", name).EXAMPLE.write(tmp_path / "raw")
    domain = with_test_files(load_domain(name), raw, tmp_path / "benchmarks")
    monkeypatch.setattr(planning, "load_domain", lambda _: domain)
    output = tmp_path / "run"
    config = AdaptConfig(
        domain=name, output=output, model=str(checkpoint), data=raw, max_faults=1.0, epochs=2, batch_size=1,
        max_tiles=2, max_length=2000, probe=["none"], validation_items=2, device="cpu", precision="fp32", workers=0,
    )  # fmt: skip
    facts = adapt(config)
    rows = output / "rows" / f"{domain.splits[0]}.jsonl"

    code, out, err = minivl("data", "check", rows, "--model", checkpoint, "--json")
    findings = [one for one in json.loads(out)["findings"] if one["level"] == "error"]
    assert not findings, err
    code, _, err = minivl("data", "preview", rows, "--model", checkpoint, "--output", tmp_path / "preview.html")
    assert code == 0, err
    page = (tmp_path / "preview.html").read_text()
    assert page.count("data:image") >= 1

    assert facts["data"][domain.splits[0]]["rows"] == len(rows.read_text().splitlines()) > 0
    parts = read_parts(output)
    for side in (parts.base, parts.results, *parts.baselines.values()):
        assert sorted(result.benchmark for result in side) == sorted(domain.benchmarks)
        assert all(result.items for result in side)
    assert set(parts.baselines) == {"guess", "blind"}
    assert domain.title in build(output).read_text()
