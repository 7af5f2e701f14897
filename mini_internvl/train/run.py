"""A recipe, run: model and tokenizer loaded or made, stages one after the other, checkpoints written.

Layout of a run folder::

    recipe.json      the recipe with every default filled in
    metrics.jsonl    one line a step
    state/           what a stopped run goes on from
    best/  last/     checkpoints in the official layout, or adapter folders where adapters train
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from mini_internvl import synth
from mini_internvl.engine import hub
from mini_internvl.engine.device import fast_bfloat16
from mini_internvl.inputs import chat
from mini_internvl.inputs.prepare import Processor
from mini_internvl.inputs.tokenizer import FILES, Tokenizer, load_tokenizer
from mini_internvl.model.adapter import find_base, is_adapter, load_adapter, save_adapter, tensors_hash
from mini_internvl.model.checkpoint import layout_of, load_model, read_config, read_json, save_model
from mini_internvl.model.lora import add_lora, lora_layers, set_dropout, targeted
from mini_internvl.model.sizes import fresh
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, RecipeError, SourceRecipe, StageRecipe, to_dict
from mini_internvl.records import Batch
from mini_internvl.train import state
from mini_internvl.train.data import Encoder, StepDataset, collate, open_source
from mini_internvl.train.loop import Progress, Run, held_out_loss, run_stage, set_trainable
from mini_internvl.train.losses import Loss


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from."""

    model: InternVL
    """Float32 weights; with adapters when the recipe asks for them or starts from one."""
    tokenizer: Tokenizer
    """Of the same folder."""
    folder: Path
    """Where the tokenizer files are; the base of the adapters."""
    base_hash: str = ""
    """Hash of the base's weights where adapters train, else empty."""
    projector: bool = False
    """Whether the adapters go with a projector that is trained in full."""


def open_start(recipe: Recipe) -> Start:
    """Load ``recipe.model``, a checkpoint or an adapter, or make a fresh model from ``recipe.build``.

    Raises:
        RecipeError: ``lora`` asks for other adapters than those of the adapter that ``model`` names.
        CheckpointError: a file is missing or damaged, or the adapter's base is another one.
    """
    if recipe.model and is_adapter(recipe.model):
        return _open_adapter(recipe)
    folder = hub.find(recipe.model) if recipe.model else Path(recipe.build)
    if recipe.model:
        model = load_model(folder)
    else:
        model = fresh(read_config(folder), recipe.seed)
        model.image_token_id = read_json(folder / "added_tokens.json")["<IMG_CONTEXT>"]
    tokenizer = load_tokenizer(folder)
    if recipe.lora is None:
        return Start(model=model, tokenizer=tokenizer, folder=folder)
    add_lora(model, recipe.lora, recipe.seed)
    projector = any("projector" in stage.train for stage in recipe.stages)
    return Start(model=model, tokenizer=tokenizer, folder=folder, base_hash=tensors_hash(folder), projector=projector)


def _open_adapter(recipe: Recipe) -> Start:
    """The base of an adapter with the adapter on it, to train on; ``recipe.lora`` may change its dropout only."""
    folder = hub.find(find_base(recipe.model))
    model, base_hash = load_model(folder), tensors_hash(folder)
    wanted = targeted(model, recipe.lora) if recipe.lora else None
    info = load_adapter(model, recipe.model, base_hash=base_hash)
    layers = lora_layers(model)
    if recipe.lora:
        ranks = {layer.rank for layer in layers.values()}
        scales = {round(layer.scale, 6) for layer in layers.values()}
        asked = {recipe.lora.rank}, {round(recipe.lora.scale, 6)}
        if (ranks, scales) != asked or wanted != sorted(layers):
            raise RecipeError(
                f"lora asks for other adapters than {recipe.model} holds ({len(layers)} layers of rank "
                f"{', '.join(map(str, sorted(ranks)))}); leave lora out to train on, or merge the adapter first"
            )
        set_dropout(model, recipe.lora.dropout)
    projector = info.projector or any("projector" in stage.train for stage in recipe.stages)
    return Start(model=model, tokenizer=load_tokenizer(folder), folder=folder, base_hash=base_hash, projector=projector)


