"""Worked examples: a benchmark's official files in small, written where a test or a trial needs them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """A drawn stand-in for an official image: a frame with a disc whose place and colour follow the seed."""

    width: int = 120
    height: int = 80
    seed: int = 0

    def png(self) -> bytes:
        """The image as PNG."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width, self.height), (235, 240, 245))
        pen = ImageDraw.Draw(image)
        x, y, r = self.width * (1 + self.seed % 3) / 4, self.height / 2, min(self.width, self.height) / 4
        colour = ((200, 40, 40), (40, 90, 200), (40, 150, 60), (150, 60, 170))[self.seed % 4]
        pen.rectangle((1, 1, self.width - 2, self.height - 2), outline=(90, 90, 90))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def base64(self) -> str:
        """The PNG as base64, as tables hold it."""
        return base64.b64encode(self.png()).decode()


@dataclass(frozen=True, kw_only=True)
class Files:
    """A data folder in small."""

    files: Mapping[str, Any]
    """Path in the data folder -> content: a list of rows for .jsonl and .tsv, JSON data for .json, text for others.
    A cell of a table that is an ExampleImage is written as base64, a list of them as a Python-style list."""
    images: Mapping[str, ExampleImage] = field(default_factory=dict)
    """Path in the data folder -> image."""

    def write(self, folder: Path) -> Path:
        """Write everything below ``folder``; returns it."""
        for name, content in {**self.files, **self.images}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, ExampleImage):
                path.write_bytes(content.png())
            elif path.suffix == ".tsv":
                _write_tsv(path, content)
            else:
                path.write_text(_text(path.suffix, content), encoding="utf-8")
        return folder


@dataclass(frozen=True, kw_only=True)
class WorkedExample(Files):
    """Official files in small, and answers to the items that they give."""

    good: Sequence[str]  # right answers, in the items' order
    bad: Sequence[str]  # wrong answers, in the items' order
    judge: Mapping[str, str] = field(default_factory=dict)  # part of a judge's prompt -> its reply


def table_rows(columns: str, *rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of a file from their cells; ``columns`` are the columns' names with spaces between."""
    return [dict(zip(columns.split(), row, strict=True)) for row in rows]


def _write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({column: _cell(value) for column, value in row.items()})


def _text(suffix: str, content: Any) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    return json.dumps(content, ensure_ascii=False) if suffix == ".json" else content


def _cell(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(entry, ExampleImage) for entry in value):
        return str([image.base64() for image in value])
    return value.base64() if isinstance(value, ExampleImage) else value
