"""The whole of ``minivl quantize``: read, write, compare, and keep or refuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mini_internvl import plugins, report, synth
from mini_internvl.engine import Engine, beside, hub
from mini_internvl.engine.backends import openvino as backend
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.device import resolve_dtype
from mini_internvl.engine.engine import user
from mini_internvl.evaluate.questions import read_questions
from mini_internvl.files import check_new, new_folder, write_json
from mini_internvl.inputs.prepare import Prompt
from mini_internvl.quantize import agreement, export

QUESTION = "Describe this picture."
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
KINDS = "shapes,words,charts"
COMPARED = 12  # pictures on which features and tokens are compared
MAX_TILES = 6  # of one picture
AGREEMENT = "agreement"
PAGE = f"{AGREEMENT}/{agreement.QUANTISED}/report.html"


def quantise(
    name: str | None,
    output: Path | None,
    plan: export.Plan,
    *,
    pictures: Path | None,
    tiles: int,
    limit: int,
    force: bool,
    progress: agreement.Progress,
) -> tuple[Path, dict[str, Any]]:
    """Write a quantised model with its agreement; returns its folder and its facts.

    Args:
        name: checkpoint or adapter folder, hub id, or ``None`` for nano.
        output: a new folder; ``None``: inside the model's own, where it is found, in the place of an earlier one.
        pictures: folder of one's own; half of them measure the encoder's ranges, the other half the agreement.
        tiles: most tiles on which ranges are measured.
        limit: drawn questions of each kind that both models are asked.
        force: keep it below the bounds of :class:`agreement.Agreement`.

    ValueError: it cannot be read or written, or answers otherwise than before and is not forced; nothing is kept then.
    """
    if output is None:
        output = _beside(name)
    else:
        check_new(output)
    export.require()
    report.require()
    found = None if pictures is None else read_pictures(pictures)
    source = export.read_source(name)
    plain = Engine(source.model, source.files)
    made_of = beside.made_of(hub.resolve(name))
    given = list(islice(_tiles(plain, found), tiles)) if plan.encoder_bits == 8 else []
    prompts = [plain.prepare(messages, max_tiles=MAX_TILES) for messages in _compared(found)]
    asked = read_questions(
        "synth", plugins.find("benchmarks", "synth"), limit=limit, kinds=",".join(_kinds()), split="test"
    )
    with new_folder(output) as folder:
        facts = export.write(source, plan, given, folder, progress)
        small = backend.load(folder)
        source.model.to(getattr(torch, resolve_dtype("auto", source.model.device, source.files)))  # as it would answer
        same = agreement.compare(TorchBackend(source.model), small, prompts, plain.stop_ids, progress)
        told = _told(source, "plain", facts), _told(source, f"int{plan.bits}", facts)
        scores = agreement.score(asked, (plain, Engine(small, folder)), told, folder / AGREEMENT, progress)
        problem = same.problem(plan.bits)
        facts |= {"agreement": agreement.facts(same, scores), "problem": problem}
        facts[beside.MADE_OF] = made_of
        facts["bytes"] = sum(path.stat().st_size for path in folder.glob("*coder.*"))
        facts["plain_bytes"] = sum(path.stat().st_size for path in source.files.glob("*.safetensors"))
        if problem and not force:
            raise ValueError(
                f"{problem}; nothing was written. Give more pictures like those it will see (--pictures), "
                "more bits (--bits 8, --encoder-bits 16), or --force"
            )
        write_json(folder / backend.FACTS, facts)
    report.build(output / AGREEMENT / agreement.QUANTISED, output / AGREEMENT / agreement.PLAIN)
    return output, facts


def _beside(name: str | None) -> Path:
    """Where a model's quantised form is found; ValueError for one that has no folder of its own, or something there."""
    if name is None or not Path(name).is_dir():
        raise ValueError(f"{name or 'nano'} is no folder of yours; say where to write: minivl quantize MODEL OUTPUT")
    output = hub.resolve(name) / beside.FOLDER
    if not backend.is_quantised(output):
        check_new(output)
    return output


def read_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names; ValueError where there are fewer than two."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ValueError(f"{folder} holds {len(found)} pictures; give a folder of at least two, better some dozens")
    return found


def _kinds() -> list[str]:
    return [kind for kind in KINDS.split(",") if synth.missing(kind) is None]


def _drawn(split: str) -> Iterator[tuple[Image.Image, str]]:
    """Pictures of all kinds in turn, with a question, without end."""
    index = 0
    while True:
        for kind in _kinds():
            image, questions = synth.draw(kind, 0, index, split)
            yield image, questions[0].question
        index += 1


def _tiles(engine: Engine, pictures: Sequence[Path] | None) -> Iterator[Tensor]:
    """Normalised tiles (3, S, S) for the encoder's ranges."""
    own = (image for image, _ in _drawn("train")) if pictures is None else iter(pictures[::2])
    for image in own:
        prompt: Prompt = engine.prepare(user(QUESTION, image), max_tiles=MAX_TILES)
        yield from prompt.pixel_values


def _compared(pictures: Sequence[Path] | None) -> Iterator[Any]:
    """Conversations about other pictures than the encoder's ranges were measured on."""
    if pictures is not None:
        return (user(QUESTION, path) for path in pictures[1::2][:COMPARED])
    return (user(question, image) for image, question in islice(_drawn("test"), COMPARED))


def _told(source: export.Source, form: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What names a model in score files."""
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    return {"name": f"{source.name} {form}", "sha256": facts["base_sha256"], "parameters": parameters}
