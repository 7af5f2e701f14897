"""Every recipe of the repository: its header says how to run it, its rows are planned, its stages step on ``meta``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mini_internvl import recipes
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.lora import add_lora
from mini_internvl.model.routing import routed_config
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import SourceRecipe
from mini_internvl.train.batches import packed_batch, to_device
from mini_internvl.train.data import MixedDataset
from mini_internvl.train.initial import sample_processor, thresholds
from mini_internvl.train.layout import make_plan
from mini_internvl.train.learner import Learner
from mini_internvl.train.optim import make_optimizer
from mini_internvl.train.parts import set_drop_path, set_trainable
from mini_internvl.train.student import shaped_student, student_config
from tests.train.test_devices import batches_of, configured
from tests.train.test_distil import pictures_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").glob("**/*.yaml"))
ON_ROWS = [path for path in FILES if all(s.kind == "rows" for stage in recipes.load(path).stages for s in stage.data)]
name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@name
def test_the_header_says_how_to_run_it(path):
    header = path.read_text().split("\nname: ")[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    verbs = ("distill",) if recipes.load(path).student else ("train", "cp")
    assert any(f"{verb} {path.relative_to(ROOT)}" in header for verb in verbs)
    for source in (s for stage in recipes.load(path).stages for s in stage.data if s.kind == "rows"):
        assert source.path.startswith("data/")
        assert source.path in header or path.stem == "finetune", source.path


@pytest.mark.parametrize("path", ON_ROWS, ids=lambda path: path.stem)
def test_its_rows_are_planned(path, rows, start):
    """A few steps of a few packs, from rows in place of the data."""
    recipe = recipes.load(path)
    for stage in recipe.stages:
        data = tuple(SourceRecipe(kind="rows", path=str(rows), weight=source.weight) for source in stage.data)
        small = replace(stage, data=data, steps=3, batch_size=2)
        dataset = MixedDataset(small, sample_processor(start, small), seed=recipe.seed)
        if small.pack is None:
            assert len(dataset[0].input_ids) <= small.max_length
            continue
        plan = make_plan(dataset)
        assert len(plan) == 6
        assert plan.tokens.max() <= small.pack.tokens
        assert plan.tiles.max() <= small.pack.tiles
        batch = packed_batch([dataset[int(number)] for number in plan[0]])
        assert batch.input_ids.shape == (1, plan.tokens[0])
        assert len(batch.tiles) == plan.tiles[0]


@name
def test_its_stages_step_without_values(path):
    """On ``meta``, in the widths of its model, with two blocks: forward, backward, clipping, optimiser."""
    recipe = recipes.load(path)
    if recipe.student is not None:
        for stage in recipe.stages:
            _steps(stage, shaped_student(recipe.student).train(), pictures_of(student_config(recipe.student)))
        return
    size = next((size for size in ("1B", "2B", "4B") if size in f"{recipe.model} {path.stem}".upper()), "nano")
    config = read_config(ROOT / recipe.build) if recipe.build else configured(size)
    config = replace(config, vision=replace(config.vision, layers=2), llm=replace(config.llm, layers=2))
    if recipe.router:
        config = routed_config(config, thresholds(recipe))
    for stage in recipe.stages:
        with shapes_only():
            model = InternVL(config).train()
            if recipe.lora:
                add_lora(model, recipe.lora, recipe.seed)
        model.image_token_id = config.image_token_id or 9
        batch = batches_of(config)["images"]
        if "patches" in stage.loss:
            side = config.image_size // config.vision.patch_size
            batch = replace(batch, extras={"patches": torch.zeros(len(batch.tiles), side * side, 4, dtype=torch.int64)})
        if next(iter(stage.loss)) != "patches":  # which counts its labels, and they have no values here
            _steps(stage, model, batch)


def _steps(stage, model, batch):
    set_trainable(model, stage.train)
    set_drop_path(model, stage.drop_path)
    learner = Learner(model, stage)
    learner(to_device(batch, torch.device("meta")))["loss"].backward()
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    nn.utils.clip_grad_norm_(learner.parameters(), stage.clip)
    if stage.optimizer == "adamw":  # the other has no step without values
        make_optimizer(learner, stage).step()
