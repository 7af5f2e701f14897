"""Fonts: found, checked, split, and drawing without any system font."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mini_internvl import synth
from mini_internvl.synth import base, fonts


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A computer without system fonts and without matplotlib."""
    monkeypatch.setenv("MINIVL_FONTS", str(tmp_path))
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    fonts.found.cache_clear()
    fonts.families.cache_clear()
    yield
    fonts.found.cache_clear()
    fonts.families.cache_clear()


def test_fonts_are_sorted_and_usable():
    found = fonts.found()
    assert found
    names = [Path(f.path).name for f in found]
    assert names == sorted(names)
    assert all(fonts.load(f.path, 16).getlength("Rag 0158") > 20 for f in found)


def test_no_family_is_in_both_splits():
    train = {f.path for group in fonts.families("train") for f in group}
    test = {f.path for group in fonts.families("test") for f in group}
    families = {f.family for f in fonts.found() if not f.has_cjk}
    if len(families) > 1:
        assert not train & test
        assert not {g[0].family for g in fonts.families("train")} & {g[0].family for g in fonts.families("test")}
    assert train
    assert test


def test_picks_follow_the_split():
    allowed = {f.path for group in fonts.families("test") for f in group}
    rng = random.Random(0)
    assert {fonts.pick(rng, "test") for _ in range(50)} <= allowed


def test_drawing_works_without_any_font_file(bare):
    assert [f.path for f in fonts.found()] == [fonts.BUILT_IN]
    for kind in ("text_easy", "text", "words", "charts", "chinese"):
        if synth.missing(kind) is None:
            image, questions = synth.draw(kind, 0, 1)
            assert image.mode == "RGB"
            assert questions


def test_chinese_without_a_chinese_font_asks_about_shapes(bare):
    assert fonts.pick_cjk(random.Random(0)) is None
    for index in range(20):
        assert all(qa.task != "read" for qa in synth.draw("chinese", 0, index)[1])


def test_two_families_are_split_one_each(monkeypatch):
    pair = (fonts.Font(path="a", family="kept"), fonts.Font(path="b", family="other"))
    monkeypatch.setattr(fonts, "found", lambda: pair)
    fonts.families.cache_clear()
    train, test = fonts.families("train"), fonts.families("test")
    fonts.families.cache_clear()
    assert len(train) == len(test) == 1
    assert train != test


@pytest.mark.parametrize(("name", "family"), [
    ("DejaVuSans-Bold.ttf", "dejavusans"), ("DejaVuSansMono.ttf", "dejavusansmono"),
    ("LinLibertine_R.otf", "linlibertine"),
    ("PTS75F.ttf", "pts"), ("Lato-BlackItalic.ttf", "lato"), ("C059-Roman.otf", "c"),
])  # fmt: skip
def test_family_keys(name, family):
    assert fonts.family_key(f"/fonts/{name}") == family


def test_files_that_are_no_fonts_are_left_out(tmp_path):
    path = tmp_path / "broken.ttf"
    path.write_bytes(b"no font")
    assert not fonts.has_latin(str(path))


def test_package_list_has_no_doubles():
    assert len(set(fonts.FONT_PACKAGES)) == len(fonts.FONT_PACKAGES) >= 40
