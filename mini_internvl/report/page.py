"""What every report page shares: its templates, how metrics and long texts are written, and the file itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LONGEST_TEXT = 600
"""Characters of one answer that are shown."""


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; every value is escaped unless the template says otherwise.

    Raises:
        ValueError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError:
        raise ValueError('the report needs jinja2: pip install "mini-internvl[report]"') from None
    loader = PackageLoader("mini_internvl.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed, "words": words, "duration": duration}
    return environment.get_template(template).render(**values)


def write(path: Path, page: str) -> Path:
    """Write a page, whole or not at all; what is no valid text (half a character) becomes a question mark."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    os.replace(temporary, path)
    return path


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A metric of the tables, "1,234.50", with a true minus sign; "–" for NaN."""
    if math.isnan(value):
        return "–"
    rounded = round(value, digits) or 0.0  # no "-0.00"
    return f"{rounded:{sign if rounded else ''},.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference, "+12.30", "−0.50" or "0.00"."""
    return number(value, digits, "+")


def words(key: object) -> str:
    """A key as words: "turning_angle" is "turning angle"."""
    return str(key).replace("_", " ")


def duration(seconds: object) -> str:
    """ "42 s" or "3 min 05 s", kept on one line; anything but a number as it is."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return str(seconds)
    whole = round(seconds)
    text = f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.3g} s"
    return text.replace(" ", "\u00a0")


def count(things: Sequence[object], noun: str) -> str:
    """ "1 column", "3 columns"."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def short(text: str, most: int = LONGEST_TEXT) -> str:
    """A text cut after ``most`` characters, saying how many are left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} … ({left:,} more characters)"
