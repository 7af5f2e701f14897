"""Tiny checkpoints of every kind: hidden states, visual tokens, logits, loss, gradients and greedy tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.engine.scheduler import Scheduler
from mini_internvl.model.checkpoint import load_model, load_vision, to_official
from mini_internvl.model.vlm import InternVL

MODELS = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parent / "data") / "models"
LOGITS = 1e-4  # absolute, float32, unmasked positions
Tensors = dict[str, torch.Tensor]


def _folders(chat: bool) -> list[Path]:
    return [path for path in sorted(MODELS.iterdir()) if (path / "expected.json").exists() == chat]


def _cases() -> list:
    """(folder, case) for every recorded input of every model."""
    found = []
    for folder in _folders(chat=True):
        names = {key.partition(".")[0] for key in load_file(folder / "expected.safetensors") if "." in key}
        found += [pytest.param(folder, name, id=f"{folder.name}-{name}") for name in sorted(names)]
    return found


def _load(folder: Path) -> InternVL:
    model = load_model(folder)
    model.image_token_id = json.loads((folder / "expected.json").read_text())["img_context_token_id"]
    return model


def _case(folder: Path, name: str) -> Tensors:
    tensors = load_file(folder / "expected.safetensors")
    return {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def test_there_are_models():
    assert _cases()


@pytest.mark.parametrize(("folder", "name"), _cases())
def test_forward_equals_the_original(folder, name):
    model, expected = _load(folder), _case(folder, name)
    with torch.no_grad():
        states = torch.stack(model.vision_model.hidden_states(expected["pixel_values"]))
        torch.testing.assert_close(states, expected["vit_hidden_states"], atol=LOGITS, rtol=0)
        visual = model.encode_images(expected["pixel_values"])
        torch.testing.assert_close(visual, expected["visual_tokens"], atol=LOGITS, rtol=0)
        logits = model(expected["input_ids"], expected["pixel_values"], expected["attention_mask"])
    real = expected["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected["logits"][real], atol=LOGITS, rtol=0)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), expected["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, expected["loss"].squeeze(), atol=LOGITS, rtol=0)


@pytest.mark.parametrize(("folder", "name"), _cases())
def test_greedy_tokens_equal_the_original(folder, name):
    model, expected = _load(folder), _case(folder, name)
    pairs = zip(expected["input_ids"], expected["attention_mask"], strict=True)
    prompts = [ids[mask.bool()].tolist() for ids, mask in pairs]
    wanted = expected["greedy_new_tokens"]
    tiles = [ids.count(model.image_token_id) // model.config.tokens_per_tile for ids in prompts]
    pixels = expected["pixel_values"].split(tiles)
    requests = [
        Request(
            ids=ids,
            config=GenerationConfig(max_new_tokens=wanted.shape[1]),
            stop_ids=frozenset(),
            images=[ImageInput(key=str(number), pixel_values=own)] if len(own) else [],
        )
        for number, (ids, own) in enumerate(zip(prompts, pixels, strict=True))
    ]
    answers = Scheduler(TorchBackend(model)).answer(requests)
    assert [[step.token for step in steps] for steps in answers] == wanted.tolist()


@pytest.mark.parametrize("folder", _folders(chat=True), ids=lambda folder: folder.name)
def test_gradient_norms_equal_the_original(folder):
    facts = json.loads((folder / "expected.json").read_text())
    model = _load(folder)
    for key, norms in ((key, value) for key, value in facts.items() if key.startswith("grad_norm_")):
        model.zero_grad()
        expected = _case(folder, key.removeprefix("grad_norm_"))
        logits = model(expected["input_ids"], expected["pixel_values"], expected["attention_mask"])
        F.cross_entropy(logits[:, :-1].flatten(0, 1), expected["labels"][:, 1:].flatten()).backward()
        for part, norm in norms.items():
            gradients = [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
            ours = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            assert ours.item() == pytest.approx(norm, rel=1e-3), part


@pytest.mark.parametrize("folder", _folders(chat=True), ids=lambda folder: folder.name)
def test_official_tensors_survive_reading_and_writing_back(folder):
    model, source = load_model(folder), load_file(folder / "model.safetensors")
    written = to_official(model)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[key], source[key]) for key in source)
    facts = json.loads((folder / "expected.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]


@pytest.mark.parametrize("folder", _folders(chat=False), ids=lambda folder: folder.name)
def test_a_bare_encoder_equals_the_original(folder):
    model, expected = load_vision(folder), load_file(folder / "expected.safetensors")
    with torch.no_grad():
        states = torch.stack(model.hidden_states(expected["pixel_values"]))
        torch.testing.assert_close(states, expected["hidden_states"], atol=LOGITS, rtol=0)
        torch.testing.assert_close(states[-1][:, 0], expected["pooled"], atol=LOGITS, rtol=0)
        for key in (key for key in expected if key.endswith(".pixel_values")):
            other = expected[key.replace("pixel_values", "last_hidden_state")]
            torch.testing.assert_close(model(expected[key]), other, atol=LOGITS, rtol=0)
