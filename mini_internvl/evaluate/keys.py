"""What an answer depends on, as hashes: weights, prompt, images, limits.

Images count by the bytes of their files, which is much cheaper than decoding them; a file that is used by many items
is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.inputs import chat
from mini_internvl.inputs.images import ImageError
from mini_internvl.records import Item, Message

DECODING = "greedy"
"""How benchmarks are answered."""
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files of a checkpoint that, beside its weights, decide what it answers."""


def file_hash(*paths: Path) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's safetensors files."""
    return file_hash(*sorted(folder.glob("*.safetensors")))


def settings_hash(folder: Path) -> str:
    """SHA-256 of the small files beside the weights: configuration, tokenizer, template."""
    return file_hash(*sorted({path for pattern in SETTINGS for path in folder.glob(pattern)}))


class Images:
    """SHA-256 of images, each source read once."""

    def __init__(self) -> None:
        self.known: dict[Any, str] = {}

    def hash(self, source: Any) -> str:
        """Of a path, bytes, a data URL, a PIL image, or what gives its bytes when read.

        Raises:
            ImageError: a file cannot be read.
        """
        if not isinstance(source, Hashable):
            return _hash(source)
        if source not in self.known:
            self.known[source] = _hash(source)
        return self.known[source]

    def all(self, item: Item) -> list[Any]:
        """The hash of each of an item's images, with its own scale and tile limit where it has them."""
        return [
            [self.hash(part["image"]), *(part[name] for name in ("scale", "max_tiles") if name in part)]
            for part in chat.images(item.messages)
        ]


def _hash(source: Any) -> str:
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, bytes | bytearray):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, str) and source.startswith("data:"):
        return hashlib.sha256(source.encode()).hexdigest()
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            return file_hash(Path(name))
        except FileNotFoundError:
            raise ImageError(f"{name} does not exist; check the path") from None
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}") from None
    head = f"{source.mode} {source.size}".encode()
    return hashlib.sha256(head + source.tobytes()).hexdigest()


def question(messages: Iterable[Message]) -> str:
    """All text of a conversation, without its images."""
    texts = []
    for message in messages:
        content = message["content"]
        parts: Sequence[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts)


def plain_prompt(messages: Sequence[Message]) -> str:
    """A conversation as text that no model's template has touched: roles, texts, and images as their names."""
    turns = []
    for message in messages:
        content = message["content"]
        parts: Sequence[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append([message["role"], *(part.get("text", f"<image>{part.get('name', '')}") for part in parts)])
    return json.dumps(turns, ensure_ascii=False)


def answer_key(model: str, item: Item, prompt: str, images: Images) -> str:
    """Names the answer of a model to an item.

    Args:
        model: stands for weights, settings and arithmetic.
        item: the question.
        prompt: its text as the model reads it.
        images: hashes images.
    """
    facts = [
        *(model, prompt, item.max_tiles, item.max_new_tokens, DECODING),
        *images.all(item),
    ]
    return digest(facts)


def items_hash(items: Iterable[Item], images: Images) -> str:
    """SHA-256 of a benchmark's items as the scorer and the model see them: ids, prompts, images, truths, limits."""
    whole = hashlib.sha256()
    for item in items:
        row = [item.id, plain_prompt(item.messages), item.reference, item.max_tiles, item.max_new_tokens]
        row += images.all(item)
        whole.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()


def digest(facts: Sequence[Any] | Mapping[str, Any]) -> str:
    """SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
