"""README and docs stay true: docs/files.md is complete, named commands, flags and links exist, examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
import yaml

import mini_internvl
from mini_internvl import plugins, recipes
from mini_internvl.cli import app
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import count_parameters, official_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def file_map_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("file_map", ROOT / "scripts" / "file_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced code blocks of a page in one of the languages."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield body


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words after ``minivl`` of every call in the page's shell blocks and inline code."""
    for body in blocks(page, "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?<![\w./-])minivl (.*)", line):
                yield shlex.split(call.rstrip(")"), comments=True)
    for call in re.findall(r"`minivl ([^`]+)`", page.read_text(encoding="utf-8")):
        yield shlex.split(call)


def test_file_map_names_every_module_and_no_other() -> None:
    script = file_map_script()
    assert script.PAGE.read_text(encoding="utf-8") == script.file_map(), "stale; run: python scripts/file_map.py"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_flags_exist(page: Path) -> None:
    for words in command_lines(page):
        command = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"minivl {' '.join(words)}: there is no command {rest[0]}"
            command = command.commands[rest.pop(0)]
        known = {"--help"} | {flag for parameter in command.params for flag in parameter.opts}
        flags = {word.partition("=")[0] for word in rest if word.startswith("-") and not word[1:2].isdigit()}
        assert flags <= known, f"minivl {' '.join(words)}: there is no {', '.join(sorted(flags - known))}"


def test_every_command_is_described() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in typer.main.get_command(app).commands if f"minivl {name}" not in text]
    assert not missing, f"neither README nor docs name: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target} does not exist"


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.name)
def test_python_examples_run(
    page: Path, checkpoint: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, in a folder with photo.jpg and a checkpoint folder; the tiny model stands in for nano."""
    from PIL import Image

    Image.open(image).save(tmp_path / "photo.jpg")
    (tmp_path / "checkpoint").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mini_internvl.engine.hub.NANO", checkpoint)
    names: dict[str, object] = {"__name__": "example"}
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "yaml"))], ids=lambda page: page.name)
def test_recipes_in_docs_are_valid(page: Path) -> None:
    for body in blocks(page, "yaml"):
        recipes.from_dict(recipes.Recipe, yaml.safe_load(body))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_on_disk_are_valid(path: Path) -> None:
    recipe = recipes.load(path)
    if recipe.build:
        assert (ROOT / recipe.build / "config.json").is_file(), f"{path.name}: build names {recipe.build}, not there"


@pytest.mark.parametrize("size", ["1B", "2B", "4B", "nano"])
def test_parameter_counts_in_docs(size: str) -> None:
    raw = json.loads((ROOT / "recipes/nano/config.json").read_text()) if size == "nano" else official_config(size)
    counts = count_parameters(VLMConfig.from_official(raw))
    row = re.search(rf"^\| {size} \|.*$", (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"), re.M)
    assert row is not None
    assert [int(n.replace(",", "")) for n in re.findall(r"\| ([\d,]{6,}) ", row[0])] == list(counts.values())


BENCHMARK_HEADINGS = ("Files", "Folder", "Prompt", "Scoring", "Protocols", "Published scores", "Traps", "Command")


@pytest.mark.parametrize("name", plugins.list_names("benchmarks"))
def test_every_benchmark_has_a_page_that_says_what_its_file_says(name: str) -> None:
    benchmark = plugins.find("benchmarks", name)
    page = ROOT / "docs" / "benchmarks" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", text, re.M)) == BENCHMARK_HEADINGS
    named = [*benchmark.PROTOCOLS, *benchmark.SPLITS, *getattr(benchmark, "UNSCORED", ())]
    if benchmark.EXAMPLE is not None:
        named += [Path(path).name for path in benchmark.EXAMPLE.files]
    missing = [word for word in named if word not in text]
    assert not missing, f"{page.name} does not name {missing}"
    assert any(words[:2] == ["eval", name] for words in command_lines(page)), f"{page.name} shows no command"
    assert f"({name}.md)" in (page.parent / "index.md").read_text(encoding="utf-8")


def test_every_benchmark_page_has_a_benchmark() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "benchmarks").glob("*.md")} - {"index"}
    assert pages == set(plugins.list_names("benchmarks"))


def test_public_names_exist() -> None:
    assert all(hasattr(mini_internvl, name) for name in mini_internvl.__all__)
