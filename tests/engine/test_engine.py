"""Answering: batches, streams, limits, sampling, and everything that is refused."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from PIL import Image

from mini_internvl.engine import Engine, GenerationConfig, load
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.engine import user
from mini_internvl.engine.hub import resolve
from mini_internvl.model.checkpoint import CheckpointError
from mini_internvl.model.sizes import fresh

SHORT = GenerationConfig(max_new_tokens=12)


def conversations():
    """Mixed lengths, no, one and several images, several turns."""
    wide, tall = Image.new("RGB", (200, 60), "red"), Image.new("RGB", (50, 160), "blue")
    return [
        user("What is this?", wide),
        user("Why?"),
        user("Which of the two images is red, and how do you know that? Explain.", tall, wide),
        [*user("What is it?", tall), {"role": "assistant", "content": "A car."}, *user("Sure?")],
        user("A.", Image.new("RGB", (56, 56))),
    ]


def test_a_batch_answers_as_each_would_alone(engine):
    together = engine.chat_batch(conversations(), SHORT)
    alone = [engine.chat(messages, SHORT) for messages in conversations()]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
    assert len({reply.text for reply in together}) > 2  # else the test says little
    assert [reply.tiles for reply in together] == [4, 0, 3 + 3, 4, 1]


def test_prompts_of_every_length_and_image_count_answer_as_alone(engine):
    """Read in several groups, some of one row, with none to two images, then answered together."""
    colours = ("red", "blue", "green")
    conversations = []
    for number in range(9):
        shown = [Image.new("RGB", (56 * (1 + number % 2), 56), colour) for colour in colours[: number % 3]]
        text = "What is this? " * (1 + number)
        content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": text}]
        conversations.append([{"role": "user", "content": content}])
    limits = GenerationConfig(max_new_tokens=6)
    alone = [engine.chat(messages, limits).text for messages in conversations]
    assert [reply.text for reply in engine.chat_batch(conversations, limits)] == alone


def test_questions_about_the_same_images_answer_as_alone(engine):
    """Their common beginning is read once; two groups, a single question and a text among them."""
    red, wide = Image.new("RGB", (56, 56), "red"), Image.new("RGB", (150, 60), "blue")
    asked = ["What is this?", "Why?", "What is the word in the image? " * 3, "Where?"]
    conversations = [user(text, red) for text in asked] + [user(text, wide, red) for text in asked[:3]]
    conversations += [user("What?", Image.new("RGB", (56, 112), "green")), user("Why?")]
    alone = [engine.chat(messages, SHORT).text for messages in conversations]
    tokens: list[int] = []
    hook = engine.model.language_model.layers[0].register_forward_hook(
        lambda layer, given, out: tokens.append(out.shape[0] * out.shape[1])
    )
    try:
        assert [reply.text for reply in engine.chat_batch(conversations, SHORT)] == alone
    finally:
        hook.remove()
    prompts = [len(engine.prepare(messages).input_ids) for messages in conversations]
    answers = sum(engine.chat(messages, SHORT).tokens for messages in conversations)
    assert sum(tokens) < sum(prompts) + answers
    assert len(set(alone)) > 2


def test_answers_under_a_memory_limit_are_those_without_one(engine, checkpoint):
    """The limit counts prompts and the tokens to come: longer answers let fewer requests run together."""
    prompts = [engine.prepare(messages) for messages in conversations()]
    together = engine.chat_batch(prompts, SHORT)
    most: list[int] = []
    for new in (12, 120):
        backend = TorchBackend(engine.model, kv_bytes=4 * 10**9 // TorchBackend(engine.model).free_tokens() * 900)
        rows: list[int] = []
        forward = backend.forward
        backend.forward = lambda pieces, forward=forward, rows=rows: rows.append(len(pieces)) or forward(pieces)
        replies = Engine(backend, checkpoint).chat_batch(prompts, GenerationConfig(max_new_tokens=new))
        assert all(reply.text.startswith(first.text) for reply, first in zip(replies, together, strict=True))
        assert backend.free_tokens() >= 0
        most.append(max(rows))
    assert most[0] > most[1] > 1


def test_what_is_kept_changes_no_answer(engine):
    """Two questions about an image and the next turns, with everything kept and with nothing."""
    image = Image.effect_noise((150, 60), 90).convert("RGB")
    first = engine.chat(user("What is this?", image), SHORT).text
    told = [*user("What is this?", image), {"role": "assistant", "content": first}, *user("Why?")]
    asked = [user("What is this?", image), user("Is it a car?", image), told]
    fresh = []
    for messages in asked:
        engine.forget()
        fresh.append(engine.chat(messages, SHORT).text)
    read = []
    hook = engine.model.language_model.layers[0].register_forward_hook(
        lambda layer, given, out: read.append(out.shape[1])
    )
    try:
        assert [engine.chat(messages, SHORT).text for messages in asked] == fresh
        kept = sum(read)
        read.clear()
        assert [engine.chat(messages, SHORT).text for messages in asked] == fresh
    finally:
        hook.remove()
    assert sum(read) < kept
    assert sum(read) <= 3 * (1 + SHORT.max_new_tokens)  # nothing but the last token of each prompt


def test_several_answers_to_one_question(engine):
    config = GenerationConfig(max_new_tokens=8, temperature=2.0, seed=5)
    replies = engine.choices(user("What is this?"), config, 3)
    alone = [engine.chat(user("What is this?"), dataclasses.replace(config, seed=5 + n)) for n in range(3)]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    assert len({reply.text for reply in replies}) > 1
    for temperature, count in ((0.0, 2), (1.0, 0)):
        with pytest.raises(ValueError, match=f"{count} answers at temperature"):
            engine.choices(user("Q"), GenerationConfig(temperature=temperature), count)


def test_weights_that_change_are_noticed(engine):
    changed = engine.with_model(copy.deepcopy(engine.model))
    messages = user("What is this?", Image.new("RGB", (56, 56), "red"))
    before = changed.chat(messages, SHORT).text
    with torch.no_grad():
        changed.model.language_model.layers[0].self_attn.v_proj.weight.mul_(-2.0)
    after = changed.chat(messages, SHORT).text
    assert after != before
    assert after == engine.with_model(changed.model).chat(messages, SHORT).text


@pytest.mark.parametrize("way", ["fused optimiser", "another tensor"])
def test_weights_that_change_without_a_new_version_are_noticed_too(engine, way):
    """Fused optimisers and ``p.data = ...`` leave torch's counter of changes as it is."""
    changed = engine.with_model(copy.deepcopy(engine.model))
    weight = changed.model.language_model.layers[0].self_attn.v_proj.weight
    messages = user("What is this?", Image.new("RGB", (56, 56), "red"))
    before = changed.chat(messages, SHORT).text
    if way == "another tensor":
        weight.data = weight.data * -2.0
    else:
        weight.grad = weight.detach().sign()
        torch.optim.AdamW([weight], lr=1.0, fused=True).step()
    after = changed.chat(messages, SHORT).text
    assert after != before
    assert after == engine.with_model(changed.model).chat(messages, SHORT).text


