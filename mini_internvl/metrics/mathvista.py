"""MathVista: from a reply to an answer by rules and a judge, normalisation, right or wrong, accuracy by every label.

Two families score it. The official one (MathVista's repository, and InternVL's copy) extracts an answer by rules, asks
a judge where they fail, brings the extraction into the form of the gold answer and compares texts. VLMEvalKit, which
the paper used, first tries rules that know the gold answer ("prefetch") and asks the judge for all others.
Unusual: official multiple choice always lands on a choice, an empty reply included, by edit distance; "0.50" is not
"0.5" there. In VLMEvalKit a number that is wrong, or is 0, goes to the judge although it could be read, and a gold list
or text is compared with the text "None", so that it is never right.
Source: ``extract_answer.py`` and ``calculate_score.py`` of MathVista and InternVL; VLMEvalKit ``mathvista.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from mini_internvl.metrics.edit_distance import edit_distance
from mini_internvl.metrics.options import infer_option

Version = Literal["2024-10", "head"]
Source = Literal["official", "internvl"]
Ask = Callable[[float], str]  # asks the judge for the answer in a reply, at a temperature; gives what the judge writes

LABELS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
"""What the official report groups by."""
TRIES = 5  # times that VLMEvalKit asks its judge, each 0.5 warmer than the last
FAILED = "Failed to obtain answer via API."  # what VLMEvalKit's judges write when they could not answer
_READ: Mapping[str, Callable[[Any], object]] = {"integer": int, "float": float}
_QUICK = {
    "official": re.compile(r'The answer is "(.*)"\.'),
    "internvl": re.compile(r"(?:Final answer:|Answer:)\s*(.*)", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the scorers know of a question."""

    question_type: str  # ``multi_choice`` or ``free_form``
    answer_type: str  # ``integer``, ``float``, ``list`` or ``text``
    answer: str  # the gold answer; for multiple choice the text of a choice
    choices: Sequence[str] = ()  # texts of the choices, empty for free form
    precision: float | None = None  # decimals of a float answer

    @property
    def options(self) -> dict[str, str]:
        """Letter -> choice."""
        return {chr(ord("A") + place): choice for place, choice in enumerate(self.choices)}

    @property
    def letter(self) -> str | None:
        """Letter of the gold choice, ``None`` if the gold answer is no choice."""
        return next((letter for letter, choice in self.options.items() if choice == self.answer), None)


# The official scorer and InternVL's copy.


def rule_extraction(problem: Problem, response: str) -> str | None:
    """The answer that the official rules read in a reply; ``None`` leaves it to the judge."""
    if response == "" or (problem.question_type == "multi_choice" and response in problem.choices):
        return response
    if problem.answer_type in _READ:
        try:
            return str(_READ[problem.answer_type](response))
        except ValueError:
            return None
    return None


def quick_extraction(problem: Problem, response: str, source: Source) -> str | None:
    """As :func:`rule_extraction`, then by the form of the reply; only the official one may leave it to the judge."""
    found = rule_extraction(problem, response)
    if found is not None:
        return found
    match = _QUICK[source].search(response)
    if source == "internvl":
        return match[1].strip() if match else response
    return match[1] if match else None


def normalise(problem: Problem, extraction: str, source: Source = "internvl") -> str | None:
    """The extraction in the form of the gold answer; ``None`` when it has none.

    A free-form text answer stays as it is for InternVL; the official script stops with an error there, which is
    ``None`` here.
    """
    if problem.question_type == "multi_choice":
        return _choice(problem, extraction.strip())
    try:
        if problem.answer_type == "integer":
            return str(int(float(extraction)))
        if problem.answer_type == "float":
            return None if problem.precision is None else str(round(float(extraction), int(problem.precision)))
    except (ValueError, OverflowError):
        return None
    return extraction if problem.answer_type == "list" or source == "internvl" else None


def _choice(problem: Problem, extraction: str) -> str | None:
    """A letter's choice, or the nearest one, the first on a tie."""
    letter = re.search(r"\(([a-zA-Z])\)", extraction)
    if letter:
        extraction = letter[1].upper()
    if extraction in problem.options:
        return problem.options[extraction]
    return min(problem.choices, key=lambda choice: edit_distance(extraction, choice), default=None)


def extraction_right(problem: Problem, extraction: str, source: Source = "internvl") -> bool:
    """Whether an extraction, brought into form, is the gold text."""
    return normalise(problem, extraction, source) == problem.answer


