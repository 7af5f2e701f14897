"""The template of the page, and how numbers and long texts are written on it."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "templates" / "page.js"
MAX_ANSWER_CHARS = 600  # characters of one answer that are shown


def require() -> None:
    """ValueError with the line that installs jinja2 where it is missing; to be called before long work."""
    if find_spec("jinja2") is None:
        raise ValueError('the report needs jinja2: pip install "mini-internvl[report]"')


def render(template: str, **values: Any) -> str:
    """A page or image from a template of this package; every value is escaped unless the template says otherwise."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Any:
    require()
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("mini_internvl.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed, "words": words, "short": short}
    return environment


def script() -> tuple[str, str]:
    """The script of a page, and its SHA-256 in base64, by which the page allows this script and no other."""
    code = SCRIPT.read_text(encoding="utf-8")
    return code, base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A metric of the tables, "1,234.50", with a true minus sign; "–" for NaN."""
    if math.isnan(value):
        return "–"
    rounded = round(value, digits) or 0.0  # no "-0.00"
    return f"{rounded:{sign if rounded else ''},.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """A value in three or four significant digits: "0.42", "12.3", "1,310", "4e-4"."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    decimals = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:,.{decimals}f}"


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


def short(text: str, most: int = MAX_ANSWER_CHARS) -> str:
    """A text cut after ``most`` characters, saying how many are left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} … ({left:,} more characters)"
