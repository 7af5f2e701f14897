"""Rotated boxes in texts, as remote-sensing instruction data write them -> this family's tagged boxes.

GeoChat writes ``<p>phrase</p> {<x1><y1><x2><y2>|<angle>}``, FIT-RS ``<rbox>({<cx><cy><w><h>|<angle>})</rbox>``:
numbers are per cent of the image's sides, the angle turns the box about its centre, in degrees. What comes out is
``<ref>phrase</ref><box>[[x1, y1, x2, y2], ...]</box>`` in thousandths, upright: the box around the turned one, which
does not depend on the sense of the angle. The turn is one of pixels, so it needs the image's size.
Source: mbzuai-oryx/GeoChat, ``geochat_demo.py`` (range and turn of the boxes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from mini_internvl.inputs import boxes

Size = Callable[[], tuple[int, int]]  # gives width and height of the image where they are needed
_NUMBER = r"<\s*(-?\d+(?:\.\d+)?)\s*>"
_BOX = re.compile(r"\{" + _NUMBER * 4 + r"(?:\|" + _NUMBER + r")?\}")
_ONE = r"(?:<rbox>\s*\(?\s*)?\{(?:<[^<>{}]*>|\|)*\}(?:\s*\)?\s*</rbox>)?"
_RUN = re.compile(rf"(?:<p>((?:(?!</?p>).)*)</p>\s*)?({_ONE}(?:\s*(?:<delim>)?\s*{_ONE})*)", re.DOTALL)
_PHRASE = re.compile(r"<p>((?:(?!</?p>).)*)</p>", re.DOTALL)


def tagged(text: str, size: Size, *, centred: bool = False, phrase: str = "") -> str:
    """The text with its boxes in this family's form, and its phrases in ``<ref>``.

    Args:
        text: the text.
        size: gives the image's size; it is asked only where a box is turned.
        centred: whether a box is written as centre, width and height (FIT-RS).
        phrase: what boxes without a phrase of their own mean; "" leaves them without.

    Raises:
        ValueError: a box is no box, or leaves the image.
    """

    def boxed(match: re.Match[str]) -> str:
        found = [_upright(one, size, centred) for one in re.findall(r"\{[^{}]*\}", match[2])]
        named = (match[1] or "").strip() or phrase
        written = boxes.render(named, found)
        return written if named else written.removeprefix("<ref></ref>")

    found = _PHRASE.sub(lambda match: f"<ref>{match[1].strip()}</ref>", _RUN.sub(boxed, text))
    if left := re.search(r"\{<|<rbox>|</?p>|<delim>", found):
        raise ValueError(f'"{found[left.start() : left.start() + 40]}" is no box or phrase that can be read')
    return found


def phrase_of(text: str) -> str:
    """The first phrase between ``<p>`` and ``</p>``; "" where there is none."""
    match = _PHRASE.search(text)
    return match[1].strip() if match else ""


def _upright(written: str, size: Size, centred: bool) -> tuple[int, int, int, int]:
    """The upright box around a written one, in thousandths."""
    match = _BOX.fullmatch(written)
    if match is None:
        raise ValueError(f"{written} is no box; it must be four numbers and an angle")
    a, b, c, d = (float(number) for number in match.groups()[:4])
    angle = math.radians(float(match[5] or 0))
    x1, y1, x2, y2 = (a - c / 2, b - d / 2, a + c / 2, b + d / 2) if centred else (a, b, c, d)
    if not (x1 <= x2 and y1 <= y2):
        raise ValueError(f"{written} is no box; its corners are swapped")
    if not (0 <= (x1 + x2) / 2 <= 100 and 0 <= (y1 + y2) / 2 <= 100) or (
        not centred and not 0 <= min(x1, y1) <= max(x2, y2) <= 100
    ):
        raise ValueError(f"the box {written} leaves the image; its numbers are per cent of the sides")
    width, height = size() if angle else (100, 100)
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    wide, high = (x2 - x1) * width / 100, (y2 - y1) * height / 100
    half = (wide * cosine + high * sine) / 2, (wide * sine + high * cosine) / 2
    x, y = (x1 + x2) * width / 200, (y1 + y2) * height / 200
    return boxes.to_thousand((x - half[0], y - half[1], x + half[0], y + half[1]), width, height)
