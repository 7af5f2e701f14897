"""MathVista (testmini): mathematics in metrics, charts, tables and photographs; answers are extracted, then compared.

The paper's metrics come from VLMEvalKit of October 2024: rules first, a judge for what they leave, no rounding. The
official scorer and InternVL's copy ask a judge less often; InternVL's quick form needs none. Rules, traps and sources:
:mod:`mini_internvl.metrics.mathvista`.
Without a judge a reply that is a number of the asked kind is its own extraction. What is left open then counts as wrong
for the time being, ``Score.partial`` says so, and the accuracy is a lower bound.
Unusual: the judge's prompt is ours, with our own examples, and stays as it is so that kept replies stay valid; the
official few-shot text is not copied.

Files: VLMEvalKit's ``MathVista_MINI.tsv``, or the official ``testmini.json`` (or ``annot_testmini.json``) with its
``query`` texts and images. The prompt is the data's own query, which holds hint, question and choices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._example import Example, ExampleImage
from mini_internvl.benchmarks._files import (
    Faults,
    chosen,
    image_paths,
    locate,
    read_json,
    read_tsv,
    tsv_images,
)
from mini_internvl.benchmarks._tally import Tally, answers
from mini_internvl.data import DataError
from mini_internvl.metrics import mathvista as metric
from mini_internvl.metrics.list_text import read_list
from mini_internvl.records import Item, Prediction, Score

TITLE = "MathVista"
SPLITS = ("testmini",)
PROTOCOLS = {
    "paper": "VLMEvalKit of October 2024: rules that know the gold answer, then a judge; no rounding.",
    "vlmevalkit-head": "VLMEvalKit of today: as the paper's, with stricter option inference.",
    "official": "MathVista's scripts: rules, then a judge; rounded and compared as text.",
    "official-quick": 'MathVista\'s scripts, which first look for: The answer is "...".',
    "internvl": "InternVL's copy of the scripts: as official, free text allowed; answers up to 4096 tokens.",
    "internvl-quick": "InternVL's copy without a judge: what follows Final answer: or Answer:, else the whole reply.",
}
PRIMARY_METRIC = "accuracy"
LOWER_IS_BETTER: frozenset[str] = frozenset()
TABLE = "MathVista_MINI.tsv"
OFFICIAL = ("testmini.json", "annot_testmini.json")
COLUMNS = ("index", "image", "question", "answer", "question_type", "answer_type", "choices", "task", "skills")
FIELDS = ("question_type", "answer_type", "answer", "query", "image")
KINDS = ("multi_choice", "free_form")
EXTRACTION_PROMPT = """A model answered a question about a picture. Find the final answer in its reply and copy it.
For a question with choices write the letter of the choice it means, for a number the bare number without unit or \
words, for a list a Python list. Add nothing, and do not answer the question yourself.

Question: How many triangles are drawn?
Reply: I count three on the left and two on the right, which makes 5 triangles.
Extracted answer: 5

Question: How long is the rope in metres? (one decimal place)
Reply: Half of 4.6 m is 2.3 m, so the rope is 2.3 metres long.
Extracted answer: 2.3

Question: Which two months had the same rainfall, by number?
Reply: The bars of March and August are equally high.
Extracted answer: [3, 8]

Question: Which line is steeper? Choices: (A) red (B) green (C) both alike
Reply: The green line climbs faster than the red one.
Extracted answer: B