def test_visual_tokens_that_were_made_by_hand_are_told_apart_by_their_values(engine):
    prompt = engine.prepare(user("What is this?", Image.new("RGB", (120, 56), "red")))
    [tokens] = engine.encode([prompt])
    own = dataclasses.replace(prompt, visual=tokens.reshape(-1, 1, tokens.shape[-1]))
    others = [dataclasses.replace(own, visual=own.visual * factor) for factor in (1.0, -3.0, 9.0)]
    together = [reply.text for reply in engine.chat_batch(others, SHORT)]
    engine.forget()
    assert together[0] == engine.chat_batch([prompt], SHORT)[0].text
    assert len(set(together)) == 3
    for other, text in zip(others, together, strict=True):
        engine.forget()
        assert engine.chat_batch([other], SHORT)[0].text == text
    both = engine.encode([prompt, others[1]])  # of one tensor of pixels
    assert torch.equal(both[1], others[1].visual)


def test_rows_that_stop_leave_the_others_alone(engine):
    """Each row stops at another step: every row's tokens up to the stop are those it gives alone."""
    prompts = [engine.prepare(messages) for messages in conversations()]
    plain = [list(_tokens(engine, [prompt])[0]) for prompt in prompts]
    stop = plain[0][3]
    cut = [row[: row.index(stop)] if stop in row else row for row in plain]
    assert len({len(row) for row in cut}) > 1
    stopping = copy.copy(engine)
    stopping.stop_ids = frozenset([stop])
    assert _tokens(stopping, prompts) == cut


def _tokens(engine, prompts, config=SHORT):
    return [[step.token for step in steps if step.token is not None] for steps in engine.generate(prompts, config)]


def test_pieces_of_a_stream_make_the_reply(engine):
    for messages in conversations()[:3]:
        pieces, reply = drain(engine.stream(messages, SHORT))
        assert "".join(pieces).strip() == reply.text == engine.chat(messages, SHORT).text
        assert reply.tokens <= 12
        assert all(pieces)


def drain(stream):
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def test_the_answer_ends_at_the_limit_or_at_a_stop_token(engine):
    messages = user("What is this?")
    assert engine.chat(messages, GenerationConfig(max_new_tokens=1)).tokens == 1
    assert engine.chat(messages, GenerationConfig(max_new_tokens=7)).tokens == 7
    first = _tokens(engine, [engine.prepare(messages)])[0][0]
    stopping = copy.copy(engine)
    stopping.stop_ids = frozenset([first])
    reply = stopping.chat(messages, SHORT)
    assert (reply.text, reply.tokens) == ("", 0)
    assert drain(stopping.stream(messages, SHORT))[0] == []


