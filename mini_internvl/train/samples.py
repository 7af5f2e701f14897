"""The same few samples answered at every measurement, kept to see how the answers change.

``samples/STAGE/STEP.json`` holds what was asked and answered, ``samples/images`` the pictures by the hash of their
bytes, each once. A record follows from the weights alone, so a resumed run writes the same again::

    {"stage": "one", "step": 200, "samples": [
        {"id": "rows/17", "images": ["3f9a....jpg"], "question": "Which word?", "reference": "no", "answer": "yes"}]}
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mini_internvl.engine import Engine, GenerationConfig
from mini_internvl.files import read_object, write_bytes, write_json
from mini_internvl.inputs.images import load_image
from mini_internvl.inputs.messages import Turn, image_parts
from mini_internvl.inputs.questions import asked
from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Sample

_log = logging.getLogger(__name__)
FOLDER, IMAGES = "samples", "images"
SIDE = 448  # longest side of a kept picture
Answer = Callable[[Sequence[Sequence[Turn]]], Sequence[str]]
"""Conversations that end with a question -> what the model answers."""


def engine_answers(engine: Engine, *, max_tiles: int | None = None, max_new_tokens: int = 64) -> Answer:
    """Greedy answers of an engine."""
    limits = GenerationConfig(max_new_tokens=max_new_tokens)

    def answer(conversations: Sequence[Sequence[Turn]]) -> list[str]:
        replies = engine.chat_batch([tuple(turns) for turns in conversations], limits, max_tiles=max_tiles)
        return [reply.text for reply in replies]

    return answer


class AnswerLog:
    """Keeps the answers of the same samples at each measurement of a stage; what fails is told once, and ends nothing.

    ``folder`` is that of the run, ``tokenizer`` the one with the tokenizer's files.
    """

    def __init__(
        self, folder: Path, stage: str, samples: Sequence[Sample], *, tokenizer: Path, max_tiles: int | None = None
    ) -> None:
        self.folder, self.stage, self.samples = folder, stage, [sample for sample in samples if _has_question(sample)]
        self.tokenizer, self.max_tiles = tokenizer, max_tiles
        self.engine: Engine | None = None

    def __call__(self, model: InternVL, step: int) -> None:
        """Write the record of a step."""
        if not self.samples:
            return
        if self.engine is None:
            self.engine = Engine(model, self.tokenizer)
        self.engine = self.engine.with_model(model)  # weights have changed, and those of shards are gathered anew
        try:
            write_samples(
                self.folder, self.stage, step, engine_answers(self.engine, max_tiles=self.max_tiles), self.samples
            )
        except (ValueError, OSError, RuntimeError) as error:
            _log.warning("answers of held-out samples are kept no longer: %s", " ".join(str(error).split()))
            self.samples = []


def write_samples(folder: Path, stage: str, step: int, answer: Answer, samples: Sequence[Sample]) -> Path:
    """Ask the first question of each sample and write the record of a step; returns its file.

    ``folder`` is that of the run. ValueError or ImageError: a sample's messages or pictures cannot be read.
    """
    firsts = [_first_question(sample) for sample in samples]
    answers = answer([question for question, _ in firsts])
    rows = []
    for sample, (question, reference), text in zip(samples, firsts, answers, strict=True):
        pictures = [_keep(folder / FOLDER / IMAGES, part.source) for part in image_parts(question)]
        told = {"question": question[-1].text.strip(), "reference": reference, "answer": text}
        rows.append({"id": f"{sample.source}/{sample.id}", "images": pictures, **told})
    path = folder / FOLDER / _file_name(stage) / f"{step:08}.json"
    write_json(path, {"stage": stage, "step": step, "samples": rows}, flush=False)
    return path


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; those of one stage by ascending step, stages by their first record's time."""
    stages = [sorted(place.glob("*.json")) for place in (folder / FOLDER).glob("*") if place.is_dir()]
    stages = sorted((paths for paths in stages if paths), key=lambda paths: paths[0].stat().st_mtime)
    return [read_object(path) for paths in stages for path in paths]


def _has_question(sample: Sample) -> bool:
    try:
        return bool(_first_question(sample))
    except ValueError:
        return False


def _first_question(sample: Sample) -> tuple[tuple[Turn, ...], str]:
    """The turns up to the first question, and its true answer."""
    first = next(asked(sample), None)
    if first is None:
        raise ValueError(f"sample {sample.source}/{sample.id} has no question with an answer")
    return first


def _keep(folder: Path, source: Any) -> str:
    """Keep a picture in small; returns its name."""
    image = load_image(source).copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.jpg"
    if not (folder / name).exists():
        write_bytes(folder / name, buffer.getvalue(), flush=False)
    return name


def _file_name(stage: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in stage)