def official_scores(rows: Sequence[tuple[bool, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The official report of (right, labels) rows.

    Returns:
        ``average`` and, for each of :data:`LABELS`, its values from best to worst: accuracy in per cent as the text
        that the report prints, number right, number in all. A question counts once for each of its skills.
    """
    right = sum(ok for ok, _ in rows)
    average = str(round(right / len(rows) * 100, 2)) if rows else "0.0"
    scores: dict[str, dict[str, Any]] = {"average": {"accuracy": average, "correct": right, "total": len(rows)}}
    for label in LABELS:
        groups: dict[str, list[bool]] = {}
        for ok, labels in rows:
            for value in label_values(labels, label):
                groups.setdefault(value, []).append(ok)
        table = {
            value: {"accuracy": f"{sum(group) / len(group) * 100:.2f}", "correct": sum(group), "total": len(group)}
            for value, group in groups.items()
        }
        scores[label] = dict(sorted(table.items(), key=lambda entry: float(str(entry[1]["accuracy"])), reverse=True))
    return scores


def label_values(labels: Mapping[str, Any], label: str) -> list[str]:
    """A question's values of a label: its skills, or the one value; none where the label is missing."""
    value = labels.get(label)
    if value is None:
        return []
    return list(dict.fromkeys(value)) if isinstance(value, list | tuple) else [value]


# VLMEvalKit.


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What VLMEvalKit makes of one reply."""

    prefetch: str | int | float | bool  # what the rules read; ``False`` for nothing
    result: str | int | float  # what is scored: the prefetched value, or the judge's reply
    calls: int  # how often the judge was asked
    hit: bool
    undecided: bool = False  # whether only a judge could tell, and there was none; it is no hit then

    @property
    def prefetched(self) -> bool:
        """Whether the judge was not needed. A prefetched 0 counts as nothing."""
        return bool(self.prefetch)


def prefetch(problem: Problem, response: str, version: Version = "2024-10") -> str | int | float | bool:
    """The option that the rules infer, right or wrong; or the number, if it is the gold one; ``False`` for neither."""
    if problem.question_type == "multi_choice":
        return infer_option(response, problem.options, version=version) or False
    read = _read_free(problem, response)
    return cast("int | float", read[0]) if read[0] == read[1] else False


def vlmevalkit(problem: Problem, response: str, ask: Ask | None, version: Version = "2024-10") -> Verdict:
    """Prefetch, ask the judge if that gave nothing, and score. What ``ask`` raises passes through.

    Without a judge an empty reply and a number of the asked kind stand for themselves, and lists and texts, which are
    never right, need none; other replies are undecided.
    """
    found = prefetch(problem, response, version)
    if found:
        return Verdict(prefetch=found, result=found, calls=0, hit=result_right(problem, found, version))
    if ask is None:
        free = problem.question_type != "multi_choice"
        plain = problem.answer_type in _READ and rule_extraction(problem, response) is None
        open_ = response != "" and (plain or not free)
        hit = free and not open_ and result_right(problem, response, version)
        return Verdict(prefetch=found, result=response, calls=0, hit=hit, undecided=open_)
    result = ""
    for calls in range(1, TRIES + 1):
        reply = ask((calls - 1) * 0.5)
        if FAILED not in reply:
            result = reply
            break
    return Verdict(prefetch=found, result=result, calls=calls, hit=result_right(problem, result, version))


def result_right(problem: Problem, result: str | int | float, version: Version = "2024-10") -> bool:
    """Whether a prefetched value or a judge's reply is right: equal letters, integers, or floats without rounding."""
    if problem.question_type == "multi_choice":
        letter = infer_option(str(result), problem.options, version=version)
        return letter is not None and letter == problem.letter
    read = _read_free(problem, result)
    return bool(read[0] == read[1])


def _read_free(problem: Problem, result: str | int | float) -> tuple[object, object]:
    """A free-form result and the gold answer, ready to compare: what could not be read stays ``None`` or text."""
    read = _READ.get(problem.answer_type)
    if read is None:
        return "None", problem.answer  # the official code converts the wrong variable
    value: object = None
    try:
        value = read(result)
        return value, read(problem.answer)
    except (ValueError, OverflowError):
        return value, problem.answer


def vlmevalkit_table(rows: Iterable[tuple[Verdict, str, Sequence[str]]]) -> list[dict[str, Any]]:
    """VLMEvalKit's table of (verdict, task, skills) rows.

    Returns:
        A row for Overall and for each task and skill in their order of appearance (a question's skills before its
        task): ``tot``, ``prefetch`` and ``hit`` as counts, ``prefetch_rate`` and ``acc`` in per cent.
    """
    counts: dict[str, list[int]] = {}
    for verdict, task, skills in rows:
        for name in ("Overall", *skills, task):
            count = counts.setdefault(name, [0, 0, 0])
            for place, one in enumerate((True, verdict.prefetched, verdict.hit)):
                count[place] += one
    return [
        {
            "Task&Skill": name,
            "tot": total,
            "prefetch": fetched,
            "hit": hit,
            "prefetch_rate": fetched / total * 100,
            "acc": hit / total * 100,
        }
        for name, (total, fetched, hit) in counts.items()
    ]
