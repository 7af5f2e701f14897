"""Two ways to train on the same samples, for the benches of training: packed here, padded around transformers.

The padded way is a plain loop around transformers' InternVLForConditionalGeneration. Both start from the same weights
and make the same steps with the same AdamW and clipping; the loss of a step is the mean over its supervised tokens.
Samples have no content: their sizes are drawn from a mix of ``packing.py``, cut down where a model is small, their
tiles are noise and their tokens random. Half of a text's tokens are supervised.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packing import MIXES
from torch.nn.utils.rnn import pad_sequence

from mini_internvl.data.packing import pack
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.checkpoint import load_model, save_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import read_json
from mini_internvl.model.sizes import official_config, shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.ranks import ALONE
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example
from mini_internvl.train.batches import packed_batch, to_device
from mini_internvl.train.data import StepData
from mini_internvl.train.learner import Learner
from mini_internvl.train.loop import AUTOCAST, Stepper
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import set_checkpointing, set_compiled, set_trainable

NANO = Path(__file__).parent.parent / "mini_internvl" / "nano" / "config.json"
TEXT = 48  # tokens that a sample of a mix has at least beside its images
Step = Callable[[Sequence[Example]], tuple[int, int]]  # the samples of a step -> places and tokens of its batches


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process measures."""

    folder: str  # with the models in both layouts
    rows: int = 0  # of a padded batch; 0 packs
    sort: bool = False  # rows of similar length together
    mix: str = "general"  # of packing.MIXES; or "alike"
    steps: int = 2  # measured, after one that warms up
    samples: int = 16  # of a step
    warm_samples: int = 0  # of the step that warms up; 0: as many
    fewer_tiles: int = 1  # a sample has the mix's tiles divided by this, rounded up
    shorter_texts: int = 1  # and its tokens of text
    tokens: int = 0  # of every sample of "alike"
    tiles: int = 0
    pack_tokens: int = 16384
    pack_tiles: int = 48
    train: tuple[str, ...] = ("vision", "projector", "llm")
    checkpointing: tuple[str, ...] = ()
    precision: str = "fp32"
    weights: str = "float32"
    device: str = "cpu"
    compile: bool = False  # our blocks


def official(name: str, layers: int = 0, image_size: int = 0) -> dict[str, Any]:
    """config.json of nano or a released size, with so many layers of each half and tiles of so many pixels."""
    raw: dict[str, Any] = dict(read_json(NANO)) if name == "nano" else official_config(name)
    if layers:
        raw["vision_config"]["num_hidden_layers"] = raw["llm_config"]["num_hidden_layers"] = layers
    if image_size:
        raw["vision_config"]["image_size"] = raw["force_image_size"] = image_size
    raw.setdefault("img_context_token_id", raw["llm_config"]["vocab_size"] - 7)
    return raw


def write_models(raw: dict[str, Any], folder: Path, *, dtype: str = "float32", device: str = "cpu") -> None:
    """The same fresh weights in the official and the native layout."""
    with shapes_only():
        model = InternVL(VLMConfig.from_official(raw))
    model.to(getattr(torch, dtype)).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 0.1 if name.endswith(("ls1", "ls2")) else 1.0)
    for layout in ("official", "native"):
        save_model(model, folder / layout, dtype=dtype, layout=layout)
    if device == "cuda":  # what follows measures in processes of their own, and needs the room
        del model
        torch.cuda.empty_cache()


def read_shape(task: Task) -> VLMConfig:
    return VLMConfig.from_official(read_json(Path(task.folder) / "official" / "config.json"))


