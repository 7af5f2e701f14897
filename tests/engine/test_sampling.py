"""Drawing tokens: each rule against plain arithmetic, and together in batches."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch

from mini_internvl.engine import GenerationConfig, constraints, load
from mini_internvl.engine.engine import user
from mini_internvl.engine.sampling import Sampler, draw
from mini_internvl.engine.text import TextStream
from mini_internvl.inputs.tokenizer_files import load_tokenizer

TOKENIZERS = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parents[1] / "golden" / "data") / "tokenizers"


def drawn(config, weights, count=3000):
    """How often each token is drawn, as shares."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor(weights).log()
    found = torch.tensor([draw(logits, config, generator) for _ in range(count)])
    return (found.bincount(minlength=len(weights)) / count).tolist()


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [0.1, 0.2, 0.0, 0.7]),
        ({"temperature": 0.5}, [0.01 / 0.54, 0.04 / 0.54, 0.0, 0.49 / 0.54]),
        ({"top_k": 2}, [0.0, 2 / 9, 0.0, 7 / 9]),
        ({"top_p": 0.7}, [0.0, 0.0, 0.0, 1.0]),
        ({"top_p": 0.8}, [0.0, 2 / 9, 0.0, 7 / 9]),
        ({"min_p": 0.2}, [0.0, 2 / 9, 0.0, 7 / 9]),
        ({"min_p": 1.0}, [0.0, 0.0, 0.0, 1.0]),
        ({"top_k": 3, "top_p": 0.95, "min_p": 0.1}, [0.1, 0.2, 0.0, 0.7]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_settings_say(settings, shares):
    found = drawn(GenerationConfig(**{"temperature": 1.0, **settings}), [0.1, 0.2, 0.0, 0.7])
    assert found == pytest.approx(shares, abs=0.03)


def test_what_was_seen_becomes_less_likely():
    """As in transformers: prompt and answer count, positive logits are divided and negative ones multiplied."""
    logits = torch.tensor([4.0, 3.0, 2.5, -1.0])
    sampler = Sampler(GenerationConfig(repetition_penalty=2.0), [0])
    assert [sampler.pick(logits).token for _ in range(4)] == [1, 2, 0, 0]
    assert logits.tolist() == [4.0, 3.0, 2.5, -1.0]
    low = torch.tensor([-1.0, -1.5])
    assert Sampler(GenerationConfig(repetition_penalty=2.0), [0]).pick(low).token == 1


@pytest.mark.parametrize("temperature", [1e-46, 1e-38, 1e-7])
def test_the_lowest_temperatures_draw_the_likeliest_token(temperature):
    logits, config = torch.tensor([1.0, 20.0, -torch.inf, 30.0]), GenerationConfig(temperature=temperature)
    assert {draw(logits, config, torch.Generator().manual_seed(seed)) for seed in range(5)} == {3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_drawn_of_logits_that_are_no_numbers(value):
    """A number behind the vocabulary would end the answers of all others at the next forward."""
    with pytest.raises(ValueError, match="the model's logits are"):
        draw(torch.full((4,), value), GenerationConfig(temperature=1.0), torch.Generator())


class Only:
    """A constraint that allows some tokens."""

    def __init__(self, *tokens):
        self.tokens = torch.tensor(tokens)

    def allow(self, logits):
        return torch.full_like(logits, -torch.inf).index_copy(0, self.tokens, logits[self.tokens])

    def accept(self, token):
        return False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_goes_before_the_rule_against_repetition(temperature):
    config = GenerationConfig(no_repeat_ngram=1, temperature=temperature)
    assert Sampler(config, [2], matcher=Only(2)).pick(torch.zeros(4)).token == 2
    assert Sampler(config, [2], matcher=Only(2, 3)).pick(torch.zeros(4)).token == 3
    assert Sampler(config, [0, 1, 2, 3]).pick(torch.tensor([0.0, 0.0, 900.0, 0.0])).token == 2  # nothing else is left


def test_a_token_that_a_constraint_does_not_allow_is_an_error(engine):
    pytest.importorskip("llguidance")
    matcher = engine._constraints.matcher(constraints.choice(["yes"]))
    with pytest.raises(ValueError, match="the constraint cannot be held to: "):
        matcher.accept(engine.tokenizer.encode("no")[0])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_comes_twice(size):
    sampler = Sampler(GenerationConfig(no_repeat_ngram=size, temperature=1.0, seed=0), [0, 1, 2, 0])
    tokens = [0, 1, 2, 0]
    for _ in range(4):
        tokens.append(sampler.pick(torch.zeros(8)).token)
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    again = [run for run in runs if runs.count(run) > 1]
    assert again == ([(0,), (0,)] if size == 1 else [])  # the prompt's own


def test_log_probabilities_are_the_models_own(engine):
    config = GenerationConfig(max_new_tokens=5, logprobs=3, temperature=1.5, seed=2, top_k=3)
    reply = engine.chat(user("What is this?"), config)
    ids = engine.prepare(user("What is this?")).input_ids
    assert len(reply.logprobs) == reply.tokens
    with torch.no_grad():
        logs = engine.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    values, tokens = logs.topk(3)
    first = reply.logprobs[0]
    assert [value for _, value in first.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert [text for text, _ in first.top] == [engine.tokenizer.decode([int(t)], skip_special=False) for t in tokens]
    assert (first.token, pytest.approx(first.logprob, abs=1e-6)) in [(text, value) for text, value in first.top]
    assert engine.chat(user("What is this?"), GenerationConfig(max_new_tokens=5)).logprobs == ()


def test_settings_of_requests_in_one_batch_do_not_mix(engine):
    configs = [
        GenerationConfig(max_new_tokens=8),
        GenerationConfig(max_new_tokens=6, temperature=5.0, seed=1, top_p=0.9),
        GenerationConfig(max_new_tokens=8, repetition_penalty=50.0),
        GenerationConfig(max_new_tokens=4, no_repeat_ngram=2, logprobs=0),
    ]
    prompt = engine.prepare(user("What is this?"))
    alone = [engine.generate([prompt], config)[0] for config in configs]
    together = engine.scheduler.answer([engine.requests([prompt], config)[0] for config in configs])
    assert [[step.token for step in steps] for steps in together] == [[s.token for s in steps] for steps in alone]
    assert len({tuple(step.token for step in steps) for steps in alone}) > 2


def test_an_answer_ends_before_its_stop_text(engine):
    messages = user("What is this?")
    whole = engine.chat(messages, GenerationConfig(max_new_tokens=30)).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    config = GenerationConfig(max_new_tokens=30, stop=("never in it", stop))
    reply = engine.chat(messages, config)
    assert reply.text == whole[: whole.index(stop)].strip()
    assert reply.finish_reason == "stop"
    assert reply.tokens < 30
    assert "".join(engine.stream(messages, config)).strip() == reply.text


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["car", "bus"]}, "seen": {"type": "boolean"}},
    "required": ["kind", "seen"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", sorted(path.name for path in TOKENIZERS.iterdir()))
def test_an_answer_has_the_form_that_is_asked_for_whatever_the_model_prefers(kind):
    """On the tokenizer of each kind of language model, with random logits."""
    pytest.importorskip("llguidance")
    tokenizer = load_tokenizer(TOKENIZERS / kind)
    stops = [tokenizer.token_id(text) for text in ("<|im_end|>", "<|end|>") if text in tokenizer.added]
    size = tokenizer.size + 64
    maker = constraints.Constraints(tokenizer, stops, size)
    forms = [constraints.choice(["yes", "no (not at all)"]), constraints.regex("[0-9]{2}:[0-5][0-9]")]
    texts = [said(maker, form, tokenizer, stops, size) for form in [*forms, constraints.json_schema(SCHEMA)]]
    assert texts[0] in ("yes", "no (not at all)")
    assert re.fullmatch("[0-9]{2}:[0-5][0-9]", texts[1])
    value = json.loads(texts[2])
    assert value.keys() == {"kind", "seen"}
    assert value["kind"] in ("car", "bus")
    assert isinstance(value["seen"], bool)


def said(maker, form, tokenizer, stops, size):
    sampler = Sampler(GenerationConfig(constraint=form), [], matcher=maker.matcher(form))
    numbers, stream, text = torch.Generator().manual_seed(1), TextStream(tokenizer), ""
    for _ in range(400):
        token = sampler.pick(torch.randn(size, generator=numbers)).token
        if token in stops:
            break
        assert tokenizer.has_id(token)
        text += stream.push(token)[0]
        if sampler.complete:
            break
    return text + stream.finish()


def test_an_engine_answers_in_the_form_that_is_asked_for(engine):
    pytest.importorskip("llguidance")
    config = GenerationConfig(max_new_tokens=20, constraint=constraints.choice(["a car", "a bus"]))
    replies = engine.chat_batch([user("What is it?"), user("And this?")], config)
    assert {reply.text for reply in replies} <= {"a car", "a bus"}
    assert [reply.finish_reason for reply in replies] == ["stop", "stop"]
    assert "".join(engine.stream(user("What is it?"), config)) == replies[0].text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.choice([]), "give one or more texts"),
        (lambda: constraints.choice(["a", ""]), "none of them empty"),
        (lambda: constraints.json_schema("{"), "the JSON schema is no JSON"),
        (lambda: constraints.json_schema("[1]"), "no JSON object"),
    ],
)
def test_impossible_forms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_form_that_cannot_be_used_is_told_before_any_work(engine):
    pytest.importorskip("llguidance")
    for form in (constraints.regex("((("), constraints.json_schema({"type": "nonsense"})):
        with pytest.raises(ValueError, match=r"the (regular expression|JSON schema) cannot be used: "):
            engine.chat(user("Q"), GenerationConfig(constraint=form))


def test_without_the_extra_its_install_line_is_told(checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    engine = load(checkpoint, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=r'pip install "mini-internvl\[constraints\]"'):
        engine.chat(user("Q"), GenerationConfig(constraint=constraints.choice(["a"])))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1"),
        ({"stop": "a"}, "give a sequence of texts"),
        ({"stop": ("",)}, "none of them empty"),
        ({"logprobs": 21}, "logprobs is 21; it must be 0 to 20"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**setting)


def test_seeds_differ(engine):
    texts = {
        engine.chat(user("Q"), GenerationConfig(max_new_tokens=8, temperature=2.0, seed=seed)).text for seed in range(4)
    }
    assert len(texts) > 2
    assert all(a is not b for a, b in itertools.pairwise(texts))
