"""OpenVINO in float32 against torch: logits and greedy tokens of every language model, slots, forks, visual tokens."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mini_internvl import plugins
from mini_internvl.engine.backends import Piece
from mini_internvl.engine.backends import openvino as backend_file
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh
from mini_internvl.model.vlm import TokenCountError
from tests.engine.test_backbones import CHANGES
from tests.model.conftest import VISION

pytest.importorskip("openvino")
from mini_internvl.engine.backends import _openvino_graph as graphs

LOGITS = 2e-4  # absolute, float32
IMAGE = 54


SIGNAL = """
import faulthandler, os, signal, sys
from pathlib import Path
from mini_internvl.engine.backends import openvino
faulthandler.enable()  # gives the thread a stack for signals
first, second = (openvino.load(Path(sys.argv[1])) for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def make(llm, vision=VISION):
    example = plugins.find("model.llms", llm).EXAMPLE
    raw = compose(vision, {**example, "initializer_range": 0.4, **CHANGES.get(llm, {})}, image_size=56, max_tiles=4)
    model = fresh(VLMConfig.from_official({**raw, "img_context_token_id": IMAGE}), seed=1)
    model.image_token_id = IMAGE
    return model.eval()


def in_openvino(model):
    parts = graphs.encoder_graph(model), graphs.decoder_graph(model.language_model)
    return backend_file.OpenVINOBackend(model.config, parts, name="float32", exact=True, model=model)


@torch.inference_mode()
def wanted(model, ids, visual=None):
    """(V,) logits after the ids, by the plain forward."""
    return model(torch.tensor([ids]), visual_tokens=visual)[0, -1]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=LOGITS, rtol=LOGITS)


@pytest.fixture(scope="module")
def qwen2():
    model = make("qwen2")
    return model, in_openvino(model)


@pytest.mark.parametrize("llm", plugins.list_names("model.llms"))
def test_every_language_model_gives_the_tokens_of_torch(llm):
    """A picture, a prompt longer than the sliding window and than the first rotation, and a greedy answer."""
    vision = {**VISION, "norm_type": "rms_norm", "qk_normalization": True} if llm == "qwen3" else VISION
    model = make(llm, vision)
    backend = in_openvino(model)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    visual = backend.encode(pixels)
    with torch.inference_mode():
        torch.testing.assert_close(visual, model.encode_images(pixels), atol=1e-5, rtol=1e-4)
    ids = [1, *[IMAGE] * visual[..., 0].numel(), *range(2, 40)]
    slot, prompt = backend.open(len(ids) + 8), len(ids)
    logits = backend.forward([Piece(slot=slot, ids=ids, prompt_length=prompt, visual=visual.flatten(0, 1))])
    answer = []
    for _ in range(8):
        close(logits[0], wanted(model, ids, visual))
        answer.append(int(logits[0].argmax()))
        ids.append(answer[-1])
        if llm == "internlm2":
            break  # its later keys are rotated for another length than one forward over all would take
        logits = backend.forward([Piece(slot=slot, ids=answer[-1:], prompt_length=prompt)])
    assert len(set(answer)) > 1 or llm == "internlm2"


def test_random_schedules_of_slots_give_the_logits_of_each_alone(qwen2):
    model, backend = qwen2
    chance, room = random.Random(0), backend.free_tokens()
    held: dict[int, list[int]] = {}
    for _ in range(40):
        if len(held) > 9 or (held and chance.random() < 0.1):
            backend.close(gone := chance.choice(list(held)))
            del held[gone]
        if held and chance.random() < 0.3:
            slot = chance.choice(list(held))
            count = chance.randint(1, len(held[slot]))
            held[backend.fork(slot, count, 300)] = held[slot][:count]
        held.setdefault(backend.open(chance.choice([200, 300])), [])
        pieces = []
        for slot in chance.sample(list(held), chance.randint(1, len(held))):
            count = min(190 - len(held[slot]), chance.choice([1, 1, 7]) if held[slot] else chance.randint(1, 70))
            if count > 0:
                pieces.append(Piece(slot=slot, ids=[chance.randrange(5, 50) for _ in range(count)], prompt_length=0))
                held[slot] += pieces[-1].ids
        for slot in [slot for slot, ids in held.items() if not ids]:
            backend.close(slot)
            del held[slot]
        for piece, row in zip(pieces, backend.forward(pieces) if pieces else [], strict=True):
            close(row, wanted(model, held[piece.slot]))
    for slot in held:
        backend.close(slot)
    assert backend.free_tokens() == room


def test_visual_tokens_may_come_in_several_chunks_beside_text(qwen2):
    model, backend = qwen2
    visual = torch.randn(1, model.config.tokens_per_tile, model.config.llm.hidden_size)
    count = visual.shape[1]
    ids = [7, 8, *[IMAGE] * count, 9]
    slot, other = backend.open(len(ids)), backend.open(9)
    for begin, end in ((0, 3), (3, len(ids))):
        rows = visual[0, : end - 2] if begin == 0 else visual[0, begin - 2 :]
        text = Piece(slot=other, ids=[IMAGE], prompt_length=3)  # written by the model itself: a token like any other
        part = Piece(slot=slot, ids=ids[begin:end], prompt_length=len(ids), visual=rows)
        logits = backend.forward([text, part])
    close(logits[1], wanted(model, ids, visual))
    with pytest.raises(TokenCountError, match="holds 1 <IMG_CONTEXT> tokens but the images give 2"):
        backend.forward([Piece(slot=other, ids=[IMAGE], prompt_length=4, visual=visual[0, :2])])


def test_tiles_are_encoded_for_several_threads_at_once(qwen2):
    """Images whose tokens are reduced are encoded beside the scheduler's own."""
    _, backend = qwen2
    tiles = torch.randn(40, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    whole = backend.encode(tiles)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(backend.encode, tiles.split(10)))
    assert torch.equal(torch.cat(found), whole)


def test_without_openvino_the_install_line_is_told(monkeypatch, checkpoint):
    monkeypatch.setattr(backend_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'OpenVINO is not installed; pip install "mini-internvl\[openvino\]"'):
        backend_file.load(checkpoint)


def test_another_device_is_refused(checkpoint):
    with pytest.raises(ValueError, match='device is "cuda", but OpenVINO answers on the CPU'):
        backend_file.load(checkpoint, device="cuda")


def test_a_checkpoint_loads_as_it_is(checkpoint, engine):
    """A float checkpoint becomes graphs in memory; its configuration knows the placeholder."""
    found = backend_file.load(checkpoint, dtype="float32")
    assert found.arithmetic == "openvino cpu float32"
    assert found.config.image_token_id == engine.model.image_token_id
    logits = found.forward([Piece(slot=found.open(4), ids=[5, 6], prompt_length=2)])
    assert logits.shape == (1, found.config.llm.vocab_size)


def test_signals_are_handled_after_engines_are_gone(checkpoint):
    """They go in the order in which they came, which left the thread without its stack."""
    done = subprocess.run([sys.executable, "-c", SIGNAL, str(checkpoint)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
