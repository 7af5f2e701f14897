"""Plans: memory by parts against counts and a real step, work of a stage, changes that fit, errors explained."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mini_internvl import synth
from mini_internvl.model.flops import Flops, count_flops
from mini_internvl.recipes import LoraRecipe, PackRecipe, SourceRecipe
from mini_internvl.records import Size
from mini_internvl.train import remedies, sizes, trace
from mini_internvl.train.batches import micro_batches
from mini_internvl.train.log import read_log
from mini_internvl.train.machines import GPUS, Machine, find_machine
from mini_internvl.train.plan import PARTS, PROCESS, Planner, StagePlan, planned_model
from mini_internvl.train.remedies import Remedy, explain_out_of_memory, find_remedies, is_out_of_memory
from mini_internvl.train.run import run_recipe
from mini_internvl.train.workload import made, made_example

CPU = Machine(name="cpu", kind="cpu", flops=1e9, note="")
GPU = find_machine("T4")


def weights(recipe) -> int:
    return sum(p.numel() for p in planned_model(recipe)[0].parameters())


def test_what_lasts_is_counted_exactly(recipe):
    (plan,) = Planner(CPU).plan(recipe({"batch_size": 4, "micro_batch": 2}))
    count = weights(recipe())
    assert plan.memory["weights"] == 4 * count
    assert plan.memory["gradients"] == 4 * count  # those of the first micro batch are there
    assert plan.memory["optimiser"] == pytest.approx(8 * count, rel=0.01)  # AdamW's moments, and step counts


def test_a_frozen_encoder_needs_neither_gradients_nor_its_activations(recipe):
    whole, frozen = Planner(CPU).plan(recipe())[0], Planner(CPU).plan(recipe({"train": ("llm",)}))[0]
    assert frozen.memory["gradients"] < whole.memory["gradients"]
    assert frozen.memory["encoder"] < 0.3 * whole.memory["encoder"]
    assert frozen.flops.backward < whole.flops.backward
    assert frozen.flops.forward == whole.flops.forward


def test_the_trace_on_shapes_sees_what_a_real_step_makes(recipe, learner, examples):
    made = learner().train()
    batch, seen = micro_batches(examples[:2], 2)[0], trace.MemoryTrace()
    with seen:
        made(batch)["loss"].backward()
    plan = Planner(CPU).plan_stage(recipe({"batch_size": 2}), 0, batch=batch)
    parts = (trace.ENCODER, trace.PROJECTOR, trace.DECODER, trace.LOSS, trace.WORKSPACE, trace.GRADIENTS)
    assert sum(plan.memory[part] for part in parts) == pytest.approx(seen.highest, rel=0.1)


def test_checkpointing_trades_activations_for_operations(recipe):
    plain = Planner(CPU).plan(recipe())[0]
    again = Planner(CPU).plan(recipe({"checkpointing": ("vision", "llm")}))[0]
    assert again.memory["encoder"] + again.memory["decoder"] < plain.memory["encoder"] + plain.memory["decoder"]
    assert again.flops.useful == plain.flops.useful
    assert again.flops.recomputed > 0 == plain.flops.recomputed


def test_adapters_are_planned_as_they_train(recipe):
    half = Planner(CPU).plan(recipe({"train": ("llm",)}, lora=LoraRecipe(rank=4), precision="bf16"))[0]
    whole = Planner(CPU).plan(recipe({"train": ("llm",)}))[0]
    assert half.memory["weights"] < 0.7 * whole.memory["weights"]  # a base in bfloat16
    assert half.memory["optimiser"] < 0.5 * whole.memory["optimiser"]


def test_work_follows_from_steps_and_sizes(recipe, rows):
    plan = Planner(CPU).plan(recipe({"steps": 6, "batch_size": 4}))[0]
    assert (plan.steps, plan.samples) == (6, 24)
    assert plan.tokens > plan.supervised > 0
    assert plan.seconds == pytest.approx(plan.flops.useful / 1e9)
    assert "of all 5 samples" in plan.sizes


@pytest.mark.parametrize("pack", [None, PackRecipe(tokens=500, tiles=4)])
def test_where_the_data_is_there_the_plan_is_that_of_the_run(recipe, tmp_path, pack):
    settings = recipe({"steps": 4, "batch_size": 4, "micro_batch": 2, "pack": pack, "max_length": 500}, seed=3)
    plan = Planner(CPU).plan(settings)[0]
    seen = []
    run_recipe(settings, tmp_path / "run", workers=0, on_progress=seen.append)
    rows = read_log(tmp_path / "run/metrics.jsonl")
    for name in ("samples", "tokens", "supervised", "tiles"):
        assert getattr(plan, name) == pytest.approx(sum(row[name] for row in rows)), name
    assert plan.most == Size(tokens=222, supervised=24, tiles=3)


def test_the_micro_batch_that_needs_most_may_be_that_of_most_tiles(recipe):
    settings = recipe({"batch_size": 1, "micro_batch": 1})
    config, token = (model := planned_model(settings)[0]).config, model.image_token_id
    short = 10 + 20 * config.tokens_per_tile
    found = [Size(tokens=short + 50, supervised=5, tiles=0), Size(tokens=short, supervised=5, tiles=20)]
    work = made(settings.stages[0], [made_example(size, config, token) for size in found], told="")
    plan = Planner(CPU).plan_stage(settings, 0, work=work)
    assert plan.batch == f"1 x {short} tokens, 20 tiles"
    assert plan.most == Size(tokens=short + 50, supervised=5, tiles=20)


def test_a_long_run_over_little_data_is_planned_as_fast(recipe):
    began = time.process_time()
    for pack in (None, PackRecipe(tokens=500, tiles=4)):
        settings = recipe({"steps": 1_000_000, "batch_size": 2, "pack": pack, "max_length": 500})
        plan = Planner(CPU).plan(settings)[0]
        assert plan.samples >= 2_000_000
        assert plan.tokens / plan.samples == pytest.approx(194, rel=0.1)
    assert time.process_time() - began < 60


def test_a_source_that_takes_long_is_estimated_from_its_first_samples(recipe, monkeypatch):
    monkeypatch.setattr(sizes, "LEAST", 1)
    planner = Planner(CPU)
    planner.read = sizes.SizeReader(0.0)
    first = planner.plan(recipe({"max_length": 499}))[0]
    assert "from the first 1 samples of " in first.sizes
    assert first.most.tokens < 222  # the longest is the second


def test_kept_features_are_encoded_once_as_far_as_they_fit_on_disk(recipe):
    """The five rows hold two images, of 1 and 3 tiles, in 5 places; here each counts as one of its own."""
    frozen = {"steps": 50, "batch_size": 5, "train": ("projector", "llm")}
    plain = Planner(CPU).plan(recipe(frozen))[0]
    kept = Planner(CPU).plan(recipe({**frozen, "cache": True}))[0]
    full = Planner(CPU).plan(recipe({**frozen, "cache": True}, cache_gb=0.0))[0]
    costs = count_flops(planned_model(recipe())[0])
    config = planned_model(recipe())[0].config
    tiles, side = plain.tiles / 50, config.image_size // config.vision.patch_size
    assert plain.flops.forward - kept.flops.forward == pytest.approx(costs.encoder.forward * 49 * tiles)
    assert kept.kept == tiles * side**2 * config.vision.hidden_size * 2
    assert (full.kept, plain.kept) == (0, 0)
    assert full.flops.forward == pytest.approx(plain.flops.forward)


def test_drawn_sources_are_measured_once_for_all_seeds_and_told_together(recipe, monkeypatch):
    calls = []
    draw = synth.make
    monkeypatch.setattr(synth, "make", lambda name, *given, **more: calls.append(name) or draw(name, *given, **more))
    data = [(SourceRecipe(kind="synth", name="shapes", seed=seed), SourceRecipe(kind="synth", name="words", seed=seed))
            for seed in (1, 2)]  # fmt: skip
    stages = tuple(replace(recipe().stages[0], name=f"stage{number}", data=one) for number, one in enumerate(data))
    plans = Planner(CPU).plan(replace(recipe(), stages=stages))
    assert [plan.sizes for plan in plans] == ["of 64 drawn samples each of shapes, words"] * 2
    assert calls.count("shapes") == calls.count("words") == 64


def test_fewer_tiles_are_planned_without_reading_the_data_again(recipe, monkeypatch):
    planner, whole = Planner(CPU), recipe({"max_tiles": 2, "max_length": 498})
    exact = Planner(CPU).plan(recipe({"max_tiles": 1, "max_length": 498}))[0]
    planner.plan(whole)
    monkeypatch.setattr(sizes, "open_source", None)
    fewer = planner.plan(recipe({"max_tiles": 1, "max_length": 498}), whole)[0]
    assert (fewer.tokens, fewer.tiles, fewer.batch) == (exact.tokens, exact.tiles, exact.batch)


def test_packs_without_data_are_full(recipe):
    changed = recipe({"pack": PackRecipe(tokens=1000, tiles=7), "max_length": 600})
    source = replace(changed.stages[0].data[0], path="nowhere.jsonl")
    plan = Planner(CPU).plan(replace(changed, stages=(replace(changed.stages[0], data=(source,)),)))[0]
    assert plan.batch == "1 x 1,000 tokens, 7 tiles"
    assert "in full packs" in plan.sizes


def test_without_its_data_a_stage_is_planned_with_the_most_tiles(recipe):
    changed = recipe()
    source = replace(changed.stages[0].data[0], path="nowhere.jsonl")
    changed = replace(changed, stages=(replace(changed.stages[0], data=(source,)),))
    plan = Planner(CPU).plan(changed)[0]
    assert "assumed: one image of 3 tiles" in plan.sizes
    assert "nowhere.jsonl" in plan.missing[0]


def test_a_gpu_is_planned_with_its_kernels(recipe):
    plan = Planner(GPU).plan(recipe({"micro_batch": 1}))[0]
    assert plan.memory["allocator"] > 0
    assert plan.memory["process"] > 1e8


def test_several_gpus_share_weights_and_time(recipe):
    made = recipe({"batch_size": 4, "micro_batch": 2}, parallel="fsdp")
    alone, four = Planner(GPU).plan(made)[0], Planner(GPU, 4).plan(made)[0]
    for part in ("weights", "optimiser"):
        assert four.memory[part] == alone.memory[part] / 4
    block = max(sum(p.nbytes for p in b.parameters()) for b in planned_model(made)[0].language_model.layers)
    assert 4 * block < four.memory["gathered shards"] < alone.memory["weights"] + alone.memory["gradients"]
    assert four.batch.startswith("1 x")  # each takes one sample of the four
    assert four.seconds == pytest.approx(alone.seconds / 4)
    copies = Planner(GPU, 4).plan(replace(made, parallel="ddp"))[0]
    assert copies.memory["weights"] == alone.memory["weights"]


def test_a_start_that_is_not_there_can_be_planned_by_its_shapes(recipe):
    with pytest.raises(ValueError, match="add model=OpenGVLab/InternVL2-1B"):
        Planner(CPU).plan(recipe(model="runs/stage1-1b/last"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "model", "device", "memory", "gpus"),
    [
        ("lora.yaml", "2B", "4090", "24GB", 1),
        ("stage1_2b.yaml", "2B", "A100", "70GB", 1),
        ("stage2_4b.yaml", "4B", "A100", "60GB", 8),
        ("domains/medical.yaml", "4B", "A100", "70GB", 8),
    ],
)
def test_official_recipes_fit_the_cards_that_they_name(minivl, path, model, device, memory, gpus):
    """With room on 80 GB for samples that are longer than is assumed; none on 24, where both budgets are full."""
    recipe = Path(__file__).parents[2] / "recipes" / path
    model = f"model=OpenGVLab/InternVL2-{model}"
    code, out, _ = minivl("plan", recipe, model, "--device", device, "--memory", memory, "--gpus", gpus)
    assert (code, "fits into" in out) == (0, True), out


def test_changes_lead_to_a_recipe_that_fits(recipe):
    planner = Planner(CPU)
    large = recipe({"batch_size": 4, "micro_batch": 4})
    needed = planner.plan(large)[0].total
    found = find_remedies(planner, large, needed - 1)
    assert found[-1].overrides == found[-1].added == ("stages.0.micro_batch=2",)
    assert found[-1].total < needed
    hopeless = find_remedies(planner, large, 1)
    assert any("checkpointing" in one for one in hopeless[-1].overrides)
    assert hopeless[-1].total > 1
    assert "stages.0.optimizer=adamw8bit" in hopeless[-1].overrides  # adapters do not help so small a model


class Pretended(Planner):
    """Memory as a sum of what settings change, in steps of 1 GB."""

    def plan(self, recipe, measured=None):
        (stage,) = recipe.stages
        lora, most = recipe.lora, Size(tokens=300, supervised=10, tiles=5)
        tokens, tiles = (stage.pack.tokens, stage.pack.tiles) if stage.pack else (stage.micro_batch * 100, 5)
        memory = dict.fromkeys((*PARTS, PROCESS), 0.0)
        memory |= {
            "decoder": tokens / 100 + stage.max_tiles / 2 - 2 * ("llm" in stage.checkpointing),
            "encoder": tiles / 10 + 3 * ("vision" in stage.parts()),
            "weights": 8 - 6 * bool(lora and lora.quantize),
            "optimiser": 8 - 6 * (stage.optimizer == "adamw8bit") if lora is None else 0.5,
        }
        memory = {name: 1e9 * size for name, size in memory.items()}
        return [
            StagePlan(
                stage="one", memory=memory, moment="", steps=1, samples=1, tokens=1, supervised=1, tiles=1,
                flops=Flops(), seconds=1, sizes="", missing=(), batch="", most=most,
            )
        ]  # fmt: skip


def pretended(recipe, limit, planner=None):
    return [one.added for one in find_remedies(planner or Pretended(CPU), recipe, limit * 1e9)]


def test_all_that_may_help_is_tried_in_its_order_and_what_does_not_is_left_out(recipe):
    large = recipe({"micro_batch": 8, "batch_size": 8, "max_tiles": 12})
    order = [
        "stages.0.micro_batch=1", "stages.0.checkpointing=[vision,llm]", "stages.0.optimizer=adamw8bit",
        "stages.0.train=[projector,llm]", "lora.rank=16", "lora.quantize=nf4", "stages.0.max_tiles=1",
    ]  # fmt: skip
    assert [added for (added,) in pretended(large, 1)] == order
    every = find_remedies(Pretended(CPU), large, 1.0)
    assert set(every[-1].overrides) == set(order)
    assert [one.total for one in every] == sorted((one.total for one in every), reverse=True)
    assert [added for (added,) in pretended(large, 30)] == ["stages.0.micro_batch=4"]
    assert [added for (added,) in pretended(large, 1, Pretended(replace(CPU, kind="mps")))] == [
        one for one in order if "8bit" not in one and "nf4" not in one
    ]
    adapted = recipe({"micro_batch": 1, "train": ("llm",), "max_tiles": 1}, lora=LoraRecipe(rank=2))
    assert pretended(adapted, 5) == [("stages.0.checkpointing=[vision,llm]",), ("lora.quantize=nf4",)]


def test_micro_batches_grow_again_once_there_is_room(recipe):
    large = recipe({"micro_batch": 8, "batch_size": 8, "max_tiles": 2, "lr": 1e-4}, lora=LoraRecipe(rank=2))
    found = find_remedies(Pretended(CPU), large, 13.5e9)
    assert [one.added for one in found] == [
        ("stages.0.micro_batch=1",), ("stages.0.checkpointing=[vision,llm]",), ("stages.0.micro_batch=2",)
    ]  # fmt: skip
    assert set(found[-1].overrides) == {"stages.0.micro_batch=2", "stages.0.checkpointing=[vision,llm]"}


def test_packs_get_smaller_down_to_the_largest_sample(recipe):
    large = recipe({"batch_size": 2, "pack": PackRecipe(tokens=900, tiles=12), "max_length": 900})
    (half,) = pretended(large, 27)
    assert half == (
        "stages.0.batch_size=4", "stages.0.max_length=450", "stages.0.pack.tokens=450", "stages.0.pack.tiles=6"
    )  # fmt: skip
    least = pretended(large, 1)[0]
    assert least == (
        "stages.0.batch_size=5", "stages.0.max_length=300", "stages.0.pack.tokens=300", "stages.0.pack.tiles=5"
    )  # fmt: skip


def test_an_error_for_want_of_memory_names_samples_part_and_setting(recipe, examples):
    batch = micro_batches(examples[:2], 2)[0]
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    made = recipe()
    text = explain_out_of_memory(error, made, made.stages[0], batch)
    assert is_out_of_memory(error)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert all(name in text for name in batch.sample_ids)
    assert "lower stages.0.micro_batch (now 2)" in text
    assert "the largest part for" in text


def test_machines_are_found_by_name():
    assert find_machine("h100").memory == 80e9
    assert not GPU.bf16
    with pytest.raises(ValueError, match=r"or a GPU to plan for: H200"):
        find_machine("abacus")
    assert len(GPUS) > 5


def test_the_command_says_whether_it_fits(minivl, recipe, tmp_path, monkeypatch):
    from mini_internvl.recipes import to_dict

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(recipe())))
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "15GB")
    assert (code, "fits into 15.00 GB" in out) == (0, True)
    small = [replace(plan, memory={"decoder": 4e8}) for plan in Planner(GPU).plan(recipe())]
    half = Remedy(overrides=("a=1", "b=[c,d]"), added=("b=[c,d]",), cost="slower", plans=tuple(small))
    monkeypatch.setattr(remedies, "find_remedies", lambda planner, recipe, limit: [half] if limit > 4e8 else [])
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "0.5GB")
    assert (code, "DOES NOT FIT: one needs 0.6" in out, "  'b=[c,d]'   <- fits\n" in out) == (1, True, True)
    assert out.endswith(f"FITS with 0.40 GB:\n  minivl train {path} a=1 'b=[c,d]'\n")
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "1MB")
    assert (code, "NOTHING FITS; the least is 0.6" in out) == (1, True)
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "1MB", "--json")
    assert (code, json.loads(out)["fits"]) == (1, False)
    code, _, err = minivl("plan", path, "--memory", "much")
    assert (code, "24GB" in err) == (2, True)
