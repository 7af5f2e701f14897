"""Generation on each language model: a batch answers as each prompt alone, and as the plain forward does."""

from __future__ import annotations

import pytest
import torch

from mini_internvl import plugins
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.engine.scheduler import Limits, Scheduler
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh
from tests.model.conftest import VISION as TINY_VISION

IMAGE, TILE = 54, 4
STOPS = frozenset(range(3, 61, 7))
VISION = {**TINY_VISION, "num_hidden_layers": 1}
CHANGES = {
    "internlm2": {  # a longer sequence has another base
        "max_position_embeddings": 32,
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
    },
    "phi3": {"sliding_window": 24},  # a longer sequence has the long factors
}
LLMS = {
    name: {**plugins.find("model.llms", name).EXAMPLE, "initializer_range": 0.4, **CHANGES.get(name, {})}
    for name in plugins.list_names("model.llms")
}
LLMS["qwen2, scaled"] = {**LLMS["qwen2"], **CHANGES["internlm2"]}


@pytest.fixture(params=sorted(LLMS))
def model(request):
    raw = compose(VISION, LLMS[request.param], image_size=56, max_tiles=4)
    model = fresh(VLMConfig.from_official(raw), seed=1)
    model.image_token_id = IMAGE
    return model.eval()


def prompts():
    """Lengths on both sides of 32, which some cross while they are answered; images: two groups share theirs."""
    numbers = torch.Generator().manual_seed(0)

    def text(count):
        return torch.randint(1, 50, (count,), generator=numbers).tolist()

    red, blue = [1, *[IMAGE] * TILE, 2], [3, *[IMAGE] * 2 * TILE, 4]
    rows = [(text(5), "a"), (text(30), "b"), (text(40), "c"), ([*red, *text(2)], "d")]
    rows += [([*red, *text(n)], "red") for n in (4, 9, 22, 31, 33)]
    rows += [([*blue, *text(n)], "blue") for n in (3, 50)]
    return [ids for ids, _ in rows], [key for _, key in rows]


def drawn(model, ids, visual, config, keys, limits=None):
    """Tokens of each answer, by a scheduler that has nothing kept; ``None`` for a stop token."""
    requests = [
        Request(
            ids=row,
            config=config,
            stop_ids=STOPS,
            images=[] if tokens is None else [ImageInput(key=key, visual=tokens.flatten(0, 1))],
        )
        for row, tokens, key in zip(ids, visual, keys, strict=True)
    ]
    answers = Scheduler(TorchBackend(model), limits=limits).answer(requests)
    return [[step.token for step in steps] for steps in answers]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_answers_as_each_prompt_alone(model, temperature):
    config = GenerationConfig(max_new_tokens=8, temperature=temperature, seed=3)
    ids, keys = prompts()
    torch.manual_seed(0)
    tiles = {key: torch.randn(2 if key == "blue" else 1, 3, 56, 56) for key in sorted(set(keys))}
    with torch.inference_mode():
        visual = [model.encode_images(tiles[key]) if IMAGE in row else None for row, key in zip(ids, keys, strict=True)]
    alone = [drawn(model, [row], [tokens], config, "x")[0] for row, tokens in zip(ids, visual, strict=True)]
    assert len({tuple(answer) for answer in alone}) > 5
    assert len({len(answer) for answer in alone}) > 1
    assert drawn(model, ids, visual, config, keys) == alone
    small = Limits(requests=4, tokens=16, tokens_beside=5)  # they join and leave, and prompts come in chunks
    assert drawn(model, ids, visual, config, keys, small) == alone


def test_answers_are_those_of_the_plain_forward(model):
    """Up to where the rotation changes; there the keys in the cache keep the rotation they have, as in the original."""
    model.image_token_id = None
    numbers = torch.Generator().manual_seed(2)
    for count in (3, 14, 26) if model.config.llm.rope.kind == "dynamic" else (3, 26, 33, 50):
        ids = torch.randint(1, 50, (count,), generator=numbers).tolist()
        [answer] = drawn(model, [ids], [None], GenerationConfig(max_new_tokens=6), "x")
        row = list(ids)
        for token in answer:
            with torch.no_grad():
                wanted = int(model(torch.tensor([row]))[0, -1].argmax())
            assert wanted == token or (token is None and wanted in STOPS)
            row.append(wanted)
