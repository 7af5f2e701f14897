"""What an answer depends on, as hashes: weights, prompt, images, limits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.files import file_hash
from mini_internvl.inputs.hashes import ImageHashes
from mini_internvl.inputs.messages import Messages, normalise
from mini_internvl.records import Item

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files of a checkpoint that, beside its weights, decide what it answers."""


def weight_files_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's safetensors files, or of the weights that ``minivl quantize`` wrote."""
    return file_hash(*sorted([*folder.glob("*.safetensors"), *folder.glob("*coder.bin")]))


def settings_hash(folder: Path) -> str:
    """SHA-256 of the small files beside the weights: configuration, tokenizer, template."""
    return file_hash(*sorted({path for pattern in SETTINGS for path in folder.glob(pattern)}))


def plain_prompt(messages: Messages) -> str:
    """A conversation as text that no model's template has touched: roles, texts, and images as their names."""
    turns = [
        [turn.role, *(part if isinstance(part, str) else f"<image>{part.name}" for part in turn.parts)]
        for turn in normalise(messages)
    ]
    return json.dumps(turns, ensure_ascii=False)


def decoding(item: Item) -> str:
    """How its answer is drawn, in words."""
    return f"temperature {item.temperature:g}, seed 0" if item.temperature else "greedy"


def answer_key(model: str, item: Item, prompt: str, images: ImageHashes) -> str:
    """Names the answer of a model (weights, settings and arithmetic) to an item whose prompt it reads as ``prompt``."""
    return digest([model, prompt, item.max_tiles, item.max_new_tokens, decoding(item), *images.all(item.messages)])


def items_hash(items: Iterable[Item], images: ImageHashes) -> str:
    """SHA-256 of a benchmark's items as the scorer and the model see them: ids, prompts, images, references, limits."""
    whole = hashlib.sha256()
    for item in items:
        row = [item.id, plain_prompt(item.messages), item.reference, item.max_tiles, item.max_new_tokens]
        row += images.all(item.messages)
        whole.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()


def digest(facts: Sequence[Any] | Mapping[str, Any]) -> str:
    """SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
