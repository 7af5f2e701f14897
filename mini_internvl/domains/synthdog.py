"""SynthDoG: drawn pages of text in English, Chinese and other languages, to be read.

The raw folder holds ``train-*.parquet`` and ``validation-*.parquet``, in ``data`` or directly
(naver-clova-ix/synthdog-en and synthdog-zh on the Hugging Face hub), or shards ``train-*.tar``, or what SynthDoG
itself writes, ``train/metadata.jsonl`` and ``validation/metadata.jsonl`` beside their images. A row's
``ground_truth`` is ``{"gt_parse": {"text_sequence": ...}}``, also as a JSON text. Its text has no line breaks, and
words that were cut at the end of a line have a space; it is taken as it is.
The text is asked for in several wordings, in Chinese where it is Chinese; InternVL's are not known. OCRBench, which
the paper prints, measures what is learnt. Source: ``README.md`` of clovaai/donut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks import ocrbench
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, fault
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.data.ocr.questions import language
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage, _captions
from mini_internvl.records import Sample

SOURCE = "synthdog"
TITLE = "Pages of text (SynthDoG)"
SPLITS = ("train", "validation")
RECIPE = AdaptRecipe()
BENCHMARKS = {"ocrbench": DomainBenchmark(test="test")}


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a page; a fault for each without image or text."""
    total = 0
    for path in _files(Path(raw), chosen("split", split, SPLITS)):
        images = Images(path.parent)
        for row in scan(path):
            total += 1
            yield row if isinstance(row, Fault) else _read(row, str(total), images)


def _files(raw: Path, split: str) -> list[Path]:
    """The files of a split in their order; DataError where there are none, but for the pages held out."""
    for folder in (raw / "data", raw, raw / split):
        for pattern in (f"{split}-*.parquet", f"{split}-*.tar", f"{split}/metadata.jsonl"):
            if found := sorted(folder.glob(pattern)):
                return found
    if split == SPLITS[0] or not raw.is_dir():
        raise DataError(
            f"{raw} holds neither {split}-*.parquet, {split}-*.tar nor {split}/metadata.jsonl; get "
            "naver-clova-ix/synthdog-en or synthdog-zh on the Hugging Face hub"
        )
    return []


def _read(row: Row, name: str, images: Images) -> Sample | Fault:
    try:
        place = images.shown(row.raw.get("image") or row.raw.get("file_name"))
        text = _text(row.raw.get("ground_truth"))
    except ValueError as error:
        return fault(row, str(error))
    kind = "chinese page" if language(text) == "zh" else "page"
    return _captions.described(row, name, [place], text, kind=kind, source=SOURCE)


def _text(value: Any) -> str:
    """The text of a page's ``ground_truth``; ValueError where it is of another form."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    parsed = found.get("gt_parse") if isinstance(found, Mapping) else None
    text = parsed.get("text_sequence") if isinstance(parsed, Mapping) else None
    if not isinstance(text, str):
        raise ValueError('ground_truth is not {"gt_parse": {"text_sequence": TEXT}}')
    return text


def _row(name: str, text: Any) -> dict[str, Any]:
    """A row of SynthDoG, for the example."""
    return {"file_name": name, "ground_truth": json.dumps({"gt_parse": {"text_sequence": text}}, ensure_ascii=False)}


EXAMPLE = DomainExample(
    files={
        "train/metadata.jsonl": [
            _row("image_1.jpg", "Closin g Time is a song\nof 1998"),
            {"file_name": "image_2.jpg", "ground_truth": {"gt_parse": {"text_sequence": "工厂直销 买贵包退 专业印刷"}}},
            _row("image_1.jpg", " "),
            _row("image_1.jpg", ["no", "text"]),
            _row("image_9.jpg", "The image is missing."),
            {"file_name": "image_1.jpg", "ground_truth": "{"},
            {"ground_truth": "{}"},
        ],
        "validation/metadata.jsonl": [_row("image_3.jpg", "Tommy's Heroes")],
        **ocrbench.EXAMPLE.files,
    },
    images={
        **{f"train/image_{n}.jpg": ExampleImage(width=100, height=140, seed=n) for n in (1, 2)},
        "validation/image_3.jpg": ExampleImage(width=100, height=140, seed=3),
        **ocrbench.EXAMPLE.images,
    },
    samples={
        "train": [
            _captions.pair(
                SOURCE, "1", ["train/image_1.jpg"], "What text is in the image?", "Closin g Time is a song of 1998"
            ),
            _captions.pair(SOURCE, "2", ["train/image_2.jpg"], "请转写图片中的文字。", "工厂直销 买贵包退 专业印刷"),
        ],
        "validation": [
            _captions.pair(SOURCE, "1", ["validation/image_3.jpg"], "What text is in the image?", "Tommy's Heroes")
        ],
    },
    faults={"train": 5, "validation": 0},
)