def test_the_separator_always_stops(engine, checkpoint):
    assert engine.tokenizer.token_id("<|im_end|>") in engine.stop_ids


def test_sampling_is_repeatable_by_its_seed_alone_and_in_a_batch(engine):
    def sampled(seed):
        return GenerationConfig(max_new_tokens=12, temperature=2.0, top_k=40, seed=seed)

    alone = {seed: [engine.chat(messages, sampled(seed)).text for messages in conversations()] for seed in (1, 2)}
    for seed, texts in alone.items():
        assert [reply.text for reply in engine.chat_batch(conversations(), sampled(seed))] == texts
    assert alone[1] != alone[2]
    same = engine.chat_batch([user("What is this?")] * 4, sampled(None))
    assert len({reply.text for reply in same}) > 1  # without a seed every answer draws its own


def biased(engine, token):
    """A copy of an engine whose model prefers one id to all others."""
    changed = engine.with_model(copy.deepcopy(engine.model))
    changed.model.language_model.lm_head.register_forward_hook(
        lambda layer, given, out: out.index_fill(-1, torch.tensor([token]), 1e4)
    )
    return changed


def test_a_placeholder_that_the_model_writes_is_a_token_like_any_other(engine):
    changed = biased(engine, engine.model.image_token_id)
    reply = changed.chat(user("Q", Image.new("RGB", (56, 56))), GenerationConfig(max_new_tokens=3))
    assert (reply.text, reply.tokens) == ("", 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_without_a_token_are_never_drawn(checkpoint, temperature):
    """Embedding tables are often padded beyond the tokenizer's last id."""
    engine = load(checkpoint, device="cpu", dtype="float32")
    size = engine.tokenizer.size
    llm = dataclasses.replace(engine.model.config.llm, vocab_size=size + 55)
    padded = fresh(dataclasses.replace(engine.model.config, llm=llm), seed=0)
    changed = biased(Engine(padded, checkpoint), size + 3)
    config = GenerationConfig(max_new_tokens=8, temperature=temperature, seed=1)
    [drawn] = _tokens(changed, [changed.prepare(user("What is this?"))], config)
    assert drawn
    assert max(drawn) < size


def test_an_answer_says_why_it_ends(engine):
    messages = user("What is this?")
    tokens = _tokens(engine, [engine.prepare(messages)])[0]
    stopping = copy.copy(engine)
    stopping.stop_ids = frozenset([tokens[4]])
    context = len(engine.prepare(messages).input_ids) + 6
    for answering, new, reason, count in (
        (stopping, 12, "stop", tokens.index(tokens[4])),
        (engine, 3, "length", 3),
        (with_context(engine, context), 12, "context", 6),
        (with_context(engine, context), 6, "length", 6),
    ):
        reply = answering.chat(messages, GenerationConfig(max_new_tokens=new))
        assert (reply.finish_reason, reply.tokens) == (reason, count)
        assert drain(answering.stream(messages, GenerationConfig(max_new_tokens=new)))[1].finish_reason == reason


def with_context(engine, positions):
    """A copy of an engine whose model has so many positions."""
    llm, model = engine.model.config.llm, copy.deepcopy(engine.model)
    llm = dataclasses.replace(llm, rope=dataclasses.replace(llm.rope, max_positions=positions))
    model.config = dataclasses.replace(engine.model.config, llm=llm)
    return engine.with_model(model)


def test_a_prompt_that_fills_the_context_is_refused_before_any_work(engine):
    conversations = [user("Why?", Image.new("RGB", (56, 56))), user("What is this? " * 30)]
    tokens = len(engine.prepare(conversations[1]).input_ids)
    short = with_context(engine, tokens)
    short.model.encode_images = None  # not to be called
    with pytest.raises(ValueError, match=f"the prompt has {tokens} tokens, but the model has {tokens} positions"):
        short.chat_batch(conversations)
    image = Image.new("RGB", (200, 60))
    told = [*user("Is it?", image), {"role": "assistant", "content": "Yes."}, *user("And this? " * 20, image)]
    prompt = short.prepare(told)
    with pytest.raises(ValueError, match=r"\(system \d+, history \d+, images \d+ in 6 tiles, question \d+\)") as caught:
        short.stream(told).send(None)
    numbers = [int(number) for number in re.findall(r"\d+", str(caught.value))]
    system, history, images, _, question = numbers[2:]
    assert system + history + images + question == numbers[0] == len(prompt.input_ids)
    assert images == 6 * engine.config.tokens_per_tile + 4
    assert short.chat(user("Why?")).finish_reason in ("stop", "context")


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_sampling_is_greedy(engine, limits):
    messages = user("What is this?")
    config = GenerationConfig(**{"max_new_tokens": 12, "temperature": 1.5, "seed": 0, **limits})
    assert engine.chat(messages, config).text == engine.chat(messages, SHORT).text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**setting)


