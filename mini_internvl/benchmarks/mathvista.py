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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import _choices, _vqa
from mini_internvl.benchmarks._example import ExampleImage, WorkedExample
from mini_internvl.benchmarks._files import Faults, chosen, image_paths, locate, read_json, read_tsv
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, with_answers
from mini_internvl.data import DataError
from mini_internvl.metrics import mathvista as metric
from mini_internvl.metrics.list_text import read_list
from mini_internvl.records import Item, Score

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
TABLE = "MathVista_MINI.tsv"
OFFICIAL = ("testmini.json", "annot_testmini.json")
COLUMNS = ("index", "image", "question", "answer", "question_type", "answer_type", "choices", "task", "skills")
FIELDS = ("question_type", "answer_type", "answer", "query", "image")
QUESTION_TYPES = ("multi_choice", "free_form")
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
    path = locate(root, "mathvista", [TABLE, *OFFICIAL] if _choices.PAPER_VERSIONS.get(kind) else [*OFFICIAL, TABLE])
    tokens = 4096 if kind.startswith("internvl") else 1024
    for name, image, query, reference in _table(path) if path.suffix == ".tsv" else _official(path):
        yield _vqa.ask(name, [image], query, reference | {"query": query}, max_tiles=6, max_new_tokens=tokens)


_Row = tuple[str, Any, str, dict[str, Any]]  # id, image, query, reference


def _table(path: Path) -> Iterator[_Row]:
    for row in read_tsv(path, COLUMNS, check=lambda row: _wrong(_table_labels(row))):
        yield row["index"], row["image"][0], row["question"], _reference(_table_labels(row))


def _table_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table as the official file has it."""
    choices = _list(row["choices"])
    skills = _list(row["skills"]) or ([row["skills"]] if row["skills"] else [])
    problem = {**row, "choices": choices, "skills": skills, "precision": row.get("precision") or None}
    option = row.get("answer_option", "")
    if option and len(option) == 1 and 0 <= ord(option) - ord("A") < len(choices):
        problem["answer"] = choices[ord(option) - ord("A")]  # the cell "answer" may write it otherwise
    return problem


def _list(cell: str) -> list[str]:
    """The texts of a Python-style list; none where the cell is no list."""
    return [str(entry) for entry in read_list(cell) or ()]


def _official(path: Path) -> Iterator[_Row]:
    content = read_json(path)
    problems = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(problems, list) or not all(isinstance(problem, dict) for problem in problems):
        raise DataError(f"{path} must hold the problems by pid, or a list of them; get the file again from its source")
    faults = Faults(path)
    labelled = []
    for number, problem in enumerate(problems, 1):
        missing = [field for field in FIELDS if not isinstance(problem.get(field), str)]
        labels = problem.get("metadata") if isinstance(problem.get("metadata"), dict) else {}
        labelled.append({**labels, **problem, "choices": problem.get("choices") or []})
        faults.add(number, *[f"no {', '.join(missing)}"] * bool(missing), *_wrong(labelled[-1]))
    faults.check("take the file with the texts under query, as on the Hugging Face Hub")
    folders = (path.parent, path.parent / "images", path.parent.parent)
    images = image_paths(path, [row["image"] for row in problems], *folders)
    for number, (row, image) in enumerate(zip(labelled, images, strict=True), 1):
        yield str(row.get("pid", number)), image, row["query"], _reference(row)


def _wrong(row: Mapping[str, Any]) -> Iterable[str]:
    """What the scorers could not read."""
    kind = row.get("question_type")
    if kind not in QUESTION_TYPES:
        yield f"question_type is {kind!r}, not one of {', '.join(QUESTION_TYPES)}"
    elif kind == "multi_choice" and not row["choices"]:
        yield "no choices"
    try:
        _precision(row)
    except (ValueError, TypeError, OverflowError):
        yield f"precision is {row['precision']!r}, not a number"


def _precision(row: Mapping[str, Any]) -> int | None:
    return None if row.get("precision") is None else int(float(row["precision"]))


def _reference(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the scorers read of a row."""
    return {
        **{name: row.get(name) for name in ("question_type", "answer_type", "answer")},
        "choices": [str(choice) for choice in row["choices"]],
        "precision": _precision(row),
        "labels": {label: row[label] for label in metric.LABELS if row.get(label)},
    }