{query}
Reply: {reply}
Extracted answer: """
"""Ours; a change makes kept replies of judges worthless."""


def items(root: str | Path, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
    """One item a question, with VLMEvalKit's index or the official pid; DataError names what is wrong with the files.

    The VLMEvalKit protocols read the table where both files are there, the others the official file.
    """
    chosen("split", split, SPLITS)
    kind = chosen("protocol", protocol, PROTOCOLS)
    names = [TABLE, *OFFICIAL] if _VERSIONS.get(kind) else [*OFFICIAL, TABLE]
    path = _first(root, names)
    for name, image, query, reference in _table(path) if path.suffix == ".tsv" else _official(path):
        yield Item(
            id=name,
            messages=[
                {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": query}]}
            ],
            reference=reference | {"query": query},
            max_tiles=6,
            max_new_tokens=4096 if kind.startswith("internvl") else 1024,
        )


def _first(root: str | Path, names: list[str]) -> Path:
    for name in names:
        try:
            return locate(root, "mathvista", name)[0]
        except DataError:
            continue
    return locate(root, "mathvista", TABLE)[0]


Row = tuple[str, Any, str, dict[str, Any]]
"""Id, image, query, reference."""


def _table(path: Path) -> Iterator[Row]:
    rows = read_tsv(path, COLUMNS)
    images = tsv_images(path, rows)
    faults = Faults(path)
    references = []
    for number, row in enumerate(rows, 1):
        choices = _list(row["choices"])
        reference = {**row, "choices": choices, "precision": row.get("precision") or None}
        reference["skills"] = _list(row["skills"]) or ([row["skills"]] if row["skills"] else [])
        option = row.get("answer_option", "")
        if option and len(option) == 1 and 0 <= ord(option) - ord("A") < len(choices):
            reference["answer"] = choices[ord(option) - ord("A")]  # the cell "answer" may write it otherwise
        references.append(_truth(reference, number, faults))
    faults.check()
    for row, imaged, reference in zip(rows, images, references, strict=True):
        yield row["index"], imaged[0], row["question"], reference


def _list(cell: str) -> list[str]:
    """The texts of a Python-style list; none where the cell is no list."""
    return [str(entry) for entry in read_list(cell) or ()]


def _official(path: Path) -> Iterator[Row]:
    content = read_json(path)
    problems = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(problems, list) or not all(isinstance(problem, dict) for problem in problems):
        raise DataError(f"{path} must hold the problems by pid, or a list of them; get the file again from its source")
    faults = Faults(path)
    references = []
    for number, problem in enumerate(problems, 1):
        missing = [field for field in FIELDS if not isinstance(problem.get(field), str)]
        if missing:
            faults.add(number, f"no {', '.join(missing)}")
        labels = problem.get("metadata") if isinstance(problem.get("metadata"), dict) else {}
        references.append(_truth({**labels, **problem, "choices": problem.get("choices") or []}, number, faults))
    faults.check("take the file with the texts under query, as on the Hugging Face Hub")
    folders = (path.parent, path.parent / "images", path.parent.parent)
    places = image_paths(path, [problem["image"] for problem in problems], *folders)
    names = [str(problem.get("pid", number)) for number, problem in enumerate(problems, 1)]
    for name, problem, place, reference in zip(names, problems, places, references, strict=True):
        yield name, str(place), problem["query"], reference


def _truth(row: Mapping[str, Any], number: int, faults: Faults) -> dict[str, Any]:
    """What the scorers read of a row, checked."""
    kind, choices = row.get("question_type"), [str(choice) for choice in row["choices"]]
    precision = None
    if kind not in KINDS:
        faults.add(number, f"question_type is {kind!r}, not one of {', '.join(KINDS)}")
    elif kind == "multi_choice" and not choices:
        faults.add(number, "no choices")
    try:
        precision = None if row.get("precision") is None else int(float(row["precision"]))
    except (ValueError, TypeError, OverflowError):
        faults.add(number, f"precision is {row['precision']!r}, not a number")
    labels = {label: row[label] for label in metric.LABELS if row.get(label)}
    known = {"question_type": kind, "answer_type": row.get("answer_type"), "answer": row.get("answer")}
    return {**known, "choices": choices, "precision": precision, "labels": labels}


_VERSIONS: dict[str, metric.Version] = {"paper": "2024-10", "vlmevalkit-head": "head"}
"""Protocol -> VLMEvalKit's version, where it is one of its own."""


def _problem(item: Item) -> metric.Problem:
    reference = item.reference
    return metric.Problem(
        question_type=reference["question_type"],
        answer_type=reference["answer_type"],
        answer=reference["answer"],
        choices=reference["choices"],
        precision=reference["precision"],
    )


@dataclass(frozen=True, kw_only=True)
class _Decision:
    right: bool
    undecided: bool
    verdict: metric.Verdict | None = None
    """Of the VLMEvalKit protocols."""


def _decide(item: Item, text: str, protocol: str, judge: Callable[..., str] | None) -> _Decision:
    problem, version = _problem(item), _VERSIONS.get(protocol)
    ask = functools.partial(_ask, judge, item.reference["query"], text) if judge else None
    if version:
        verdict = metric.vlmevalkit(problem, text, ask, version)
        return _Decision(right=verdict.hit, undecided=verdict.undecided, verdict=verdict)
    source: metric.Source = "internvl" if protocol.startswith("internvl") else "official"
    if protocol.endswith("quick"):
        found = metric.quick_extraction(problem, text, source)
    else:
        found = metric.rule_extraction(problem, text)
    if found is None and ask:
        found = ask(0.0)
    return _Decision(
        right=found is not None and metric.extraction_right(problem, found, source), undecided=found is None
    )