def save_start(start: Start, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    """Save the model of a run: a checkpoint with its tokenizer, or its adapters alone."""
    if start.base_hash:
        base = _relative(start.folder.resolve(), folder.resolve())
        return save_adapter(start.model, folder, base=base, base_hash=start.base_hash, projector=start.projector)
    files = [start.folder / name for name in FILES if (start.folder / name).exists()]
    layout = layout_of(start.folder).NAME
    return save_model(start.model, folder, dtype="bfloat16", layout=layout, extra_files=files, metadata=metadata)


def _relative(base: Path, folder: Path) -> str:
    """The way from the adapter's folder to its base; the whole path where there is none (another drive)."""
    try:
        return Path(os.path.relpath(base, folder)).as_posix()
    except ValueError:
        return base.as_posix()


def encoder(
    start: Start, *, max_tiles: int, max_length: int, with_patches: bool = False, marks_needed: bool = True
) -> Encoder:
    """The sample encoder of a starting point."""
    config = start.model.config
    return Encoder(
        processor=Processor(
            tokenizer=start.tokenizer,
            template=chat.find_template(config.template),
            config=config,
            system_message=config.system_message,
        ),
        max_tiles=max_tiles,
        max_length=max_length,
        with_patches=with_patches,
        marks_needed=marks_needed,
    )


def held_out_sources(recipe: Recipe, stage: StageRecipe) -> tuple[SourceRecipe, ...]:
    """The recipe's held-out sources; for the loss over patches those of them, and of the stage, that have marks."""
    if stage.loss != "patches":
        return recipe.held_out
    tests = [dataclasses.replace(source, split="test") for source in stage.data]
    names = {source.name: source for source in (*recipe.held_out, *tests) if source.name in synth.marked_kinds()}
    return tuple(names.values())


def held_out_batches(sources: Iterable[SourceRecipe], encode: Encoder, samples: int, seed: int) -> list[Batch]:
    """Fixed batches of 16, the same number of samples from each source."""
    opened = [open_source(source, seed) for source in sources]
    each = -(-samples // len(opened)) if opened else 0
    examples = [encode(source[index]) for source in opened for index in range(each)]
    examples.sort(key=lambda example: len(example.input_ids))
    return [collate(examples[i : i + 16], 0) for i in range(0, len(examples), 16)]


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    probe: Callable[[InternVL], dict[str, float]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    workers: int = 1,
) -> Path:
    """Run or continue a recipe.

    Args:
        recipe: checked settings.
        folder: the run folder; a folder of the same recipe is continued, one of another is refused.
        probe: measures the model in training; its ``"score"`` picks the best checkpoint. Without it the held-out loss
            does (lower is better), and without held-out data the last checkpoint is the best.
        on_progress: called after every step.
        should_stop: asked after every step.
        workers: processes that prepare batches.

    Returns:
        The folder of the best checkpoint.

    Raises:
        RecipeError: the folder holds a run of another recipe, or a stage names only parts without adapters.
    """
    folder = Path(folder)
    recipe = _with_precision(recipe, folder)
    _claim(folder, recipe)
    start = open_start(recipe)
    for stage in recipe.stages:
        set_trainable(start.model, stage.train)  # a stage that would train nothing is refused before any work
    counters = state.read_counters(folder / "state") or {}
    done = _finished(recipe, counters)
    if done:
        state.load_weights(folder / "state", start.model)
    for stage in recipe.stages[done:]:
        encode = encoder(
            start,
            max_tiles=stage.max_tiles,
            max_length=stage.max_length,
            with_patches=stage.loss == "patches" or stage.patches_weight > 0,
            marks_needed=stage.loss == "patches",
        )
        held_out = held_out_batches(held_out_sources(recipe, stage), encode, recipe.held_out_samples, recipe.seed)

        def evaluate(model: InternVL, loss: Loss, batches: list[Batch] = held_out) -> dict[str, float]:
            measured = {"held_out_loss": held_out_loss(model, batches, recipe.precision, loss)} if batches else {}
            measured.update(probe(model) if probe else {})
            if "score" not in measured and batches:
                measured["score"] = -measured["held_out_loss"]
            return measured

        def keep(model: InternVL, measured: dict[str, float], name: str = stage.name) -> None:
            save_start(start, folder / "best", {"stage": name})

        run = Run(
            folder=folder,
            precision=recipe.precision,
            seed=recipe.seed,
            eval_every=recipe.eval_every,
            save_every=recipe.save_every,
            evaluate=evaluate,
            on_best=keep,
            on_progress=on_progress,
            should_stop=should_stop,
            workers=workers,
        )
        dataset = StepDataset(stage, encode, pad_id=0, seed=recipe.seed + recipe.stages.index(stage))
        run_stage(start.model, stage, dataset, run)
    save_start(start, folder / "last")
    return folder / ("best" if (folder / "best").exists() else "last")


def _with_precision(recipe: Recipe, folder: Path) -> Recipe:
    """``auto`` settled: as the folder's run began, or by what this computer is fast at."""
    if recipe.precision != "auto":
        return recipe
    path = folder / "recipe.json"
    if path.exists():
        return dataclasses.replace(recipe, precision=read_json(path).get("precision", "fp32"))
    return dataclasses.replace(recipe, precision="bf16" if fast_bfloat16(torch.device("cpu")) else "fp32")


def _claim(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    wanted = json.dumps(to_dict(recipe), indent=2, ensure_ascii=False) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != wanted:
        raise RecipeError(f"{folder} holds a run of another recipe; give another folder with --output or delete it")
    path.write_text(wanted, encoding="utf-8")


def _finished(recipe: Recipe, counters: dict[str, object]) -> int:
    """Number of stages that are complete according to a state's counters."""
    names = [stage.name for stage in recipe.stages]
    if counters.get("stage") not in names:
        return 0
    index = names.index(str(counters["stage"]))
    stage: StageRecipe = recipe.stages[index]
    return index + 1 if counters["step"] == stage.steps else index
