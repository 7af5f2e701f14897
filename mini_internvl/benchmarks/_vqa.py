"""Question answering over images: items, prompts, and InternVL's jsonl files of questions with gold answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import image_paths, read_rows
from mini_internvl.records import Item

SENTENCE = "Answer the question using a single word or phrase."
NEW_TOKENS = 100  # answer limit of InternVL's script for short answers
VLMEVALKIT_NEW_TOKENS = 1024  # answer limit of VLMEvalKit for every benchmark
PUBLISHED = re.compile(r"(\./)?data/[^/]+/")  # how InternVL's files begin an image's name


def ask(
    name: str,
    images: Sequence[Any],
    text: str,
    reference: Mapping[str, Any],
    *,
    max_tiles: int,
    max_new_tokens: int,
) -> Item:
    """One item: the images (sources, or image parts with more settings), then the text."""
    parts: list[Any] = [image if isinstance(image, dict) else {"type": "image", "image": image} for image in images]
    return Item(
        id=name,
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        reference=reference,
        max_tiles=max_tiles,
        max_new_tokens=max_new_tokens,
    )


def short_question(question: str, *, vlmevalkit: bool) -> str:
    """The question with InternVL's instruction after a space, or as VLMEvalKit writes it, after a line break."""
    return f"{question}\n{SENTENCE}" if vlmevalkit else f"{question} {SENTENCE}"


def read_questions(
    path: Path,
    *,
    name: str = "question_id",
    image: str = "image",
    answers: str | None = "answer",
    key: str | None = None,
    texts: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rows with a question, the name of an image, an id and gold answers.

    Args:
        path: the file.
        name: field of the id.
        image: field of the image's name.
        answers: field of the gold answers, a text or a list of texts; ``None`` where there are none.
        key: where the rows stand in a JSON file.
        texts: further fields that hold texts.

    Raises:
        DataError: lists the rows where a field is missing or of another kind.
    """

    def check(row: dict[str, Any]) -> Iterable[str]:
        if answers and not are_texts(gold_list(row[answers])):
            yield f"{answers} is neither a text nor a list of texts"

    return read_rows(
        path, [answers] if answers else [], key=key, texts=[image, "question", *texts], names=[name], check=check
    )


def gold_list(golds: Any) -> Any:
    """A text as a list of one."""
    return [golds] if isinstance(golds, str) else golds


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def question_images(path: Path, names: Sequence[str], *folders: Path) -> list[str]:
    """As :func:`image_paths`, in the file's own folder first and at last in the one above InternVL's ``data/NAME``.

    A name is tried as it stands, without the leading ``data/NAME/``, then as a bare name.
    """

    def ways(name: str) -> list[str]:
        return [name, PUBLISHED.sub("", name, count=1) if PUBLISHED.match(name) else name, Path(name).name]

    return image_paths(path, names, path.parent, *folders, path.parent.parent.parent, ways=ways)


def unique(names: Iterable[object]) -> list[str]:
    """Names as texts; one that comes again gets a number, such as ``7#2``."""
    seen: Counter[str] = Counter()
    found = []
    for name in map(str, names):
        seen[name] += 1
        found.append(f"{name}#{seen[name]}" if seen[name] > 1 else name)
    return found
