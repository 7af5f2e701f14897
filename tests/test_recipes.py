"""Recipes: every field checked before any work, named by its dotted path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mini_internvl import recipes
from mini_internvl.recipes import RecipeError, SourceRecipe

ROOT = Path(__file__).parent.parent


def plain():
    return {
        "name": "r",
        "model": "somewhere",
        "stages": [{"name": "one", "steps": 5, "data": [{"kind": "synth", "name": "shapes"}]}],
    }


@pytest.fixture
def load(tmp_path):
    """``load(change, overrides)``: write the plain recipe, changed by a function, and read it."""

    def run(change=lambda raw: None, overrides=()):
        raw = plain()
        change(raw)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(raw))
        return recipes.load(path, overrides)

    return run


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_the_repository_loads(path):
    recipe = recipes.load(path)
    folder = ROOT / (recipe.model or recipe.build)
    assert folder.is_dir() or recipe.model
    from mini_internvl import synth

    sources = [source for stage in recipe.stages for source in stage.data] + list(recipe.held_out)
    assert {source.name for source in sources if source.kind == "synth"} <= set(synth.KINDS)


def test_there_are_recipes():
    assert list((ROOT / "recipes").glob("**/*.yaml"))


def test_defaults_and_types(load):
    recipe = load(lambda raw: raw["stages"][0].update(lr=1, betas=[0.9, 0.95], train=["llm"]))
    stage = recipe.stages[0]
    assert isinstance(stage.lr, float)
    assert stage.betas == (0.9, 0.95)
    assert stage.train == ("llm",)
    assert stage.data == (SourceRecipe(kind="synth", name="shapes"),)
    assert (recipe.precision, recipe.seed) == ("fp32", 0)
    assert recipes.from_dict(recipes.Recipe, json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001"])
def test_yamls_exponents_without_a_dot_are_numbers(load, number):
    assert load(overrides=[f"stages.0.lr={number}"]).stages[0].lr == 1e-4


def test_overrides_reach_everywhere(load):
    overrides = ["seed=3", "stages.0.steps=9", "stages.0.data.0.weight=2.5", "precision=bf16", "stages.0.train=[llm]"]
    recipe = load(overrides=overrides)
    assert (recipe.seed, recipe.precision) == (3, "bf16")
    assert (recipe.stages[0].steps, recipe.stages[0].data[0].weight) == (9, 2.5)
    assert recipe.stages[0].train == ("llm",)
    assert load(overrides=["name=a=b"]).name == "a=b"


def test_an_override_reaches_what_the_file_leaves_out(load):
    assert load(overrides=["lora.rank=8", "lora.targets.llm=[q_proj]"]).lora.rank == 8
    loss = load(overrides=["stages.0.loss.answers.reduction=square"]).stages[0].loss
    assert loss == {"answers": {"weight": 1.0, "reduction": "square"}}


def test_a_value_of_several_kinds_keeps_its_own():
    @dataclass(frozen=True, kw_only=True)
    class Mixed:
        value: float | str | None

    kept = [recipes.from_dict(Mixed, {"value": value}).value for value in ("auto", 2, "1e-4", None)]
    assert kept == ["auto", 2.0, "1e-4", None]
    with pytest.raises(RecipeError, match=r"value must be float or str, not \[1\]"):
        recipes.from_dict(Mixed, {"value": [1]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", 'override "seed" has no "="'),
        ("stages.3.lr=1", 'the recipe has no "3"'),
        ("stages.one.lr=1", 'the recipe has no "one"'),
        ("stages.x=1", 'the recipe has no "x"'),
        ("stages.7={}", 'the recipe has no "7"'),
        ("nothing.lr=1", 'unknown field "nothing"'),
        ("name.lr=1", 'the recipe has no "lr"'),
        ("name.a.b=1", 'the recipe has no "a"'),
        ("seed=[1", "is not valid YAML"),
        ("seeds=1", 'unknown field "seeds"; did you mean "seed"?'),
        ("stages.0.learning_rate=1", r'unknown field "stages\.0\.learning_rate"'),
        ("stages.0.step=1", r'unknown field "stages\.0\.step"; did you mean "steps"\?'),
    ],
)
def test_wrong_overrides_are_told(load, override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "seed must be int, not 'x'"),
        ("seed=true", "seed must be int, not True"),
        ("seed=1.5", "seed must be int, not 1.5"),
        ("name=5", "name must be str, not 5"),
        ("stages=5", "stages must be a list, not 5"),
        ("stages=[7]", r"stages\.0\. must be a mapping of fields, not 7|stages\.0 must be a mapping"),
        ("stages.0.steps=many", r"stages\.0\.steps must be int, not 'many'"),
        ("stages.0.lr=fast", r"stages\.0\.lr must be a number, not 'fast'"),
        ("stages.0.lr=true", r"stages\.0\.lr must be a number, not True"),
        ("stages.0.lr=null", r"stages\.0\.lr must be a number, not None"),
        ("stages.0.betas=[0.9]", r"stages\.0\.betas must hold 2 values, not 1"),
        ("stages.0.train=llm", r"stages\.0\.train must be a list or a mapping, not 'llm'"),
        ("stages.0.train=[1]", r"stages\.0\.train\.0 must be str, not 1"),
        ("stages.0.data.0.weight=heavy", r"stages\.0\.data\.0\.weight must be a number"),
        ("stages.0.data.0.names=x", r'unknown field "stages\.0\.data\.0\.names"; did you mean "name"\?'),
    ],
)
def test_wrong_types_are_named_by_their_path(load, override, message):
    with pytest.raises(RecipeError, match=message):
        load(overrides=[override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=''", "give either model"),
        ("build=x", "give either model"),
        ("precision=fp64", 'precision is "fp64"; known: fp32, bf16, fp16, auto'),
        ("stages=[]", "stages is empty"),
        ("eval_every=0", "eval_every is 0; it must be at least 1"),
        ("save_every=0", "save_every is 0; it must be at least 1"),
        ("held_out_samples=0", "held_out_samples is 0"),
        ("stages.0.steps=0", "stage one: steps is 0; it must be at least 1"),
        ("stages.0.batch_size=0", "stage one: batch_size is 0"),
        ("stages.0.micro_batch=-1", "stage one: micro_batch is -1"),
        ("stages.0.max_tiles=0", "stage one: max_tiles is 0"),
        ("stages.0.lr=0", "stage one: lr is 0.0; it must be above 0"),
        ("stages.0.lr=-1", "stage one: lr is -1.0"),
        ("stages.0.warmup_ratio=1", r"warmup_ratio is 1.0; it must be in \[0, 1\)"),
        ("stages.0.drop_path=1", r"drop_path is 1.0; it must be in \[0, 1\)"),
        ("stages.0.weight_decay=-1", "weight_decay is -1.0; it must be 0 or above"),
        ("stages.0.min_lr_ratio=-1", "min_lr_ratio is -1.0; it must be 0 or above"),
        ("stages.0.clip=0", "clip is 0.0; it must be above 0"),
        ("stages.0.train=[]", "train holds nothing, and loss answers has nothing of its own that is kept; name parts"),
        ("stages.0.train=[vit]", r"train holds \['vit'\]; known parts"),
        ("stages.0.data=[]", "stage one: data is empty"),
        ("stages.0.data.0.kind=web", 'called "web"; known: columns, .*; a kind may also be rows, synth, domain or pic'),
        ("stages.0.data.0.weight=0", "data.weight of synth shapes is 0.0"),
        ("stages.0.data.0.name=''", "a synth source needs a name"),
        ("stages.0.data.0.kind=jsonl", "a jsonl source needs a path"),
    ],
)
def test_values_that_cannot_work_are_refused(load, override, message):
    with pytest.raises(RecipeError, match=message):
        load(overrides=[override])


def test_two_stages_of_one_name_are_refused(load):
    with pytest.raises(RecipeError, match="two stages share a name: one, one"):
        load(lambda raw: raw["stages"].append(dict(raw["stages"][0])))


@pytest.mark.parametrize(("field", "message"), [("name", "missing field name"), ("stages", "missing field stages")])
def test_a_missing_field_is_named(load, field, message):
    with pytest.raises(RecipeError, match=message):
        load(lambda raw: raw.pop(field))


def test_a_missing_field_of_a_stage_is_named(load):
    with pytest.raises(RecipeError, match=r"recipe\.yaml: missing field stages\.0\.steps"):
        load(lambda raw: raw["stages"][0].pop("steps"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- 1", "a recipe is a mapping"),
        (b"", "a recipe is a mapping"),
        (b"\xff\xfe\xfa", "YAML"),
    ],
)
def test_files_that_are_no_recipes_are_told(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        recipes.load(path)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml does not exist"):
        recipes.load(tmp_path / "none.yaml")


def test_two_losses_of_one_name_are_refused(tmp_path):
    (tmp_path / "answers.py").write_text("from mini_internvl.train.losses.answers import *\n")
    with pytest.raises(recipes.RecipeError, match="two losses share a name"):
        recipes.StageRecipe(
            name="one",
            steps=1,
            data=(recipes.SourceRecipe(kind="synth", name="shapes"),),
            loss={"answers": {}, str(tmp_path / "answers.py"): {}},
        )
