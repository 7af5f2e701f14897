"""Recorded steps: a slab's next tokens in buffers that stay where they are give what the ordinary forward gives."""

from __future__ import annotations

import random

import pytest
import torch

from mini_internvl.engine import GenerationConfig, load
from mini_internvl.engine.backends import Piece, _recorded
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh
from tests.engine.test_backbones import IMAGE, LLMS, VISION

LOGITS = 2e-4  # absolute, float32


def make(llm):
    model = fresh(VLMConfig.from_official(compose(VISION, LLMS[llm], image_size=56, max_tiles=4)), seed=1)
    model.image_token_id = IMAGE
    return model.eval()


@pytest.fixture(params=sorted(set(LLMS) - {"phi3"}))
def model(request):
    """On both sides of its limits of length, which lie within the slots."""
    return make(request.param)


QUESTION = [{"role": "user", "content": "What is this?"}]


class Repeating:
    """Repeats a computation into the first result's memory, as a graph does; counts how often."""

    def __init__(self) -> None:
        self.recorded = self.repeated = 0

    def __call__(self, compute):
        self.recorded += 1
        result = compute()

        def repeat():
            self.repeated += 1
            result.copy_(compute())

        return repeat, result


@pytest.fixture(autouse=True)
def early(monkeypatch):
    monkeypatch.setattr(_recorded, "FIRST_STEPS", 1)


@torch.inference_mode()
def test_random_schedules_give_the_logits_of_the_ordinary_forward(model):
    """Slots come, fork and go between steps of some of them, alone or beside parts of prompts."""
    chance, recorder = random.Random(0), Repeating()
    plain, recorded = TorchBackend(model), TorchBackend(model)
    recorded.record_steps(recorder)
    held: dict[int, int] = {}
    for _ in range(120):
        if len(held) > 6 or (held and chance.random() < 0.1):
            gone = chance.choice(list(held))
            for backend in (plain, recorded):
                backend.close(gone)
            del held[gone]
        if not held or chance.random() < 0.2:
            most = chance.choice([60, 60, 90])
            held[plain.open(most)] = 0
            assert recorded.open(most) in held
        elif chance.random() < 0.1 and (given := [slot for slot, count in held.items() if count]):
            slot = chance.choice(given)
            new = plain.fork(slot, held[slot], 60)
            assert recorded.fork(slot, held[slot], 60) == new
            held[new] = held[slot]
        singles = chance.random() < 0.8
        pieces = []
        for slot in chance.sample(list(held), chance.randint(1, len(held))):
            count = 1 if singles and held[slot] else chance.randint(2, 20)
            if held[slot] + count <= 60:
                ids = [chance.randint(1, 50) for _ in range(count)]
                pieces.append(Piece(slot=slot, ids=ids, prompt_length=20))
                held[slot] += count
        if pieces:
            torch.testing.assert_close(recorded.forward(pieces), plain.forward(pieces), atol=LOGITS, rtol=LOGITS)
    assert recorder.repeated > 20
    assert 1 < recorder.recorded < recorder.repeated


def test_replaced_weights_are_recorded_again(checkpoint):
    """An engine notices them before the next request, and goes on recording."""
    recorder, plain = Repeating(), load(checkpoint, "torch", device="cpu", dtype="float32")
    engine = load(checkpoint, "torch", device="cpu", dtype="float32")
    engine.backend.record_steps(recorder)
    config = GenerationConfig(max_new_tokens=8)
    assert engine.chat(QUESTION, config).text == plain.chat(QUESTION, config).text
    before = recorder.recorded
    assert before > 0
    for one in (engine, plain):
        head = one.model.language_model.lm_head
        head.weight = torch.nn.Parameter(head.weight.flip(0))
    assert engine.chat(QUESTION, config).text == plain.chat(QUESTION, config).text
    assert recorder.recorded > before


@torch.inference_mode()
def test_slabs_without_slots_are_given_back(engine):
    backend = TorchBackend(engine.model)
    backend.record_steps(Repeating())
    slot = backend.open(40)
    for token in (4, 5, 6):
        backend.forward([Piece(slot=slot, ids=[token], prompt_length=3)])
    assert backend._recorded._steps
    backend.close(slot)
    assert not backend._recorded._steps
    assert not backend._recorded._given


@torch.inference_mode()
def test_a_full_slot_is_refused_and_changes_nothing(engine):
    backend = TorchBackend(engine.model)
    backend.record_steps(Repeating())
    slot, other = backend.open(40), backend.open(40)
    for token in range(64):
        backend.forward([Piece(slot=slot, ids=[token % 50], prompt_length=1)])
    with pytest.raises(AssertionError, match="a slot of 64 tokens is full"):
        backend.forward([Piece(slot=other, ids=[1], prompt_length=1), Piece(slot=slot, ids=[1], prompt_length=1)])
    assert backend.slots.length(other) == 0
    assert backend.slots.length(slot) == 64


def test_what_cannot_be_recorded_is_told(checkpoint):
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device; the model is on cpu"):
        load(checkpoint, "torch", device="cpu", cuda_graphs=True)
    with pytest.raises(ValueError, match="a model with LongRoPE, such as the 4B, cannot be recorded"):
        TorchBackend(make("phi3")).record_steps(Repeating())


@torch.inference_mode()
def test_a_recording_that_fails_names_the_setting(engine):
    def refuse(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    backend = TorchBackend(engine.model)
    backend.record_steps(refuse)
    slot = backend.open(40)
    backend.forward([Piece(slot=slot, ids=[1, 2], prompt_length=2)])
    backend.forward([Piece(slot=slot, ids=[3], prompt_length=2)])
    with pytest.raises(
        RuntimeError, match=r"cannot be recorded \(operation not permitted .*\); load without cuda_graphs"
    ):
        backend.forward([Piece(slot=slot, ids=[4], prompt_length=2)])
    assert backend.slots.length(slot) == 3


@torch.inference_mode()
def test_a_step_waits_for_no_value(model):
    """On the meta device, where a value that is read, or a shape that depends on one, raises as in a recording."""
    backend = TorchBackend(model.to("meta"))
    slots = [backend.open(40), backend.open(40)]
    places = [backend.slots.place_of(slot) for slot in slots]
    step = _recorded._Step(backend.model, places[0][0], lambda compute: (compute, compute()))
    pieces = [Piece(slot=slot, ids=[3], prompt_length=1) for slot in slots]
    assert step.run(pieces, [row for _, row in places]).shape == (2, model.config.llm.vocab_size)