def test_text_alone_needs_no_image(engine):
    reply = engine.chat([{"role": "user", "content": "Hello"}], SHORT)
    assert reply.tiles == 0
    assert reply.prompt_tokens == len(engine.prepare(user("Hello")).input_ids)
    assert str(reply) == reply.text


def test_an_empty_batch_has_no_answers(engine):
    assert engine.chat_batch([]) == []


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "a"}], [*user("a"), {"role": "assistant", "content": "b"}]],
)
def test_the_last_message_is_the_users(engine, messages):
    with pytest.raises(ValueError, match="the last message must come from the user"):
        engine.chat(messages)


def test_tile_limits_are_kept(engine):
    image = Image.new("RGB", (400, 100))
    assert engine.prepare(user("Q", image)).tiles == (5,)
    assert engine.prepare(user("Q", image), max_tiles=1).tiles == (1,)
    assert engine.prepare(user("Q", image), max_tiles=2).tiles == (3,)
    assert engine.prepare(user("Q", image, image), max_tiles=4).tiles == (3, 3)
    assert engine.prepare(user("Q", image, image, image, image, image)).tiles == (1,) * 5
    with pytest.raises(ValueError, match="max_tiles is 0; it must be at least 1"):
        engine.prepare(user("Q", image), max_tiles=0)


def test_a_image_may_have_its_own_scale_and_limit(engine):
    image = Image.effect_noise((40, 20), 80).convert("RGB")
    part = {"type": "image", "image": image}
    asked = [
        {"role": "user", "content": [{**part, "scale": 2}, {**part, "max_tiles": 1}, {"type": "text", "text": "?"}]}
    ]
    prompt = engine.prepare(asked, max_tiles=12)
    enlarged = engine.prepare(user("?", image.resize((80, 40), Image.Resampling.BILINEAR)), max_tiles=6)
    assert prompt.tiles == (*enlarged.tiles, 1)
    assert torch.equal(prompt.pixel_values[:-1], enlarged.pixel_values)


def test_images_and_prompt_agree(engine):
    prompt = engine.prepare(user("Q", Image.new("RGB", (400, 100))))
    context = engine.tokenizer.token_id("<IMG_CONTEXT>")
    assert prompt.input_ids.count(context) == 5 * engine.model.config.tokens_per_tile
    assert prompt.pixel_values.shape == (5, 3, 56, 56)


def test_the_image_matters(engine):
    red, noise = Image.new("RGB", (56, 56), "red"), Image.effect_noise((56, 56), 100)
    logits = []
    for image in (red, noise):
        prompt = engine.prepare(user("Q", image))
        with torch.no_grad():
            logits.append(engine.model(torch.tensor([prompt.input_ids]), prompt.pixel_values)[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_loading_reads_settings_of_the_folder(checkpoint, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"system_message": "Be brief."}))
    for eos, wanted in ((3, {3}), ([3, 4], {3, 4})):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        engine = load(folder, device="cpu")
        assert wanted < engine.stop_ids
        assert Engine(engine.model, folder).stop_ids == engine.stop_ids
    assert "Be brief." in engine.tokenizer.decode(engine.prepare(user("Q")).input_ids)
    with pytest.raises(ValueError, match='unknown backend "magic"; known: auto, own, openvino, torch'):
        load(folder, backend="magic")
    with pytest.raises(ValueError, match='unknown dtype "int3"'):
        load(folder, device="cpu", dtype="int3")


def test_what_is_no_checkpoint_is_told(checkpoint, tmp_path):
    assert resolve(checkpoint) == checkpoint
    assert resolve(str(checkpoint)) == checkpoint
    (tmp_path / "file.txt").touch()
    for name in ("./nowhere", str(tmp_path / "none"), "a/b/c", "word", str(tmp_path / "file.txt"), "~/x", "a b/c d"):
        with pytest.raises(CheckpointError, match="is neither a checkpoint folder nor a hub id such as"):
            resolve(name)


def test_a_hub_id_without_a_network_is_told_in_one_line():
    with pytest.raises(CheckpointError, match="is no local folder and could not be fetched from the hub") as caught:
        resolve("OpenGVLab/InternVL2-1B-nowhere")
    assert "\n" not in str(caught.value)


def test_nano_is_the_default():
    assert resolve(None).name == "nano"
