"""Answers by their shape: how data of one's own are scored, found from the reference answers alone.

A shape is found for a kind of question, from all its answers: yes or no, an option's letter, whole numbers, other
numbers, boxes, at most three words, a short text, a caption. The answers of a model are read as leniently as the shape
allows ("There are 3 trees." is 3, "**Yes**, it is" is yes), so that a base model is not marked down for its manners.
Unusual: numbers with leading zeros or more than nine digits are names, not quantities, and count as words. "1,5" is a
number where the reference answers have decimal commas, see :func:`decimal_comma`.
By definition: no published scorer does this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from mini_internvl.inputs import boxes
from mini_internvl.metrics.anls import anls
from mini_internvl.metrics.grounding import match_boxes
from mini_internvl.metrics.options import infer_option
from mini_internvl.metrics.relaxed import TOLERANCE
from mini_internvl.metrics.short_answers import ENDS, plain, same_words

MAIN: Mapping[str, str] = {
    "yes_no": "accuracy",
    "option": "accuracy",
    "count": "exact",
    "number": "within_5_percent",
    "boxes": "f1",
    "words": "accuracy",
    "text": "anls",
    "caption": "rouge_l",
}
"""Shape -> its main metric."""
MEANING: Mapping[str, str] = {
    "yes_no": "yes or no",
    "option": "the letter of an option",
    "count": "whole numbers, exact",
    "number": "numbers, within 5 %",
    "boxes": "boxes, F1 at an IoU of 0.5",
    "words": "the same words",
    "text": "short texts, ANLS",
    "caption": "captions, ROUGE-L",
}
"""Shape -> what it is and how it is scored, in words."""
ERROR = "mae"  # mean absolute error, the one metric that is in the data's unit, and where less is better
MOSTLY = 0.95  # share of the answers to a kind of question that must be as short as their shape says
FEW_WORDS, SHORT_WORDS = 3, 12  # most words of an answer that is compared as words, and as a short text
RIGHT_IOU = 0.5

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?"
_COMMA_DIGITS = r"(?:\d{1,3}(?:\.\d{3})+(?:,\d{1,30})?|\d{1,30}(?:[.,]\d{1,30})?)"
_NUMBER, _COMMA_NUMBER = (
    re.compile(rf"(?<![\w.])[-+−]?(?:{digits}|\.\d{{1,30}})(?!\d)") for digits in (_DIGITS, _COMMA_DIGITS)
)
_ONLY_NUMBER, _ONLY_COMMA_NUMBER = (re.compile(rf"\s*[-+−]?{digits}\s*%?\.?\s*") for digits in (_DIGITS, _COMMA_DIGITS))
_POINT, _COMMA = (
    re.compile(rf"\s*[-+−]?(?:\d{{1,3}}(?:{group}\d{{3}})+|\d{{1,30}}){mark}(?:\d{{1,2}}|\d{{4,30}})\s*%?\s*")
    for group, mark in ((",", r"\."), (r"\.", ","))
)
"""Numbers whose point, or comma, can be nothing but a decimal one: three digits behind it might be thousands."""
_NAME = re.compile(r"\s*0\d|\s*\d{10}")  # a code such as 007, a bar code
_LETTER = re.compile(r"\s*\(?([A-Z])[.):]?\s*|\s*\(?([A-Z])[.):]\s.*", re.DOTALL)
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*)$", re.MULTILINE)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_EMPHASIS = re.compile(r"\*+|(?<!\w)_+|_+(?!\w)")  # in Markdown
_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_PAIRS = ({"yes", "no"}, {"true", "false"}, {"是", "否"})


def decimal_comma(answers: Iterable[str]) -> bool:
    """Whether the numbers among reference answers have decimal commas: one has ("1,5"), and none has a decimal point.

    Where that stays open, as with "1,500" alone, a comma divides thousands.
    """
    answers = list(answers)
    return any(map(_COMMA.fullmatch, answers)) and not any(map(_POINT.fullmatch, answers))


def find_shape(asked: Sequence[tuple[str, str]], *, comma: bool = False) -> str:
    """The shape of the answers to one kind of question, from (question, reference answer) pairs; at least one.

    ``comma``: of :func:`decimal_comma`.
    """
    answers = [answer for _, answer in asked]
    if any({plain(answer) for answer in answers} <= pair for pair in _PAIRS):
        return "yes_no"
    if all(_letter(answer) in options(question) for question, answer in asked):
        return "option"
    if all(boxes.parse(answer) for answer in answers):
        return "boxes"
    number, thousands = (_ONLY_COMMA_NUMBER, r"\.(?=\d{3})") if comma else (_ONLY_NUMBER, ",")
    codes = any(_NAME.match(answer) and not (comma and "," in answer) for answer in answers)
    if not codes and all(map(number.fullmatch, answers)):
        whole = all(re.sub(thousands, "", plain(answer).lstrip("-+−")).isdecimal() for answer in answers)
        return "count" if whole else "number"
    lengths = sorted(len(_WORD.findall(answer)) for answer in answers)
    usual = lengths[math.ceil(MOSTLY * len(lengths)) - 1]
    if usual <= FEW_WORDS:
        return "words"
    unspaced = sum(bool(_EAST_ASIAN.search(answer)) for answer in answers) > len(answers) / 2
    return "text" if usual <= SHORT_WORDS or unspaced else "caption"


def results(shape: str, question: str, gold: str, answer: str, *, comma: bool = False) -> dict[str, float]:
    """Metrics of one answer, each 0 to 1, :data:`ERROR` in the data's unit; captions are scored together elsewhere."""
    if shape in ("count", "number"):
        return _number_results(gold, answer, comma)
    if shape == "boxes":
        return _box_results(gold, answer)
    if shape == "text":
        return {"anls": anls(answer, [gold])}
    if shape == "caption":
        return {}
    return {"accuracy": float(right(shape, question, gold, answer))}