def draw(task: Task, config: VLMConfig) -> list[list[Example]]:
    """The samples of each step; those of the first warm up."""
    random, side, context = np.random.default_rng(0), config.image_size, config.image_token_id
    assert context is not None
    count = (1 + task.steps) * task.samples
    if task.mix == "alike":
        text = np.full(count, task.tokens - task.tiles * config.tokens_per_tile)
        tiles = np.full(count, task.tiles)
    else:
        tokens, tiles = MIXES[task.mix][0](random, count)
        text = np.maximum(tokens - 256 * tiles, TEXT) // task.shorter_texts
        tiles = -(-tiles // task.fewer_tiles)
    examples = []
    for number in range(count):
        words = torch.from_numpy(random.integers(1, min(context, 1000), text[number]))
        ids = torch.cat([torch.full((int(tiles[number]) * config.tokens_per_tile,), context), words])
        labels = ids.clone()
        labels[: -(len(words) // 2)] = -100
        noise = torch.from_numpy(random.integers(0, 256, (int(tiles[number]), side, side, 3), dtype=np.uint8))
        examples.append(Example(sample_id=str(number), input_ids=ids, labels=labels, tiles=noise))
    return [examples[first : first + task.samples] for first in range(0, count, task.samples)]


def supervised(example: Example) -> int:
    return int((example.labels[1:] != -100).sum())


def packs(task: Task, examples: Sequence[Example]) -> list[Batch]:
    """The samples of a step in packs."""
    tokens, tiles = (np.array([len(getattr(e, name)) for e in examples]) for name in ("input_ids", "tiles"))
    made = pack(tokens, tiles, max_tokens=max(task.pack_tokens, int(tokens.max())), max_tiles=task.pack_tiles)
    return [packed_batch([examples[place] for place in made[number]]) for number in range(len(made))]


def padded(task: Task, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The samples of a step as batches for transformers' model."""
    ordered = sorted(examples, key=lambda e: len(e.input_ids)) if task.sort else examples
    batches = []
    for start in range(0, len(ordered), task.rows):
        rows = ordered[start : start + task.rows]
        batch = {
            "input_ids": pad_sequence([e.input_ids for e in rows], batch_first=True),
            "labels": pad_sequence([e.labels for e in rows], batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(e.input_ids) for e in rows], batch_first=True),
        }
        moved = {name: value.to(task.device) for name, value in batch.items()}
        if len(tiles := torch.cat([e.tiles for e in rows])):
            moved["pixel_values"] = normalise(tiles.to(task.device))
        batches.append(moved)
    return batches


def bench_stage(task: Task) -> StageRecipe:
    """All but the data."""
    return StageRecipe(
        name="bench", data=(SourceRecipe(kind="synth", name="words"),), steps=task.steps + 1, train=task.train, lr=1e-5,
        checkpointing=task.checkpointing,
    )  # fmt: skip


def our_learner(task: Task) -> Learner:
    folder, stage = Path(task.folder) / "official", bench_stage(task)
    model = load_model(folder, dtype=task.weights, device=task.device)
    set_trainable(model, stage.parts())
    set_checkpointing(model, stage.checkpointing)
    if task.compile:
        set_compiled(model)
    return Learner(model, stage).train()


def their_model(task: Task) -> Any:
    from transformers import InternVLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = str(Path(task.folder) / "native")
    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, task.weights))
    if "vision" not in task.train:
        model.model.vision_tower.requires_grad_(False)
    if task.checkpointing:
        model.gradient_checkpointing_enable()
    return model.to(task.device).train()


def our_step(task: Task) -> Step:
    """A step as training makes it, but for reading the data."""
    learner, stage = our_learner(task), bench_stage(task)
    stepper = Stepper(
        learner=learner, wrapped=learner, optimizer=make_optimizer(learner, stage), stage=stage, ranks=ALONE,
        recipe=Recipe(name="bench", stages=(stage,), model=task.folder, precision=task.precision),
        scaler=torch.amp.GradScaler(task.device, enabled=False),
    )  # fmt: skip
    done = 0

    def step(examples: Sequence[Example]) -> tuple[int, int]:
        nonlocal done
        batches = packs(task, examples)
        stepper.step(done, StepData(batches=batches, first=0, unusable=(), waited=0.0))
        done += 1
        return sum(b.input_ids.numel() for b in batches), sum(int(b.attention_mask.sum()) for b in batches)

    return step


def their_step(task: Task) -> Step:
    """The same with padding, around transformers' model."""
    model = their_model(task)
    optimizer = make_optimizer(model, bench_stage(task))

    def step(examples: Sequence[Example]) -> tuple[int, int]:
        places, total = 0, sum(map(supervised, examples))
        for batch in padded(task, examples):
            own = (batch["labels"][:, 1:] != -100).sum()
            with torch.autocast(task.device, AUTOCAST.get(task.precision), enabled=task.precision in AUTOCAST):
                loss = model(**batch).loss * (own / total)
            loss.backward()
            places += batch["input_ids"].numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return places, sum(len(e.input_ids) for e in examples)

    return step


@torch.no_grad()
def check(task: Task) -> dict[str, float]:
    """The largest difference between both ways' losses: of each sample alone there, and of all in packs."""
    examples = draw(task, read_shape(task))[0]
    learner, theirs = our_learner(task), their_model(task)
    alone = replace(task, rows=1)
    total, worst = 0.0, 0.0
    for example in examples:
        (batch,) = padded(alone, [example])
        loss = float(theirs(**batch).loss)
        own = float(learner(to_device(packed_batch([example]), learner.model.device))["loss"]) / supervised(example)
        worst, total = max(worst, abs(loss - own)), total + loss * supervised(example)
    count = sum(map(supervised, examples))
    packed = sum(float(learner(to_device(batch, learner.model.device))["loss"]) for batch in packs(task, examples))
    return {"loss": total / count, "difference": max(worst, abs(packed - total) / count)}


def measure(task: Task) -> dict[str, float]:
    """Rates and peak memory of one way, in this process; the first step warms up."""
    steps = draw(task, read_shape(task))
    step = their_step(task) if task.rows else our_step(task)
    seconds, places, tokens, answers = [], 0, 0, 0
    steps[0] = steps[0][: task.warm_samples or None]
    for number, examples in enumerate(steps):
        _wait(task)
        began = time.perf_counter()
        used = step(examples)
        _wait(task)
        if number:
            seconds.append(time.perf_counter() - began)
            places, tokens = places + used[0], tokens + used[1]
            answers += sum(map(supervised, examples))
    return {
        "supervised_per_s": round(answers / sum(seconds), 1),
        "tokens_per_s": round(tokens / sum(seconds), 1),
        "step_s": round(statistics.median(seconds), 3),
        "fill": round(tokens / places, 3),
        **_peak(task),
    }


def _peak(task: Task) -> dict[str, float]:
    """Highest memory: of this process; on a GPU what torch's allocator held, and the tensors in it."""
    if task.device != "cuda":
        return {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}
    held, used = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return {"peak_gb": round(held / 1e9, 2), "tensors_gb": round(used / 1e9, 2)}


def _wait(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.synchronize()


def apart(do: Callable[[Task], dict[str, float]], task: Task) -> dict[str, Any]:
    """Measured in a process of its own; ``failed`` says what went wrong."""
    command = [sys.executable, __file__, do.__name__, json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    given |= {"train": tuple(given["train"]), "checkpointing": tuple(given["checkpointing"])}
    print(json.dumps({"measure": measure, "check": check}[sys.argv[1]](Task(**given))))
