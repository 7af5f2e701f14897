"""Plans: memory by parts against counts and a real step, work of a stage, changes that fit, errors explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mini_internvl.recipes import LoraRecipe
from mini_internvl.train import trace
from mini_internvl.train.batches import micro_batches
from mini_internvl.train.plan import GPUS, Machine, Planner, find_machine, planned_model
from mini_internvl.train.remedies import explain_out_of_memory, find_remedies, is_out_of_memory

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
    stage = recipe().stages[0]
    plan = Planner(CPU).plan_stage(recipe(), replace(stage, batch_size=2), batch)
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
    assert "of the first" in plan.sizes


def test_without_its_data_a_stage_is_planned_with_the_most_tiles(recipe):
    changed = recipe()
    source = replace(changed.stages[0].data[0], path="nowhere.jsonl")
    changed = replace(changed, stages=(replace(changed.stages[0], data=(source,)),))
    plan = Planner(CPU).plan(changed)[0]
    assert "assumed: one image of 3 tiles" in plan.sizes
    assert "nowhere.jsonl" in plan.sizes


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
    large = recipe({"batch_size": 8, "micro_batch": 8})
    needed = planner.plan(large)[0].total
    found = find_remedies(planner, large, needed - 1)
    assert found[-1].overrides == ("stages.0.micro_batch=4",)
    assert found[-1].total < needed
    assert any("checkpointing" in one for one in find_remedies(planner, large, 1)[3].overrides)
    hopeless = find_remedies(planner, large, 1)
    assert hopeless[-1].total > 1
    assert "lora.rank=16" in hopeless[-1].overrides


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


def test_the_command_says_whether_it_fits(minivl, recipe, tmp_path):
    from mini_internvl.recipes import to_dict

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(to_dict(recipe())))
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "15GB")
    assert (code, "fits into 15.00 GB" in out) == (0, True)
    code, out, _ = minivl("plan", path, "--device", "T4", "--memory", "1MB", "--json")
    assert (code, json.loads(out)["fits"]) == (1, False)
    code, _, err = minivl("plan", path, "--memory", "much")
    assert (code, "24GB" in err) == (2, True)