def _decide(item: Item, text: str, protocol: str, judge: Judge | None) -> metric.Verdict:
    names = ("question_type", "answer_type", "answer", "choices", "precision")
    problem = metric.Problem(**{name: item.reference[name] for name in names})
    ask = functools.partial(_ask, judge, item.reference["query"], text) if judge else None
    if protocol in _choices.PAPER_VERSIONS:
        return metric.vlmevalkit(problem, text, ask, _choices.PAPER_VERSIONS[protocol])
    source: metric.Source = "internvl" if protocol.startswith("internvl") else "official"
    if protocol.endswith("quick"):
        found = metric.quick_extraction(problem, text, source)
    else:
        found = metric.rule_extraction(problem, text)
    if found is None and ask:
        found = ask(0.0)
    hit = found is not None and metric.extraction_right(problem, found, source)
    return metric.Verdict(prefetch=False, result=found or "", calls=0, hit=hit, undecided=found is None)


def _ask(judge: Judge, query: str, reply: str, temperature: float) -> str:
    return judge(EXTRACTION_PROMPT.format(query=query, reply=reply), temperature=temperature).strip()


@with_answers(PROTOCOLS)
def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
    """``accuracy`` and the accuracy by every label of the data (``task/...``, ``skills/...``, ...), in per cent.

    The VLMEvalKit protocols add ``prefetch_rate``, the share that needs no judge, and their table as
    ``notes["table"]``; the others have their report as ``notes["scores"]``. ``notes["undecided"]`` counts replies that
    wait for a judge.
    """
    tally = Tally()
    rows = []
    for item, text in asked:
        verdict, labels = _decide(item, text, protocol, judge), item.reference["labels"]
        metrics = [f"{label}/{value}" for label in metric.LABELS for value in metric.label_values(labels, label)]
        tally.add(verdict.hit, "accuracy", *metrics)
        if protocol in _choices.PAPER_VERSIONS:
            tally.add(verdict.prefetched, "prefetch_rate")
        rows.append((verdict, labels))
    undecided = sum(verdict.undecided for verdict, _ in rows)
    notes: dict[str, Any] = {"undecided": undecided}
    if protocol in _choices.PAPER_VERSIONS:
        notes["table"] = metric.vlmevalkit_table(
            (v, labels.get("task", ""), labels.get("skills", [])) for v, labels in rows
        )
    else:
        notes["scores"] = metric.official_scores([(verdict.hit, labels) for verdict, labels in rows])
    partial = _choices.lower_bound(undecided, len(asked), "replies")
    return tally.score("mathvista", items=len(asked), notes=notes, partial=partial)


def right(item: Item, text: str, protocol: str = "paper") -> bool:
    """Whether a reply is right by a protocol's rules without a judge."""
    return _decide(item, text, protocol, None).hit


def _row(index: int, answer: str, reply: str, choices: str = "", **more: Any) -> dict[str, Any]:
    """A row of VLMEvalKit's table, for the example; ``reply`` is the kind of answer, choices have bars between."""
    listed = choices.split("|") if choices else []
    offered = "".join(f"\n({chr(65 + n)}) {choice}" for n, choice in enumerate(listed))
    return {
        "index": index,
        "image": ExampleImage(seed=index),
        "question": f"Hint: Please answer the question.\nQuestion: Question {index}?"
        + (f"\nChoices:{offered}" if choices else ""),
        "answer": answer,
        "answer_option": chr(ord("A") + listed.index(answer)) if answer in listed else "",
        "choices": str(listed),
        "precision": "",
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": reply,
        "language": "english",
        "source": "IQTest",
        "category": "general-vqa",
        "task": "math word problem",
        "skills": str(["arithmetic reasoning"]),
    } | more


EXAMPLE = WorkedExample(
    files={
        TABLE: [
            _row(0, "14", "integer", skills=str(["arithmetic reasoning", "logical reasoning"])),
            _row(1, "0.5", "float", precision=1.0, task="figure question answering"),
            _row(2, "24 cm", "text", "12 cm|18 cm|24 cm", task="geometry problem solving"),
            _row(3, "三角形", "text", "三角形|圆", skills=str(["geometry reasoning"])),
            _row(4, "8", "integer", "3|8", task="textbook question answering"),
            _row(5, "1200", "integer", skills=str(["statistical reasoning"])),
        ]
    },
    good=["14", "0.50", "(C) 24 cm", "三角形", "B", "1200"],
    bad=["15", "about half", "A", "", "3", "1,200"],
    judge={
        f"Reply: {reply}\n": found
        for reply, found in (
            ("15", "15"),
            ("about half", "half"),
            ("", "none"),
            ("1,200", "1,200"),
            ("(C) 24 cm", "C"),
            ("A", "A"),
            ("B", "B"),
        )
    },
)
