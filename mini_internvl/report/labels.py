"""The categories of an item, from its reference: values that metrics are named after or under a usual key."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

Label = tuple[str, str]  # key and value, for instance ("category", "maps")
NEVER = ("answer", "answers", "question", "query", "options", "choices", "hint", "id")  # keys that hold no label
USUAL = ("category", "kind", "type", "task", "part", "subject", "subfield", "topic", "question type", "modality")
"""Keys whose values are labels, whatever the metrics are called."""
MAX_LABEL_CHARS = 80


def labels(reference: Any, metrics: Collection[str]) -> list[Label]:
    """The labels of an item, by the names of the benchmark's metrics."""
    wanted = parts(frozenset(metrics))
    found = [(key, text) for key, text in _pairs(reference) if plain(text) in wanted or plain(key) in USUAL]
    return list(dict.fromkeys(found))


@functools.lru_cache(maxsize=64)
def parts(metrics: frozenset[str]) -> frozenset[str]:
    """What the metrics' names consist of."""
    return frozenset(part for metric in metrics for part in (*split(metric), *split(metric, 1)))


def split(metric: str, times: int = -1) -> list[str]:
    """The plain parts of a name, at every slash or at the first: a label may hold slashes itself."""
    return [plain(part) for part in metric.split("/", times)]


@functools.lru_cache(maxsize=65536)
def plain(text: str) -> str:
    """A name without case and with spaces for every sign: "l2-category" and "L2 category" are one."""
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def _pairs(reference: Any) -> Iterator[Label]:
    """Every short value under a key, lists and inner objects opened."""
    if not isinstance(reference, Mapping):
        return
    for key, value in reference.items():
        if plain(str(key)) in NEVER:
            continue
        if isinstance(value, Mapping):
            yield from _pairs(value)
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | int) and not isinstance(one, bool) and 0 < len(str(one)) <= MAX_LABEL_CHARS:
                yield str(key), str(one)
