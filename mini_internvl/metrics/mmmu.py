"""MMMU: the official parsers of answers, InternVL's report, and VLMEvalKit's way to make every question a choice.

Unusual: the official parser draws a letter where it finds none, in an order of its own; here the letter follows from
the question's id, so that a score never depends on the order of the answers, and such answers can be counted. An open
answer is lowercased before it is split into sentences, so only line breaks split it; ".5" reads as 5.
InternVL compares the letter of its own rule with the gold letter, without any parsing. VLMEvalKit, from which the
paper's number comes, gives an open question two options: the gold text, and "Other Answers".
Source: MMMU ``eval_utils.py``; InternVL ``main_eval_only.py``; VLMEvalKit ``multiple_choice.py``.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""Domain -> subjects, in the order of the official report."""
OTHER = "Other Answers"  # VLMEvalKit's second option of an open question

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_FEW_WORDS = 5
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With commas, scientific, plain; a number may be found by several."""


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that the official parser reads; ``None`` where it would draw one.

    It looks for "(B)", then for a "B" between spaces, then, in more than five words, for the options' texts; of several
    it takes the one that comes last.
    """
    for mark in _ENDS:
        response = response.strip(mark)
    response = f" {response} "
    lowered = response.lower()
    searches: list[tuple[str, Mapping[str, str]]] = [
        (response, {letter: f"({letter})" for letter in options}),
        (response, {letter: f" {letter} " for letter in options}),
    ]
    if len(response.split()) > _FEW_WORDS:
        searches.append((lowered, {letter: text.lower() for letter, text in options.items()}))
    for text, wanted in searches:
        places = {letter: text.rfind(form) for letter, form in wanted.items() if form in text}
        if places:
            return max(places, key=lambda letter: places[letter])
    return None


def drawn_letter(name: str, options: Mapping[str, str]) -> str:
    """The letter for an answer that says nothing: fixed for a question's id, and evenly spread over the questions."""
    letters = list(options)
    return letters[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(letters)]


def normalise(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a single character with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def parse_open(response: str) -> list[str | float]:
    """What the official parser takes for the answer: the tails after key words, and every number in them."""
    tails = _tails(response)
    numbers = [number for tail in tails for form in _NUMBERS for number in form.findall(tail)]
    return list(dict.fromkeys(value for text in [*tails, *numbers] for value in normalise(text)))


def _tails(response: str) -> list[str]:
    """The shortest piece behind a key word of each line; the whole response where no line has one."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        tail = ""
        for key in keys:
            piece = line.rsplit(key, 1)[1].strip() if key in line else None
            if piece is not None and (not tail or len(piece) < len(tail)):
                tail = piece
        if tail and tail not in _ENDS:
            found.append(tail)
    return found or [response]


def open_right(parsed: Iterable[str | float], gold: str | Sequence[str]) -> bool:
    """Whether a number is a gold number, or a gold text stands in a text."""
    wanted = [value for text in ([gold] if isinstance(gold, str) else gold) for value in normalise(text)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in parsed)


def report(rows: Iterable[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    """InternVL's report of (subject, right) rows: subjects below their domain, then all, accuracies to 3 decimals.

    Domains without questions have 0; rows of a subject that MMMU does not have are left out.
    """
    subjects: dict[str, list[bool]] = {}
    for subject, hit in rows:
        subjects.setdefault(subject, []).append(hit)
    known = {
        subject: (len(hits), sum(hits) / len(hits))
        for domain in DOMAINS.values()
        for subject in domain
        if (hits := subjects.get(subject))
    }
    printed: dict[str, dict[str, Any]] = {}
    for domain, members in DOMAINS.items():
        inside = [known[subject] for subject in members if subject in known]
        printed[f"Overall-{domain}"] = _weighted(inside)
        for subject in members:
            if subject in known:
                count, accuracy = known[subject]
                printed[subject] = {"num": count, "acc": round(accuracy, 3)}
    # The official sum runs over the subjects by name.
    printed["Overall"] = _weighted([known[subject] for subject in sorted(known)])
    return printed


def _weighted(parts: Sequence[tuple[int, float]]) -> dict[str, Any]:
    count = sum(number for number, _ in parts)
    total = sum(number * accuracy for number, accuracy in parts)
    return {"num": count, "acc": round(total / count, 3) if count else 0.0}


def as_choice(options: Mapping[str, str], answer: str) -> tuple[dict[str, str], str]:
    """Options and gold letter as VLMEvalKit scores them: an open question is one without an option A.

    Unusual: a gold text that is one capital letter stays the gold letter, for an open question too.
    """
    gold = answer if len(answer) == 1 and answer in string.ascii_uppercase else "A"
    return (dict(options), gold) if "A" in options else ({**options, "A": answer, "B": OTHER}, gold)
