"""Multiple choice: which option an answer means, and MMBench's circular evaluation.

VLMEvalKit looks for a letter that stands alone, then for the text of exactly one option; what it cannot decide goes to
a judge, or counts as a miss where there is none. Two versions are kept, because published numbers differ by it: that of
October 2024, and the head, which reads a letter only near the end of the answer, ignores option texts in long answers
and understands "answer is b".
Unusual: letters count in capitals only; Chinese full stops and brackets do not part words, so "B。" is not understood;
the head's "answer is" has no word end, so "the answer is dark red" is D. InternVL's own rule takes a first letter for
an option, so "Answer: B" is A, and option texts count with their case.
Source: VLMEvalKit ``matching_util.py`` and ``multiple_choice.py``; InternVL ``evaluate_mmbench.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

REFUSED = "Z"  # the letter for "none of them": the answer refuses, or says so
NAN = "nan"  # what pandas writes for an empty cell
VERSIONS = ("2024-10", "head")
CYCLE = 1_000_000  # MMBench numbers the rotations of a question this far apart
JUDGE_TRIES = 3  # times that VLMEvalKit asks a judge about an answer

_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
_LAST_WORDS = 4
_NOT_A_VALUE = frozenset({"", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "n/a", "NULL", "null", "None"}) | {
    *("nan", "NaN", "-nan", "-NaN", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
}
"""Texts that pandas reads as missing."""


def infer_option(answer: str, options: Mapping[str, str], *, version: str) -> str | None:
    """The letter of the option (letter -> text) that a version of VLMEvalKit reads without asking a judge.

    The answer is not stripped. ``"Z"`` stands for a refusal, ``None`` for an answer that says nothing.
    """
    assert version in VERSIONS, version
    head = version == "head"
    return _letter(answer, options, head) or _by_text(answer, options, head)


def _letter(answer: str, options: Mapping[str, str], head: bool) -> str | None:
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_SEPARATORS).split()
    present = [letter for letter in options if letter in words]
    if len(present) == 1 and (not head or words.index(present[0]) >= len(words) - _LAST_WORDS):
        return present[0]
    if not present and REFUSED in words:
        return REFUSED
    match = _ANSWER_IS.search(answer) if head else None
    return match[1].upper() if match and match[1].upper() in options else None


def _by_text(answer: str, options: Mapping[str, str], head: bool) -> str | None:
    answer = answer.lower()
    if head and len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    found = [letter for letter, text in options.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None


def through_table(text: str) -> str:
    """An answer as VLMEvalKit reads it back from its table: what pandas takes for an empty cell becomes "nan"."""
    return NAN if text in _NOT_A_VALUE else text


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character, which decides the language of VLMEvalKit's sentences."""
    return re.search("[\u4e00-\u9fff]", text) is not None


def internvl_answer(answer: str, options: Mapping[str, str]) -> str | None:
    """What InternVL's scripts write down for an answer: a letter where they find one, else the answer, stripped.

    Returns:
        ``None`` for an empty answer, on which the official scripts stop with an error.
    """
    answer = answer.strip()
    if not answer:
        return None
    if len(answer) == 1:
        return answer
    if answer[0] in options:
        return answer[0]
    return next((letter for letter, text in options.items() if text in answer), answer)


# A judge, where VLMEvalKit would ask one.


def judge_prompt(question: str, options: Mapping[str, str], answer: str) -> str:
    """Asks which option an answer means; in Chinese where the question is. The wording is ours."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    letters = ", ".join(options)
    if is_chinese(question):
        return (
            f"下面是一道单选题、它的选项，以及某人的回答。请判断回答的意思与哪个选项最接近。"
            f"只输出一个字母（{letters}）；如果与所有选项都明显不同，输出 {REFUSED}。\n"
            f"问题：{question}\n选项：\n{listed}\n回答：{answer}\n字母："
        )
    return (
        "Here are a single-choice question, its options and somebody's answer. Decide which option the answer means. "
        f"Reply with one letter ({letters}), or {REFUSED} if it clearly means none of them.\n"
        f"Question: {question}\nOptions:\n{listed}\nAnswer: {answer}\nLetter:"
    )


def ask_option(
    question: str, options: Mapping[str, str], answer: str, *, judge: Callable[[str], str], version: str
) -> str:
    """The letter that a judge gives an undecided answer, asked up to three times.

    VLMEvalKit draws a letter at random when the judge's replies cannot be read either; here that is ``"Z"``.
    JudgeError: the judge could not answer.
    """
    prompt = judge_prompt(question, options, answer)
    for _ in range(JUDGE_TRIES):
        letter = infer_option(judge(prompt), options, version=version)
        if letter:
            return letter
    return REFUSED


# Several right options (GMAI-MMBench; by definition, since no scorer of it is public).


def answered_letters(answer: str, options: Mapping[str, str]) -> list[str]:
    """The option letters that an answer names, each once: "A, C", "A and C" or "AC"."""
    words = re.split(r"[^\w]+", answer)
    if len(words) == 1 and words[0] and set(words[0]) <= set(options):
        words = list(words[0])
    return list(dict.fromkeys(word for word in words if word in options))


def multi_answer(answered: Iterable[str], gold: Iterable[str]) -> tuple[float, float]:
    """Shares of the answered options that are right, and of the right ones that are answered; 0 where there are none.

    An option that is named twice counts once.
    """
    said, wanted = set(answered), set(gold)
    matches = len(said & wanted)
    return (matches / len(said) if said else 0.0, matches / len(wanted) if wanted else 0.0)


# Circular evaluation.


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """One row of a question that is asked again with its options in another order."""

    index: int  # the row's number; rotation k of question n is ``n + k * 1,000,000``
    gold: str  # letter of the right option
    inferred: str | None  # letter read in the answer; ``None`` if undecided

    @property
    def group(self) -> int:
        """Index of the question's first row."""
        return self.index % CYCLE


def circular_hits(rotations: Iterable[Rotation], ask: Callable[[Rotation], str] | None = None) -> dict[int, bool]:
    """Questions that were answered rightly in every rotation.

    Args:
        rotations: rows in any order; rows of a question whose first row is missing are left out, as officially.
        ask: gives the letter for an undecided row; without it such a row is a miss. It is asked only where every
            decided row of the question is right, and no more after a wrong one.

    Returns:
        Index of the first row -> hit, in the order of the first rows.
    """
    groups: dict[int, list[Rotation]] = {}
    first: list[int] = []
    for rotation in rotations:
        groups.setdefault(rotation.group, []).append(rotation)
        if rotation.index == rotation.group:
            first.append(rotation.group)
    return {group: _hit(groups[group], ask) for group in first}


def _hit(group: Iterable[Rotation], ask: Callable[[Rotation], str] | None) -> bool:
    group = list(group)
    if any(row.inferred is not None and row.inferred != row.gold for row in group):
        return False
    undecided = [row for row in group if row.inferred is None]
    return not undecided or (ask is not None and all(ask(row) == row.gold for row in undecided))
