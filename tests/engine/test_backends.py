"""Back ends: whatever is computed together, each slot gets the logits of its own tokens alone."""

from __future__ import annotations

import random

import pytest
import torch

from mini_internvl.engine.backends import Piece
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.model.vlm import TokenCountError

LOGITS = 2e-4  # absolute, float32


@pytest.fixture
def backend(engine):
    return TorchBackend(engine.model)


def alone(engine, ids, visual=None):
    """(V,) logits of the last token, by the plain forward."""
    with torch.inference_mode():
        return engine.model(torch.tensor([ids]), visual_tokens=visual)[0, -1]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=LOGITS, rtol=LOGITS)


def test_random_schedules_of_slots_give_the_logits_of_each_alone(engine, backend):
    """Slots of many sizes are opened, forked and closed while others are read in chunks and token by token."""
    chance = random.Random(0)
    room = backend.free_tokens()
    held: dict[int, list[int]] = {}
    for _ in range(40):
        if len(held) > 12 or (held and chance.random() < 0.1):
            backend.close(gone := chance.choice(list(held)))
            del held[gone]
        if (full := [slot for slot, ids in held.items() if ids]) and chance.random() < 0.2:
            slot = chance.choice(full)
            count = chance.randint(1, len(held[slot]))
            held[backend.fork(slot, count, count + 150)] = held[slot][:count]
        while not held or chance.random() < 0.4:
            slot = backend.open(chance.choice([150, 200, 400]))
            held[slot] = []
        chosen = chance.sample(list(held), chance.randint(1, len(held)))
        pieces = []
        for slot in chosen:
            most = 140 - len(held[slot])
            if most <= 0:
                continue
            count = min(most, chance.choice([1, 1, 1, 2, 7]) if held[slot] else chance.randint(1, 30))
            ids = [chance.randrange(5, 200) for _ in range(count)]
            pieces.append(Piece(slot=slot, ids=ids, prompt_length=0))
            held[slot] += ids
        if not pieces:
            continue
        logits = backend.forward(pieces)
        for piece, row in zip(pieces, logits, strict=True):
            close(row, alone(engine, held[piece.slot]))
    for slot in held:
        backend.close(slot)
    assert backend.free_tokens() == room
    assert not any(backend.slots._slabs.values())


def test_visual_tokens_may_come_in_several_chunks(engine, backend):
    image, count = engine.model.image_token_id, engine.model.config.tokens_per_tile
    visual = torch.randn(2, count, engine.model.config.llm.hidden_size)
    ids = [7, 8, *[image] * 2 * count, 9, 10]
    slot, other = backend.open(len(ids) + 1), backend.open(9)
    rows = visual.flatten(0, 1)
    for begin, end in ((0, 4), (4, 5), (5, len(ids))):
        part = rows[max(0, begin - 2) : end - 2] if end < len(ids) else rows[begin - 2 :]
        pieces = [
            Piece(slot=other, ids=[3 + begin], prompt_length=3),
            Piece(slot=slot, ids=ids[begin:end], prompt_length=len(ids), visual=part),
        ]
        logits = backend.forward(pieces)
    close(logits[1], alone(engine, ids, visual))
    written = backend.forward([Piece(slot=slot, ids=[image], prompt_length=len(ids))])  # a token like any other
    assert written.isfinite().all()


def test_an_error_leaves_the_slots_as_they_were(engine, backend):
    slot, image = backend.open(20), engine.model.image_token_id
    backend.forward([Piece(slot=slot, ids=[5, 6, 7], prompt_length=3)])
    with pytest.raises(TokenCountError, match="holds 1 <IMG_CONTEXT> tokens but the images give 2"):
        backend.forward([Piece(slot=slot, ids=[image], prompt_length=4, visual=torch.zeros(2, 48))])
    logits = backend.forward([Piece(slot=slot, ids=[9], prompt_length=4)])
    close(logits[0], alone(engine, [5, 6, 7, 9]))
