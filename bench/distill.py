"""Pictures a second of a distillation: the teacher live, its features kept as the run goes, and all of them kept.

    python bench/distill.py [--output FOLDER] [--pictures 64] [--batch-size 16] [--epochs 3]

Teachers have random weights, for speed does not depend on them: one about as much larger than its student as the 6B is
than the 300M, and one of nano's size. All ways run one after the other in one process, on the same drawn pictures;
what counts is the median step without the first. ``first``: the epoch in which the teacher runs for each picture alone
and what it gives is written; ``then``: the epochs that read it. ``MB``: what a picture takes on disk; ``largest``: the
largest difference of a kept feature from a live one, over the largest magnitude; ``1 - cos``: the mean over tokens.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mini_internvl import synth, terminal
from mini_internvl.model.encoder import EncoderAlone, encoder_config, save_encoder
from mini_internvl.model.sizes import VIT_300M, fresh_encoder
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe, StudentRecipe
from mini_internvl.train.distil import distil
from mini_internvl.train.initial import open_initial, sample_processor
from mini_internvl.train.kept import KeptFeatures
from mini_internvl.train.learner import Learner
from mini_internvl.train.log import read_log

SIDE = 112
SIZES = {"768x12, 192x6": ((768, 12, 12), (192, 6, 3)), "192x6, 96x6": ((192, 6, 3), (96, 6, 3))}
"""Width, blocks and heads of teacher and student."""
WAYS = {"live": "", "bf16": "bf16", "int8": "int8"}


def fields(width: int, blocks: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "image_size": SIDE, "initializer_range": 0.05,
    }  # fmt: skip


def teacher(folder: Path, size: tuple[int, int, int]) -> Path:
    """A bare InternViT with random weights."""
    model = EncoderAlone(encoder_config({**VIT_300M, **fields(*size)}))
    model.vision_model = fresh_encoder(model.config.vision, seed=1)
    return save_encoder(model, folder, dtype=torch.float32)


def recipe(given: argparse.Namespace, teacher: Path, student: tuple[int, int, int], keep: str, epochs: int) -> Recipe:
    stage = StageRecipe(
        name=keep or "live",
        data=(SourceRecipe(kind="pictures", path=str(given.output / "pictures")),),
        steps=max(2, epochs * given.pictures // given.batch_size),
        loss={"features": {"teacher": str(teacher), "keep": keep}},
        train=("vision",),
        batch_size=given.batch_size,
        micro_batch=given.batch_size,
    )
    begin = StudentRecipe(config=fields(*student))
    return Recipe(name=stage.name, student=begin, stages=(stage,), save_every=10**6, eval_every=10**6)


def speed(settings: Recipe, folder: Path) -> float:
    """Pictures a second of the median step, the first left out."""
    shutil.rmtree(folder, ignore_errors=True)
    distil(settings, folder, workers=1)
    rows = read_log(folder / "speed.jsonl")[1:]
    return statistics.median(row["tiles_per_s"] for row in rows)


def difference(settings: Recipe, folder: Path) -> tuple[float, float, int]:
    """Of kept features from live ones: the largest, the mean cosine; and bytes of a picture on disk."""
    start = open_initial(settings)
    learner = Learner(start.model, settings.stages[0])
    (frozen,) = learner.frozen()
    loss: Any = learner.loss["features"]
    store = KeptFeatures(folder, "x", shape=loss.kept_shape, limit=0, form=settings.stages[0].loss["features"]["keep"])
    process = sample_processor(start, settings.stages[0])
    sample = synth.make("words", 5, 0)
    picture = {"role": "user", "content": [sample.messages[0]["content"][0]]}
    tiles = process(type(sample)(id="a", messages=[picture])).tiles
    live = torch.cat(frozen.states(tiles), 1)
    kept = store.unpack(store.pack(live)).float()
    cosine = torch.cosine_similarity(live, kept, dim=-1).mean()
    return float((live - kept).abs().max() / live.abs().max()), float(cosine), loss.kept_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/bench-distill"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the smaller pair alone")
    given = parser.parse_args()
    folder = given.output / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(given.pictures):
        image: Image.Image = synth.make("words", 1, number).messages[0]["content"][0]["image"]
        image.save(folder / f"{number}.png")
    rows = []
    for name, (large, small) in list(SIZES.items())[1 if given.small else 0 :]:
        model = teacher(given.output / "teachers" / name.partition(",")[0], large)
        live = 0.0
        for way, keep in WAYS.items():
            with tempfile.TemporaryDirectory(dir=given.output) as cache:
                os.environ["MINIVL_CACHE"] = cache
                first = speed(recipe(given, model, small, keep, 1), given.output / "run") if keep else 0.0
                found = speed(recipe(given, model, small, keep, given.epochs), given.output / "run")
                live = live or found
                told = difference(recipe(given, model, small, keep, 1), Path(cache)) if keep else (0.0, 1.0, 0)
            went = f"{first:.1f}" if keep else ""
            each = (f"{told[2] / 1e6:.2f}", f"{told[0]:.1e}", f"{1 - told[1]:.1e}") if keep else ("", "", "")
            rows.append((name, way, went, f"{found:.1f}", f"{found / live:.1f}", *each))
    headers = ("sizes", "features", "first", "then", "x live", "MB", "largest", "1 - cos")
    terminal.table(f"batches of {given.batch_size}, {given.pictures} pictures", headers, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
