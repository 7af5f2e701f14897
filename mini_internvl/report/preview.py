"""A page of rows as a model reads them: images with their tiles and boxes, the prompt, and which tokens are learnt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_internvl.data import Fault
from mini_internvl.data.oddities import oddities
from mini_internvl.files import write_text
from mini_internvl.inputs import boxes as written
from mini_internvl.inputs import chat
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.records import Sample
from mini_internvl.report.images import data_urls
from mini_internvl.report.page import render, script
from mini_internvl.train.processor import SampleProcessor, Text

IMAGE_BYTES, LARGEST_IMAGE = 16_000_000, 180_000  # JPEG bytes of all images together, and of one
IMAGES_PER_ROW = 12
BOXES_PER_ROW = 40
LONGEST_RUN = 4000  # characters of a run of tokens that are shown

Box = tuple[float, float, float, float]


@dataclass(kw_only=True)
class ShownImage:
    """An image with how it is cut."""

    source: Any
    name: str
    width: int
    height: int
    columns: int
    rows: int
    tiles: int  # thumbnail included
    tokens: int
    url: str | None = None  # ``None``: it cannot be decoded
    boxes: list[Box] = field(default_factory=list)  # shares of its sides

    @property
    def cuts(self) -> list[tuple[float, float, float, float]]:
        """Lines between tiles: x1, y1, x2, y2 as shares of its sides."""
        upright = [(c / self.columns, 0.0, c / self.columns, 1.0) for c in range(1, self.columns)]
        return upright + [(0.0, r / self.rows, 1.0, r / self.rows) for r in range(1, self.rows)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tokens that follow each other and are of one kind."""

    kind: str  # ``learnt``, ``visual`` or ``given``
    text: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row of the page."""

    where: str
    id: str = ""
    fault: str = ""  # why it cannot be trained on
    odd: Sequence[str] = ()
    images: Sequence[ShownImage] = ()
    more: int = 0  # images that are not shown
    labels: Sequence[str] = ()  # phrases of the boxes
    runs: Sequence[Run] = ()
    tokens: int = 0
    supervised: int = 0
    tiles: int = 0
    shortened: bool = False


def write_preview(
    samples: Sequence[Sample | Fault], process: SampleProcessor, path: Path, *, title: str, model: str
) -> Path:
    """Write the page. ``process`` reads samples as the model does that is called ``model``.

    ValueError: jinja2 is missing.
    """
    rows = [_shown(sample, process) for sample in samples]
    images = [image for row in rows for image in row.images]
    for image, url in zip(images, data_urls([i.source for i in images], IMAGE_BYTES, LARGEST_IMAGE), strict=True):
        image.url = url
    config = process.processor.config
    facts = [
        ("model", model),
        ("tile", f"{config.image_size} px, {config.tokens_per_tile} tokens"),
        ("limits", f"{process.max_tiles} tiles, {process.max_length:,} tokens"),
    ]
    code, digest = script()
    page = render("preview.html", title=title, rows=rows, facts_=facts, script=code, script_hash=digest)
    write_text(path, page, errors="replace")
    return path


def _shown(sample: Sample | Fault, process: SampleProcessor) -> ShownRow:
    if isinstance(sample, Fault):
        return ShownRow(where=str(sample).removesuffix(f": {sample.reason}"), fault=sample.reason)
    where, named = sample.place, f"{sample.source}/{sample.id}"
    try:
        text = process.render(sample)
        images = list(_images(text, sample, process))
    except (ValueError, OSError) as error:
        return ShownRow(where=where, id=named, fault=str(error))
    found = _boxes(text)
    if images:
        images[0].boxes = [box for _, box in found]
    labels = text.encoded.labels
    return ShownRow(
        where=where,
        id=named,
        odd=[f"{one.what}; {one.remedy}" for one in oddities(text.turns)],
        images=images[:IMAGES_PER_ROW],
        more=max(0, len(images) - IMAGES_PER_ROW),
        labels=list(dict.fromkeys(phrase for phrase, _ in found if phrase)),
        runs=list(_runs(text, process)),
        tokens=len(labels),
        supervised=len(labels) - labels.count(chat.IGNORE),
        tiles=sum(text.tiles) * text.copies,
        shortened=text.shortened,
    )


def _images(text: Text, sample: Sample, process: SampleProcessor) -> Iterator[ShownImage]:
    cuts = process.processor.cuts(text.turns, sample.max_tiles or process.max_tiles)
    for number, ((part, tiles), count) in enumerate(zip(cuts, text.tiles, strict=True), 1):
        width, height = image_dimensions(part.source, scale=part.scale)
        columns, rows = tiles.grid(width, height)
        yield ShownImage(
            source=part.source,
            name=part.name or (f"Image-{number}" if len(cuts) > 1 else ""),
            width=width,
            height=height,
            columns=columns,
            rows=rows,
            tiles=count,
            tokens=count * process.processor.config.tokens_per_tile,
        )


def _boxes(text: Text) -> list[tuple[str, Box]]:
    """(phrase, box as shares of the image's sides) of all turns."""
    found = []
    for turn in text.turns:
        for phrase, boxes in written.parse(turn.text):
            for box in boxes:
                x1, y1, x2, y2 = (min(1.0, max(0.0, value / 1000)) for value in box)
                found.append((phrase, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
    return found[:BOXES_PER_ROW]


def _runs(text: Text, process: SampleProcessor) -> Iterator[Run]:
    """The tokens of a row as the model reads them, visual ones only counted."""
    tokenizer = process.processor.tokenizer
    context = tokenizer.token_id(chat.IMAGE_CONTEXT)
    pairs = zip(text.encoded.input_ids, text.encoded.labels, strict=True)

    def kind(pair: tuple[int, int]) -> str:
        return "visual" if pair[0] == context else "given" if pair[1] == chat.IGNORE else "learnt"

    for name, group in itertools.groupby(pairs, kind):
        ids = [number for number, _ in group]
        said = f"{chat.IMAGE_CONTEXT} × {len(ids):,}" if name == "visual" else tokenizer.decode(ids, skip_special=False)
        yield Run(kind=name, text=said[:LONGEST_RUN] + ("…" if len(said) > LONGEST_RUN else ""), tokens=len(ids))
