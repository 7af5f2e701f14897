"""Every domain keeps the contract of mini_internvl/domains/__init__.py; a new file is covered without a test edited."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mini_internvl import plugins
from mini_internvl.data import Fault
from mini_internvl.domains import AdaptRecipe, load_domain
from mini_internvl.records import Sample

DOCS = Path(__file__).parent.parent.parent / "docs" / "adapt.md"


@pytest.fixture(scope="session")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The domain file that docs/adapt.md shows, as a file of the user's own."""
    path = tmp_path_factory.mktemp("own") / "ships.py"
    [code] = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    path.write_text(code, encoding="utf-8")
    return str(path)


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


@pytest.mark.parametrize("name", [*plugins.list_names("domains"), "a file of one's own"])
def test_the_worked_example_converts_as_it_says(name: str, own_file: str, tmp_path: Path) -> None:
    path = own_file if name.startswith("a file") else name
    domain, module = load_domain(path), plugins.find("domains", path)
    assert module.__doc__
    example = module.EXAMPLE
    raw = example.write(tmp_path / "raw")
    assert example.samples.keys() == example.faults.keys()
    assert set(domain.splits[:2]) <= example.samples.keys()
    for split, samples in example.samples.items():
        found = list(domain.convert(raw, split))
        assert [one for one in found if isinstance(one, Sample)] == [below(sample, raw) for sample in samples]
        faults = [one for one in found if isinstance(one, Fault)]
        assert len(faults) == example.faults[split]
        assert all(fault.file.is_file() and fault.place and fault.reason for fault in faults)
    with pytest.raises((ValueError, OSError)):
        list(domain.convert(tmp_path / "nowhere", domain.splits[0]))


GOOD = {
    "TITLE": "TITLE = 'x'",
    "SPLITS": "SPLITS = ('a',)",
    "convert": "def convert(raw, split): yield",
    "RECIPE": "RECIPE = domains.AdaptRecipe()",
    "BENCHMARKS": "BENCHMARKS = {'dior_rsvg': domains.DomainBenchmark()}",
}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("TITLE", "", "has no TITLE: the domain's name in print"),
        ("SPLITS", "SPLITS = 'a'", "SPLITS is a str; it must be the names of its splits"),
        ("SPLITS", "SPLITS = ('a', 'a')", "must hold different names"),
        ("convert", "convert = 3", "convert is a int"),
        ("RECIPE", "RECIPE = {'lr': 1}", "RECIPE is a dict; it must be an AdaptRecipe"),
        ("BENCHMARKS", "BENCHMARKS = {'dior_rsvg': 1}", "must be a DomainBenchmark"),
        (
            "BENCHMARKS",
            "BENCHMARKS = {'dior_rsvg': domains.DomainBenchmark(test='val')}",
            'dior_rsvg scores no split "val"; there are: test',
        ),
        (
            "BENCHMARKS",
            "BENCHMARKS = {'infovqa': domains.DomainBenchmark(test='test')}",
            'infovqa scores no split "test"',
        ),
        (
            "BENCHMARKS",
            "BENCHMARKS = {'dior_rsvg': domains.DomainBenchmark(test=None)}",
            "nothing could be scored",
        ),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_with_what_belongs_there(
    name: str, line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    lines = ["from mini_internvl import domains", *{**GOOD, name: line}.values()]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_domain(str(path))


def test_a_benchmark_may_be_a_file_beside_the_domain(tmp_path: Path) -> None:
    (tmp_path / "hits.py").write_text("from mini_internvl.benchmarks.dior_rsvg import *\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "from mini_internvl.domains import AdaptRecipe, DomainBenchmark\n"
        "TITLE, SPLITS, RECIPE = 'Mine', ('train',), AdaptRecipe()\n"
        "BENCHMARKS = {'hits.py': DomainBenchmark()}\n"
        "def convert(raw, split): yield\n",
        encoding="utf-8",
    )
    domain = load_domain(str(tmp_path / "mine.py"))
    assert list(domain.benchmarks) == ["hits"]
    assert domain.benchmarks["hits"][0].TITLE == "DIOR-RSVG"


@pytest.mark.parametrize(
    ("setting", "value"), [("epochs", 0), ("ratio", -1), ("lr", 0), ("max_tiles", 0), ("loss_reduction", "word")]
)
def test_recipes_are_checked_when_they_are_made(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        AdaptRecipe(**{setting: value})
