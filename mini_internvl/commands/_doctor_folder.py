"""The doctor's findings, and a folder that is read in spite of its faults."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mini_internvl.files import FileError, read_object
from mini_internvl.model import layouts, llms
from mini_internvl.model.files import ADAPTER, CONFIG

Severity = Literal["error", "warning", "note"]
LAYOUTS = {
    "official": "official InternVLChatModel",
    "native": "Hugging Face native (InternVLForConditionalGeneration)",
    "mini": "mini-internvl's own",
    "vision": "bare InternViT",
    "adapter": "PEFT adapter",
    "llm": "language model alone",
    "unknown": "unknown",
}
"""Short name -> its description; an unlisted layout goes by its own name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the doctor noticed about a file of the folder, or the folder; a note may ask for nothing ("").

    An error must be fixed; what earns a warning works here, but not as meant or not elsewhere.
    """

    severity: Severity
    file: str
    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found in one folder: what could be read of its model, and errors, then warnings, then notes."""

    folder: str
    layout: str  # a key of ``LAYOUTS``, or the name of another layout
    facts: Mapping[str, str | int]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """No finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


class Folder:
    """A folder under examination: its JSON files, its facts and the findings so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self.facts: dict[str, str | int] = {}
        self.json = functools.cache(self._read_json)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, *patterns: str) -> list[str]:
        """File names that match a pattern, sorted."""
        return sorted(path.name for pattern in patterns for path in self.path.glob(pattern) if path.is_file())

    def add(self, severity: Severity, file: str, what: str, remedy: str) -> None:
        self.findings.append(Finding(severity=severity, file=plain(file), what=plain(what), remedy=plain(remedy)))

    def add_error(self, file: str, error: Exception) -> None:
        """Note an error of the loader, whose message reads "what is wrong; remedy"; it may begin with another file."""
        text = str(error).replace(f"{self.path}/", "").replace(f"{self.path}: ", "")
        first = re.match(r"([\w./-]+\.(?:json|safetensors|txt|model|bin)):? ", text)
        file, text = (first[1], text[first.end() :]) if first else (file, text)
        what, _, remedy = text.rpartition("; ")
        self.add("error", file, what or remedy, remedy if what else "fetch the file again")

    def _read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; ``None`` when it is missing or broken; a broken one is reported once."""
        try:
            return read_object(self.path / name) if (self.path / name).exists() else None
        except FileError as error:
            self.add_error(name, error)
            return None

    def layout(self) -> str:
        """What the folder is, by config.json; an unknown one is reported."""
        if self.has(ADAPTER):
            if self.has(CONFIG):
                remedy = "move the adapter's two files to a folder of their own"
                self.add("warning", CONFIG, "lies beside adapter_config.json, which is what gets loaded", remedy)
            return "adapter"
        raw = self.json(CONFIG)
        if raw is None:
            inside = [name for name in ("best", "last") if self.has(f"{name}/{CONFIG}")]
            if inside:
                what = "is missing: this is the folder of a training run"
                self.add("error", CONFIG, what, f"give {self.path / inside[0]}")
            elif not (self.path / CONFIG).exists():
                self.add("error", CONFIG, "is missing", "copy it from the original checkpoint, or give another folder")
            return "unknown"
        for name, module in layouts.layouts().items():
            if module.matches(raw):
                return name
        kind, names = raw.get("model_type"), raw.get("architectures")
        first = names[0] if isinstance(names, list) and names else "unknown"
        if kind == "intern_vit_6b" or {"hidden_size", "patch_size"} <= raw.keys():
            return "vision"
        if isinstance(first, str) and first in llms.backbones():
            remedy = "give a whole model's folder, or join this one with an InternViT (minivl build)"
            self.add("error", CONFIG, f"is of a language model alone ({first})", remedy)
            return "llm"
        if kind == "internvl_chat":
            lacking = [name for name in ("vision_config", "llm_config") if name not in raw]
            what = f"lacks {' and '.join(lacking)}"
            self.add("error", CONFIG, what, "copy config.json from the original checkpoint")
            return "official"
        what = f'is of another model: model_type "{kind}", architecture "{first}"'
        remedy = 'give a folder whose model_type is "internvl_chat" (official) or "internvl" (Hugging Face native)'
        self.add("error", CONFIG, what, remedy)
        return "unknown"


def plain(text: str) -> str:
    """A text fit for one line of a terminal."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", text)
    return " ".join(text.split()) if len(text) <= 2000 else f"{' '.join(text[:1000].split())} ..."


def listed(names: list[str], most: int = 4) -> str:
    """ "a, b, c, d and 3 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
