"""Ask a benchmark's items and score the answers.

Items of similar cost share a batch, so little is padded; results come back in the items' own order. Answers are
appended to a file as they come, keyed by the question, so that an evaluation that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_internvl.engine import Engine, GenerationConfig
from mini_internvl.records import Item, Prediction, Score


def predict(
    engine: Engine,
    items: Sequence[Item],
    *,
    batch_size: int = 16,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Greedy answers to the items.

    Args:
        engine: the model that answers.
        items: questions; ids are unique.
        batch_size: questions answered together.
        keep: jsonl file of answers; those already in it are not asked again. It belongs to one model: the caller names
            it after the model.
        progress: called with (answered, all).

    Returns:
        One prediction per item, in order.
    """
    known = _kept(keep)
    waiting = [item for item in items if _key(item) not in known]
    waiting.sort(key=lambda item: (*_limits(item), _pictures(item), len(_question(item))))
    done = len(items) - len(waiting)
    groups = (list(group) for _, group in itertools.groupby(waiting, key=_limits))
    for batch in (group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)):
        limits = GenerationConfig(max_new_tokens=batch[0].max_new_tokens)
        replies = engine.chat_batch([item.messages for item in batch], limits, max_tiles=batch[0].max_tiles)
        for item, reply in zip(batch, replies, strict=True):
            known[_key(item)] = Prediction(item_id=item.id, text=reply.text, seconds=reply.seconds)
        _append(keep, [(item, known[_key(item)]) for item in batch])
        done += len(batch)
        if progress:
            progress(done, len(items))
    return [known[_key(item)] for item in items]


def evaluate(
    engine: Engine,
    benchmark: ModuleType,
    items: Sequence[Item],
    *,
    batch_size: int = 16,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Score, list[Prediction]]:
    """Ask and score one benchmark; returns the score and the answers it comes from."""
    predictions = predict(engine, items, batch_size=batch_size, keep=keep, progress=progress)
    return benchmark.score(items, predictions), predictions


def _question(item: Item) -> str:
    """All text of the item's messages."""
    texts = []
    for message in item.messages:
        content = message["content"]
        parts: Sequence[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts)


def _limits(item: Item) -> tuple[int, int]:
    """Items of a batch have these in common, so that no answer depends on its neighbours."""
    return item.max_new_tokens, item.max_tiles or 0


def _pictures(item: Item) -> int:
    contents = [message["content"] for message in item.messages]
    return sum(part["type"] != "text" for content in contents if not isinstance(content, str) for part in content)


def _key(item: Item) -> str:
    """Names the question: id, text and limits."""
    text = f"{item.id}\n{_question(item)}\n{item.max_tiles}\n{item.max_new_tokens}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _kept(path: Path | None) -> dict[str, Prediction]:
    """Answers of an earlier run; a line torn by a kill is left out."""
    if path is None or not path.exists():
        return {}
    kept = {}
    # A line may be torn inside a character; and no splitlines, since an answer may hold U+2028.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        kept[row["key"]] = Prediction(item_id=row["id"], text=row["answer"], seconds=row["seconds"])
    return kept


def _append(path: Path | None, rows: Sequence[tuple[Item, Prediction]]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as end:
            end.seek(-1, os.SEEK_END)
            if end.read() != b"\n":  # torn by a kill
                end.write(b"\n")
    with path.open("a", encoding="utf-8") as file:
        for item, prediction in rows:
            row = {"key": _key(item), "id": item.id, "question": _question(item), "answer": prediction.text}
            file.write(json.dumps({**row, "seconds": round(prediction.seconds, 4)}, ensure_ascii=False) + "\n")
