"""Fonts found on this computer, checked and split into train and test.

What cannot draw distinct Latin upper and lower case letters and digits is left out by looking at the rendered glyphs.
matplotlib's DejaVu comes next and Pillow's built-in font last, so drawing works on a computer without any system font.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

from . import lexicon
from .base import package_folder

BUILT_IN = "<pillow>"  # stands for Pillow's built-in font where a path is expected

TEST_SHARE = 0.15  # share of font families kept for test images

FONT_PACKAGES = tuple(Path(__file__).with_name("font_packages.txt").read_text("ascii").split())
"""Debian packages that the shipped model's images were drawn with."""

_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
            "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
_SUFFIXES = {".ttf", ".otf", ".ttc"}
_SKIPPED = re.compile(
    r"emoji|symbol|dingbat|icon|awesome|math(?!ias)|d050000l|outline|initial|smallcap|smcp|keyboard|"
    r"lastresort|blackletter|swash|alternate|expert|barcode|braille|[a-z]sc(?![a-z])|caps?[-_.]|ecolier_?lignes|"
    r"script|^dkg|^humor|^ocrb[ef]\.|thin|hairline|extralight|ultralight|extra-light",
    re.I,
)
_STYLES = re.compile(
    r"(regular|book|roman|medium|semibold|demibold|demi|extrabold|ultrabold|bold|black|heavy|extralight|ultralight|"
    r"light|thin|hairline|italic|oblique|ital|slanted|condensed|cond|narrow|extended|normal|no\d|std|variable|vf)",
    re.I,
)
_ONE_FAMILY = ("LinLibertine", "LinBiolinum", "PTM", "PTS", "PTZ", "PTC", "PTN", "PTF", "GenB", "Nanum", "STIX", "OCRB")
_STYLES_PER_FAMILY = 8


@dataclass(frozen=True, kw_only=True)
class Font:
    """One usable font file, or ``BUILT_IN``, with its family key; ``has_cjk``: it draws common Chinese characters."""

    path: str
    family: str
    has_cjk: bool = False


def family_key(path: str) -> str:
    """The file name without style words, lower case: ``DejaVuSans-Bold.ttf`` -> ``dejavusans``."""
    stem = Path(path).stem
    for prefix in _ONE_FAMILY:
        if stem.startswith(prefix):
            return prefix.lower()
    return _STYLES.sub("", re.split(r"[-_\[ ]", stem)[0]).strip("0123456789").lower() or stem.lower()


@lru_cache(maxsize=256)
def load(path: str, size: int) -> ImageFont.FreeTypeFont:
    """The font object of a file at a pixel size; cached, basic layout so that every computer draws the same.

    Opening takes about 0.05 ms and an open font up to 0.2 MB, so few are kept.
    """
    if path == BUILT_IN:
        built_in = ImageFont.load_default(size)
        assert isinstance(built_in, ImageFont.FreeTypeFont), "Pillow without FreeType"
        return built_in
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _glyph(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray:
    """One glyph cropped to its ink, (height, width) uint8."""
    mask = font.getmask(char, mode="L")
    if min(mask.size) < 1:
        return np.zeros((1, 1), np.uint8)
    return np.array(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0])


def has_latin(path: str) -> bool:
    """Whether a font draws A-Z, a-z and 0-9 as distinct visible glyphs, lower case unlike upper case."""
    try:
        font = load.__wrapped__(path, 24)
        missing = _glyph(font, "\uffff")
        glyphs = {c: _glyph(font, c) for c in "AEGRQaegrq0258bdmx%.-"}
        widths = {c: font.getlength(c) for c in "AaMmi05%.:-"}
    except (OSError, ValueError):
        return False
    if min(widths.values()) < 2 or max(widths.values()) > 40:
        return False
    letters = {c: g for c, g in glyphs.items() if c.isalnum()}
    if any(g.shape[1] < 4 or g.shape[0] < 7 or g.shape[0] > 34 for g in letters.values()):
        return False
    if any(g.shape == missing.shape and g.tobytes() == missing.tobytes() for g in glyphs.values()):
        return False
    if len({g.tobytes() for g in letters.values()}) < len(letters):
        return False
    tall, low = min(glyphs[c].shape[0] for c in "bd"), max(glyphs[c].shape[0] for c in "aemx")
    return tall > 1.12 * low and glyphs["g"].shape[0] > 1.12 * low


def has_chinese(path: str) -> bool:
    """Whether a font draws common Chinese characters as distinct glyphs."""
    try:
        font = load.__wrapped__(path, 24)
        glyphs = [_glyph(font, c) for c in "\uffff中的我是国车"]
    except (OSError, ValueError):
        return False
    return min(g.shape[1] for g in glyphs[1:]) > 8 and len({g.tobytes() for g in glyphs}) == len(glyphs)


def _files() -> Iterator[str]:
    """Font files of the system and of matplotlib, each file name once."""
    named = os.environ.get("MINIVL_FONTS", os.pathsep.join(_FOLDERS))
    folders = [Path(f).expanduser() for f in named.split(os.pathsep) if f]
    paths = [p for f in folders if f.is_dir() for p in sorted(f.rglob("*")) if p.suffix.lower() in _SUFFIXES]
    if folder := package_folder("matplotlib"):
        paths += sorted((folder / "mpl-data/fonts/ttf").glob("DejaVu*.ttf"))
    seen: dict[str, int] = {}
    for path in paths:
        family = family_key(str(path))
        if path.name in seen or _SKIPPED.search(path.name) or seen.get(family, 0) >= _STYLES_PER_FAMILY:
            continue
        seen[path.name] = 1
        seen[family] = seen.get(family, 0) + 1
        yield str(path)


@lru_cache(maxsize=1)
def found() -> tuple[Font, ...]:
    """All usable fonts, sorted by file name; Pillow's built-in one when there is no other."""
    usable = [
        Font(path=p, family=family_key(p), has_cjk=Path(p).stat().st_size > 1_000_000 and has_chinese(p))
        for p in _files()
        if has_latin(p)
    ]
    usable.sort(key=lambda f: Path(f.path).name)
    return tuple(usable) or (Font(path=BUILT_IN, family="pillow"),)


@lru_cache(maxsize=4)
def families(split: str, cjk: bool = False) -> tuple[tuple[Font, ...], ...]:
    """Usable fonts of one split, grouped by family.

    Two families or more are always split without overlap; a lone family serves both splits. CJK fonts are few, so
    both splits share them.
    """
    groups: dict[str, list[Font]] = {}
    for font in found():
        if font.has_cjk == cjk:
            groups.setdefault(font.family, []).append(font)
    names = sorted(groups)
    if not cjk and len(names) > 1:
        test = {n for n in names if lexicon.hash_share(n) < TEST_SHARE}
        test = test or {min(names, key=lambda n: hashlib.blake2b(n.encode()).digest())}
        if len(test) == len(names):
            test.remove(max(names))
        names = [n for n in names if (n in test) == (split == "test")]
    return tuple(tuple(groups[n]) for n in names)


def pick(rng: random.Random, split: str) -> str:
    """A font file of the split: family first, then style, both uniform."""
    groups = families(split)
    group = groups[int(rng.random() * len(groups))]
    return group[int(rng.random() * len(group))].path


def pick_cjk(rng: random.Random) -> str | None:
    """A font file with Chinese characters, or ``None`` when there is none."""
    groups = families("train", cjk=True)
    return rng.choice(rng.choice(groups)).path if groups else None
