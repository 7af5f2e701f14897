"""Independent questions: packed they cost and teach what they would alone, and what cannot be packed is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import normalise
from mini_internvl.inputs.questions import split_questions
from mini_internvl.model.config import RopeConfig
from mini_internvl.records import Encoded, Sample
from mini_internvl.train.batches import collate
from mini_internvl.train.independent import join, position_ids

IMAGE = {"type": "image", "image": Image.effect_noise((56, 56), 90).convert("RGB")}
WIDE = {"type": "image", "image": Image.effect_noise((110, 50), 90).convert("RGB")}


def text(said):
    return {"type": "text", "text": said}


def messages(first, *rest):
    """Question, answer, question, ...; the first question is a list of parts."""
    return [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate([first, *rest])]


def independent(first, *rest, **settings):
    return Sample(id="p", source="set", messages=messages(first, *rest), independent=True, **settings)


SHORT = independent([IMAGE, text("What is it?")], "A dog.", "How many?", "1")
LONG = independent(
    [IMAGE, WIDE, text("What is it?")], "A dog.", "Which colour has it?", "Brown, I think.", "How many?", "1"
)
ONE = Sample(id="o", messages=messages("Who are you, and since when?", "A model.", "Why?", "I do not know."))


def measured(learner, examples):
    learner.zero_grad()
    loss = learner(collate(examples, 9))["loss"]
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reduction", ["token", "square", "sample"])
def test_together_they_cost_and_teach_what_they_would_alone(process, learner, reduction):
    answers = learner({"answers": {"reduction": reduction}})
    alone = [
        process(Sample(id="a", messages=conversation))
        for sample in (SHORT, LONG)
        for conversation in split_questions(sample.messages)
    ]
    together = [process(SHORT), process(LONG)]  # the shorter is padded
    assert len(alone) == 5
    assert sum(len(example.input_ids) for example in together) < sum(len(example.input_ids) for example in alone)
    assert answers.count(collate(together, 9)) == pytest.approx(answers.count(collate(alone, 9)))
    loss, gradients = measured(answers, [*together, process(ONE)])
    expected, wanted = measured(answers, [*alone, process(ONE)])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5)
    conversations = [
        process(replace(SHORT, independent=False)),
        process(replace(LONG, independent=False)),
        process(ONE),
    ]
    _, seen = measured(answers, conversations)  # where a question sees what came before
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert (seen[name] - wanted[name]).norm() > 0.01 * wanted[name].norm()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_questions_on_both_sides_of_a_rotary_limit_are_rotated_as_alone(process, learner, kind):
    answers, llm = learner(), process.processor.config.llm
    conversations = [Sample(id="a", messages=conversation) for conversation in split_questions(LONG.messages)]
    limit, *_, longest = sorted(len(process(sample).input_ids) for sample in conversations)
    assert limit < longest
    half = llm.head_dim // 2
    scaling = {"short_factor": (1.0,) * half, "long_factor": tuple(2.0**i for i in range(half)), "factor": 2.0}
    limits = {"longrope": (8 * limit, limit), "dynamic": (limit, 0)}[kind]
    rope = replace(llm.rope, kind=kind, max_positions=limits[0], original_max_positions=limits[1], **scaling)
    config = replace(process.processor.config, llm=replace(llm, rope=rope))
    process = replace(process, processor=replace(process.processor, config=config), max_length=1000)
    answers.model.language_model.config = config.llm
    loss, gradients = measured(answers, [process(LONG), process(ONE)])
    expected, wanted = measured(answers, [*map(process, conversations), process(ONE)])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5)


def test_marks_names_and_system_messages_are_shared():
    marked = messages([IMAGE, WIDE, text("Left: <image>\nRight: <image>\n\nWhat changed?")], "A", "Why?", "B")
    [first, second] = split_questions([{"role": "system", "content": "Be brief."}, *marked])
    system = {"role": "system", "content": "Be brief."}
    for split, question, answer in ((first, "What changed?", "A"), (second, "Why?", "B")):
        whole = [IMAGE, WIDE, text(f"Left: <image>\nRight: <image>\n\n{question}")]
        assert split == normalise([system, *messages(whole, answer)])
    named = {**IMAGE, "name": "Frame-1"}
    both = messages([named, text("What?")], "A", [text("Why?")], "B")
    assert split_questions(both)[1] == normalise(messages([named, text("Why?")], "B"))


def test_one_question_or_no_image_stays_as_it_is():
    for kept in (messages([IMAGE, text("What?")], "A"), messages("What?", "A", "Why?", "B")):
        assert split_questions(kept) == [normalise(kept)]
    with_system = [{"role": "system", "content": "S"}, *messages([IMAGE, text("What?")], "A")]
    assert split_questions(with_system) == [normalise(with_system)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (([text("What is"), IMAGE, text("this?")], "A", "B?", "C"), "the first begins with all images"),
        (
            ([IMAGE, text("What colour is it?\n<image>")], "A", "B?", "C"),
            "the first begins with all images; no text",
        ),
        (([IMAGE, text("What?")], "A", "B?"), "each have one answer"),
        (([IMAGE, text("What?")], "A", [IMAGE, text("B?")], "C"), "a later question has an image of its own"),
    ],
)
def test_what_cannot_be_independent_is_named(process, said, message):
    with pytest.raises(DataError, match=f"sample set/p: .*{message}"):
        process(independent(*said))


def test_conversations_that_begin_otherwise_are_not_joined():
    def piece(*ids):
        return Encoded(input_ids=list(ids), labels=[chat.IGNORE] * (len(ids) - 1) + [ids[-1]])

    rope = RopeConfig(theta=1e4)
    row, segments, documents = join([piece(1, 7, 7, 2, 3), piece(1, 7, 7, 4)], 7, rope)
    assert (row.input_ids, segments) == ([1, 7, 7, 2, 3, 4], [0, 0, 0, 1, 1, 2])
    assert documents == [0] * 6
    assert row.labels == [chat.IGNORE] * 4 + [3, 4]
    for other in (piece(1, 7, 2, 3, 5), piece(2, 7, 7, 4), piece(1, 7, 7, 7, 4)):
        with pytest.raises(ValueError, match="question 2 does not begin with the images as the first does"):
            join([piece(1, 7, 7, 2, 3), other], 7, rope)
    limited = RopeConfig(theta=1e4, kind="longrope", max_positions=8, original_max_positions=4)
    row, segments, documents = join([piece(1, 7, 7, 2, 3), piece(1, 7, 7, 4)], 7, limited)
    assert (row.input_ids, segments) == ([1, 7, 7, 2, 3, 1, 7, 7, 4], [0, 0, 0, 1, 1, 0, 0, 0, 1])
    assert documents == [0] * 5 + [1] * 4
    with pytest.raises(ValueError, match="question 2 does not begin with the images as the first does"):
        join([piece(1, 7, 7, 2, 3), piece(2, 7, 7, 4)], 7, limited)


def test_positions_count_on_from_the_shared_prefix():
    segments = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    assert position_ids(segments).tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert position_ids(torch.zeros(5, dtype=torch.int64)).tolist() == [0, 1, 2, 3, 4]
