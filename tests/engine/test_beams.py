"""Beam search: the answers of transformers, whatever the width, the penalty of length and where answers end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mini_internvl import GenerationConfig
from mini_internvl.engine import beams
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.engine import user
from mini_internvl.engine.requests import Request
from mini_internvl.engine.scheduler import Scheduler
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh
from tests.engine.test_backbones import LLMS, VISION

STOPS = (3, 5, 17)


@pytest.fixture(scope="module")
def models():
    model = fresh(VLMConfig.from_official(compose(VISION, LLMS["qwen2"], image_size=56, max_tiles=4)), seed=1).eval()
    theirs = Qwen2ForCausalLM(Qwen2Config(**LLMS["qwen2"])).eval()
    state = {
        name if name == "lm_head.weight" else f"model.{name}": tensor
        for name, tensor in model.language_model.state_dict().items()
    }
    theirs.load_state_dict(state)
    return Scheduler(TorchBackend(model)), theirs


def answered(scheduler, prompts, **settings):
    """Tokens of the answers, with why each ends."""
    config = GenerationConfig(**settings)
    requests = [Request(ids=ids, config=config, stop_ids=frozenset(STOPS)) for ids in prompts]
    return [
        ([step.token for step in steps if step.token is not None], steps[-1].finish_reason)
        for steps in beams.search(scheduler, requests)
    ]


@torch.inference_mode()
def wanted(theirs, ids, width, length_penalty, longest):
    found = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        num_beams=width,
        length_penalty=length_penalty,
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=list(STOPS),
        pad_token_id=STOPS[0],
    )[0, len(ids) :].tolist()
    end = next((place for place, token in enumerate(found) if token in STOPS), None)
    return found[:end], "length" if end is None else "stop"


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [2, 3, 8])
def test_answers_are_those_of_transformers(models, width, length_penalty):
    scheduler, theirs = models
    numbers = torch.Generator().manual_seed(width)
    prompts = [torch.randint(18, 50, (3 + n,), generator=numbers).tolist() for n in range(6)]
    found = answered(scheduler, prompts, beams=width, length_penalty=length_penalty, max_new_tokens=9)
    assert found == [wanted(theirs, ids, width, length_penalty, 9) for ids in prompts]
    assert len({tuple(tokens) for tokens, _ in found}) > 3
    assert length_penalty > 0 or "stop" in {reason for _, reason in found}


def test_a_likelier_answer_than_the_greedy_one_is_found(models):
    scheduler, theirs = models

    def logprob(ids, tokens):
        logits = theirs(torch.tensor([[*ids, *tokens]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(ids) - 1 + n, token]) for n, token in enumerate(tokens))

    numbers = torch.Generator().manual_seed(0)
    prompts = [torch.randint(18, 50, (6,), generator=numbers).tolist() for _ in range(10)]
    settings = {"max_new_tokens": 4, "length_penalty": 0.0}
    scores = []
    for width in (2, 10):
        with torch.inference_mode():
            scores.append(
                [
                    logprob(ids, one[0])
                    for ids, one in zip(prompts, answered(scheduler, prompts, beams=width, **settings), strict=True)
                ]
            )
    assert sum(scores[1]) > sum(scores[0])


def test_an_engine_gives_the_same_at_once_and_as_a_stream(engine, image):
    config = GenerationConfig(beams=3, max_new_tokens=6)
    asked = user("What colour is the square?", image)
    reply, stream = engine.chat(asked, config), engine.stream(asked, config)
    assert "".join(stream).strip() == reply.text
    [prompt] = engine.prepare_batch([asked])
    steps = beams.search(engine.scheduler, engine.requests([prompt], config))[0]
    assert reply.text == "".join(step.text for step in steps).strip() != ""
    assert reply.tokens <= 6


def test_many_prompts_are_read_once_each(models):
    """More beams than the scheduler keeps requests: they take turns, or each token would read its prompt again."""
    scheduler, _ = models
    counted = CountingBackend(scheduler.backend)
    prompts = [[n, *range(18, 48), n] for n in range(18, 48)]  # which share no beginning
    answered(Scheduler(counted), prompts, beams=4, max_new_tokens=6)
    assert counted.read < 30 * (32 + 4 * 6 * 2)


class CountingBackend:
    """A back end that counts the tokens it reads."""

    def __init__(self, backend):
        self.backend, self.read = backend, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def forward(self, pieces):
        self.read += sum(len(piece.ids) for piece in pieces)
        return self.backend.forward(pieces)


def test_an_answer_never_holds_the_placeholder(models):
    """In the prompt of the next token the placeholder would ask for an image."""
    scheduler, _ = models
    backend = CountingBackend(scheduler.backend)
    ids = [20, 21, 22]
    [(tokens, _)] = answered(scheduler, [ids], beams=4, max_new_tokens=6)
    backend.config = replace(scheduler.backend.config, image_token_id=tokens[0])
    [(others, _)] = answered(Scheduler(backend), [ids], beams=4, max_new_tokens=6)
    assert tokens[0] not in others


def test_an_answer_ends_where_the_models_positions_do(models):
    scheduler, theirs = models
    backend, ids = CountingBackend(scheduler.backend), [20, 21, 22]
    config = scheduler.backend.config
    rope = replace(config.llm.rope, max_positions=len(ids) + 2)
    backend.config = replace(config, llm=replace(config.llm, rope=rope))
    [(tokens, reason)] = answered(Scheduler(backend), [ids], beams=4, max_new_tokens=6, length_penalty=2.0)
    assert (tokens, reason) == (wanted(theirs, ids, 4, 2.0, 2)[0], "context")
    assert len(tokens) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.5}, "temperature cannot be set"),
        ({"stop": ("a",)}, "stop cannot be set"),
        ({"beams": 0}, "beams is 0; it must be 1 to 10"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"beams": 1, "length_penalty": 2.0}, "needs beams"),
    ],
)
def test_what_beams_cannot_do_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        GenerationConfig(**{"beams": 2, **settings})
