"""Plug-ins are found by file name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mini_internvl import plugins


def test_lists_files_without_their_helpers() -> None:
    assert "driving_sim" in plugins.list_names("domains")
    assert {"bddx_text", "bddx_signals"} <= set(plugins.list_names("benchmarks"))
    assert not [name for name in plugins.list_names("domains") if name.startswith("_")]


def test_finds_by_name_and_by_hyphens() -> None:
    module = plugins.find("domains", "driving-sim")
    assert module.__name__ == "mini_internvl.domains.driving_sim"
    assert plugins.find("domains", "driving_sim") is module


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'called "bdx_text"; did you mean bddx_text'):
        plugins.find("benchmarks", "bdx_text")
    with pytest.raises(ValueError, match=r"known: .*driving_sim"):
        plugins.find("domains", "qqqqqqq")


@pytest.mark.parametrize("name", ["_car_racing", "../records", "driving_sim.build", "", "os"])
def test_refuses_what_is_no_plug_in(name: str) -> None:
    with pytest.raises(ValueError, match="plug-in"):
        plugins.find("domains", name)


@pytest.mark.parametrize("folder", ["nowhere", "", "domains/..", "records"])
def test_refuses_an_unknown_folder(folder: str) -> None:
    with pytest.raises(ValueError, match="no plug-in folder"):
        plugins.list_names(folder)


def test_listing_and_finding_import_no_heavy_package() -> None:
    code = (
        "import sys; from mini_internvl import plugins\n"
        "for folder in ('domains', 'benchmarks'):\n"
        "    for name in plugins.list_names(folder): plugins.find(folder, name)\n"
        "print([m for m in ('torch', 'gymnasium', 'pygame', 'Box2D') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_file_of_ones_own_is_a_plug_in(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("SPLITS = ('train',)\ndef convert(raw, split): yield\n")
    module = plugins.find("domains", str(path))
    assert module.SPLITS == ("train",)
    assert plugins.find("domains", str(path)) is module


@pytest.mark.parametrize(
    "folder", ["domains", "benchmarks", "data.formats", "train.losses", "model.layouts", "model.llms"]
)
def test_a_name_of_the_contract_that_is_forgotten_is_told(tmp_path, folder) -> None:
    for name in plugins.list_names(folder):
        plugins.find(folder, name)
    path = tmp_path / "mine.py"
    path.write_text("TITLE = 'Mine'\n")
    with pytest.raises(ValueError, match=rf"mine\.py has no .*; a file for {folder} defines "):
        plugins.find(folder, str(path))


def test_a_path_and_a_name_give_the_same_short_name() -> None:
    assert plugins.short_name("/far/away/driving-sim.py") == plugins.short_name("driving-sim") == "driving_sim"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"bad\.py does not exist; give the path of a file for domains"),
        ("import nowhere_to_be_found", r"bad\.py cannot be imported \(ModuleNotFoundError: .*nowhere_to_be_found"),
        ("def (", r"bad\.py cannot be imported \(SyntaxError"),
        ("1 / 0", r"bad\.py cannot be imported \(ZeroDivisionError"),
    ],
)
def test_a_file_of_ones_own_that_is_no_plug_in_is_told(tmp_path, text, message) -> None:
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        plugins.find("domains", str(tmp_path / "bad.py"))
