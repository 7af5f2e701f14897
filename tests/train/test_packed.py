"""Packed rows: many documents in one row cost and teach what each does in a row of its own, for every backbone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mini_internvl.data.rows import read_samples
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import fresh
from mini_internvl.records import Sample
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.learner import Learner

BACKBONES = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 20},
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "max_position_embeddings": 200,  # shorter than some of the rows
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 200,
        "sliding_window": 50,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        },
    },
}


@pytest.fixture(params=BACKBONES)
def backbone(request, checkpoint, process, stage):
    """A learner with a tiny fresh model, and what makes examples for it."""
    raw = json.loads((checkpoint / "config.json").read_text())
    raw["llm_config"] = {**raw["llm_config"], **BACKBONES[request.param]}
    config = replace(VLMConfig.from_official(raw), image_token_id=process.processor.config.image_token_id)
    model = fresh(config, seed=3)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(3)  # attention that differs from token to token
    return Learner(model, stage()), replace(
        process, processor=replace(process.processor, config=config), max_length=2000
    )


@pytest.fixture
def mixed(rows, backbone):
    """Text, one image, many images, and independent questions with a shared prefix."""
    picture = {"type": "image", "image": Image.effect_noise((56, 56), 90).convert("RGB")}
    asked = [[picture, {"type": "text", "text": "What is it?"}], "A dog.", "How many do you see?", "1", "Why?", "No."]
    turns = [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(asked)]
    samples = [*read_samples(rows), Sample(id="q", messages=turns, independent=True)]
    return [backbone[1](sample) for sample in samples]


def measured(learner, batches):
    learner.zero_grad()
    loss = torch.stack([learner(batch)["loss"] for batch in batches]).sum()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max()), name


def test_packed_equals_separate(backbone, mixed):
    learner, _ = backbone
    packed = packed_batch(mixed)
    assert len(packed.input_ids) == 1
    assert packed.segment_ids.max() >= 2
    lengths = [len(example.input_ids) for example in mixed]
    assert min(lengths) < 200 < max(lengths)  # on both sides of the rotary limits
    alone = measured(learner, [packed_batch([example]) for example in mixed])
    same(measured(learner, [packed]), alone)
    same(measured(learner, [collate(mixed, 9)]), alone)


def test_padding_behind_a_pack_changes_nothing(backbone, mixed):
    learner, _ = backbone
    packed = packed_batch(mixed)

    def longer(ids, value):
        return torch.cat([ids, torch.full((1, 37), value)], dim=1)

    names = {"input_ids": 5, "labels": -100, "attention_mask": 0, "position_ids": 0}
    ids = {name: longer(getattr(packed, name), value) for name, value in names.items()}
    ids |= {name: longer(getattr(packed, name), -1) for name in ("segment_ids", "document_ids")}
    same(measured(learner, [replace(packed, **ids)]), measured(learner, [packed]))


def test_documents_that_saw_each_other_would_learn_otherwise(backbone, mixed):
    learner, _ = backbone
    packed = packed_batch(mixed)
    _, seen = measured(learner, [replace(packed, document_ids=None)])
    _, apart = measured(learner, [packed])
    furthest = max((seen[name] - apart[name]).abs().max() / apart[name].abs().max() for name in apart)
    assert furthest > 1e-2  # the losses may be alike by chance; a thousand times what ``same`` allows