def right(shape: str, question: str, gold: str, answer: str, *, comma: bool = False) -> bool:
    """Whether one answer alone counts: graded metrics at their usual threshold, captions by the same words."""
    if shape == "yes_no":
        return plain(answer).partition(" ")[0].strip(ENDS) == plain(gold)
    if shape == "option":
        return option_of(question, answer) == _letter(gold)
    if shape in ("count", "number"):
        return _number_results(gold, answer, comma)[MAIN[shape]] == 1
    if shape == "boxes":
        return _box_results(gold, answer)["f1"] == 1
    if shape == "text":
        return anls(answer, [gold]) > 0
    return same_words(answer, gold)


def options(question: str) -> dict[str, str]:
    """Letter -> text of the options that a question lists, one a line: ``A. red``, ``(B) blue``."""
    return dict(_OPTION.findall(question))


def option_of(question: str, answer: str) -> str:
    """The letter that an answer means; "" for none."""
    answer = _EMPHASIS.sub("", answer)
    return _letter(answer.strip()) or infer_option(answer, options(question), version="head") or ""


def read_number(text: str, *, comma: bool = False) -> float | None:
    """The first number in a text, ``None`` without one; "1,200" is 1200, "12 %" is 12.

    With ``comma`` "1,200" is 1.2 and "1.200" is 1200; "1.5" is 1.5 nevertheless, as English models write it.
    """
    found = (_COMMA_NUMBER if comma else _NUMBER).search(text)
    if found is None:
        return None
    digits = re.sub(r"\.(?=\d{3}(?:\D|$))", "", found[0]).replace(",", ".") if comma else found[0].replace(",", "")
    return float(digits.replace("−", "-"))


def _letter(text: str) -> str:
    found = _LETTER.fullmatch(text)
    return (found[1] or found[2]) if found else ""


def _number_results(gold: str, answer: str, comma: bool) -> dict[str, float]:
    wanted, said = read_number(gold, comma=comma) or 0.0, read_number(answer, comma=comma)
    error = abs(wanted - (said or 0.0))
    return {
        "exact": float(said is not None and error <= 1e-9 * abs(wanted)),
        "within_5_percent": float(said is not None and error <= (TOLERANCE + 1e-9) * abs(wanted)),
        ERROR: error,
    }


def _box_results(gold: str, answer: str) -> dict[str, float]:
    """Boxes of the same phrase are compared, where the reference holds several; each box has one partner at most."""
    wanted, said = _by_phrase(gold), _by_phrase(answer)
    if len(wanted) == 1:
        wanted, said = ({"": [box for some in side.values() for box in some]} for side in (wanted, said))
    overlaps = [one for phrase in wanted for one in match_boxes(wanted[phrase], said.get(phrase, []))]
    golds, answers = (sum(map(len, side.values())) for side in (wanted, said))
    return {
        "f1": 2 * sum(one >= RIGHT_IOU for one in overlaps) / (golds + answers),
        "mean_iou": sum(overlaps) / max(golds, answers),
    }


def _by_phrase(text: str) -> dict[str, list[boxes.Box]]:
    found: dict[str, list[boxes.Box]] = {}
    for phrase, some in boxes.parse(text):
        found.setdefault(plain(phrase), []).extend(some)
    return found
