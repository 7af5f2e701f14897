"""A recipe, run: model and tokenizer loaded or made, stages one after the other, checkpoints written.

Layout of a run folder::

    recipe.json      the recipe with every default filled in
    metrics.jsonl    one line a step
    state/           what a stopped run goes on from
    best/  last/     checkpoints in the official layout
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mini_internvl import synth
from mini_internvl.inputs import chat
from mini_internvl.inputs.tokenizer import Tokenizer, load_tokenizer
from mini_internvl.model.checkpoint import load_model, read_config, read_json, save_model
from mini_internvl.model.sizes import fresh
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, RecipeError, SourceRecipe, StageRecipe, to_dict
from mini_internvl.records import Batch
from mini_internvl.train import state
from mini_internvl.train.data import Encoder, StepDataset, collate, open_source
from mini_internvl.train.loop import Progress, Run, held_out_loss, run_stage
from mini_internvl.train.losses import Loss

TOKENIZER_FILES = (
    "added_tokens.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from."""

    model: InternVL
    """Float32 weights."""
    tokenizer: Tokenizer
    """Of the same folder."""
    folder: Path
    """Where the tokenizer files are."""


def open_start(recipe: Recipe) -> Start:
    """Load ``recipe.model`` or make a fresh model from ``recipe.build``."""
    folder = Path(recipe.model or recipe.build)
    if recipe.model:
        model = load_model(folder)
    else:
        model = fresh(read_config(folder), recipe.seed)
        model.image_token_id = read_json(folder / "added_tokens.json")["<IMG_CONTEXT>"]
    return Start(model=model, tokenizer=load_tokenizer(folder), folder=folder)


def encoder(start: Start, *, max_tiles: int, max_length: int, with_patches: bool = False) -> Encoder:
    """The sample encoder of a starting point."""
    config = start.model.config
    return Encoder(
        tokenizer=start.tokenizer,
        template=chat.find_template(config.template),
        system_message=config.system_message,
        config=config,
        max_tiles=max_tiles,
        max_length=max_length,
        with_patches=with_patches,
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
        RecipeError: the folder holds a run of another recipe.
    """
    folder = Path(folder)
    _claim(folder, recipe)
    start = open_start(recipe)
    files = [start.folder / name for name in TOKENIZER_FILES if (start.folder / name).exists()]
    counters = state.read_counters(folder / "state") or {}
    done = _finished(recipe, counters)
    if done:
        state.load_weights(folder / "state", start.model)
    for stage in recipe.stages[done:]:
        patches = stage.loss == "patches"
        encode = encoder(start, max_tiles=stage.max_tiles, max_length=stage.max_length, with_patches=patches)
        held_out = held_out_batches(held_out_sources(recipe, stage), encode, recipe.held_out_samples, recipe.seed)

        def evaluate(model: InternVL, loss: Loss, batches: list[Batch] = held_out) -> dict[str, float]:
            measured = {"held_out_loss": held_out_loss(model, batches, recipe.precision, loss)} if batches else {}
            measured.update(probe(model) if probe else {})
            if "score" not in measured and batches:
                measured["score"] = -measured["held_out_loss"]
            return measured

        def keep(model: InternVL, measured: dict[str, float], name: str = stage.name) -> None:
            save_model(model, folder / "best", dtype="bfloat16", extra_files=files, metadata={"stage": name})

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
    save_model(start.model, folder / "last", dtype="bfloat16", extra_files=files)
    return folder / ("best" if (folder / "best").exists() else "last")


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