def _ask(judge: Callable[..., str], query: str, reply: str, temperature: float) -> str:
    return judge(EXTRACTION_PROMPT.format(query=query, reply=reply), temperature=temperature).strip()


def score(
    items: Iterable[Item],
    predictions: Iterable[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """``accuracy`` and the accuracy by every label of the data (``task/...``, ``skills/...``, ...), in per cent.

    The VLMEvalKit protocols add ``prefetch_rate``, the share that needs no judge, and their table as
    ``notes["table"]``; the others have their report as ``notes["scores"]``. ``notes["undecided"]`` counts replies that
    wait for a judge.
    """
    kind = chosen("protocol", protocol, PROTOCOLS)
    asked = list(items)
    texts = answers(asked, predictions)
    tally = Tally()
    table, report = [], []
    undecided = 0
    for item in asked:
        decision, labels = _decide(item, texts[item.id], kind, judge), item.reference["labels"]
        undecided += decision.undecided
        tally.add(decision.right, "accuracy", *_tally(labels))
        if decision.verdict:
            tally.add(decision.verdict.prefetched, "prefetch_rate")
            table.append((decision.verdict, labels.get("task", ""), labels.get("skills", [])))
        else:
            report.append((decision.right, labels))
    notes: dict[str, Any] = {"undecided": undecided}
    notes |= (
        {"table": metric.vlmevalkit_table(table)} if _VERSIONS.get(kind) else {"scores": metric.official_scores(report)}
    )
    partial = f"{undecided} of {len(asked)} replies need a judge and count as wrong: the accuracy is a lower bound"
    return tally.score("mathvista", items=len(asked), notes=notes, partial=partial if undecided else "")


def _tally(labels: Mapping[str, Any]) -> list[str]:
    return [f"{label}/{value}" for label in metric.LABELS for value in metric.label_values(labels, label)]


def right(item: Item, text: str) -> bool:
    """Whether a reply is right by the paper's rules without a judge."""
    return _decide(item, text, "paper", None).right


def _row(index: int, kind: str, answer: str, reply: str, **more: Any) -> dict[str, Any]:
    """A row of VLMEvalKit's table, for the example; ``reply`` is the kind of answer."""
    choices = more.get("choices", [])
    option = chr(ord("A") + choices.index(answer)) if answer in choices else ""
    offered = "\nChoices:\n" + "\n".join(f"({chr(65 + n)}) {choice}" for n, choice in enumerate(choices))
    query = f"Hint: Please answer the question.\nQuestion: Question {index}?{offered if choices else ''}"
    named = {
        "index": index,
        "image": ExampleImage(seed=index),
        "question": query,
        "answer": answer,
        "answer_option": option,
    }
    row = {"choices": str(choices), "unit": "", "precision": more.get("precision", ""), "pid": index + 1}
    labels = {"language": "english", "source": "IQTest", "category": "general-vqa", "grade": "high school"}
    labels |= {"context": "bar chart", "task": more.get("task", "math word problem"), "split": "testmini"}
    skills = str(more.get("skills", ["arithmetic reasoning"]))
    return {**named, **row, "question_type": kind, "answer_type": reply, **labels, "skills": skills}


_CHOICES = ["12 cm", "18 cm", "24 cm"]

EXAMPLE = Example(
    files={
        TABLE: [
            _row(0, "free_form", "14", "integer", skills=["arithmetic reasoning", "logical reasoning"]),
            _row(1, "free_form", "0.5", "float", precision=1.0, task="figure question answering"),
            _row(2, "multi_choice", "24 cm", "text", choices=_CHOICES, task="geometry problem solving"),
            _row(3, "multi_choice", "三角形", "text", choices=["三角形", "圆"], skills=["geometry reasoning"]),
            _row(4, "multi_choice", "8", "integer", choices=["3", "8"], task="textbook question answering"),
            _row(5, "free_form", "1200", "integer", skills=["statistical reasoning"]),
        ]
    },
    good=["14", "0.50", "(C) 24 cm", "三角形", "B", "1200"],
    bad=["15", "about half", "A", "", "3", "1,200"],
    judge={
        "Reply: 15\n": "15",
        "Reply: about half\n": "half",
        "Reply: \n": "none",
        "Reply: 1,200\n": "1,200",
        "Reply: (C) 24 cm\n": "C",
        "Reply: A\n": "A",
        "Reply: B\n": "B",
    },
)
