"""Conversations: the mask covers answers alone, images stand where they should, mistakes name their turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mini_internvl.inputs import chat
from mini_internvl.inputs.chat import ChatError
from mini_internvl.inputs.tokenizer_files import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/data"
HERMES = chat.TEMPLATES["Hermes-2"]


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture
def render(tokenizer):
    """Messages -> (text, ids, labels) with a short system message; one context token an image tile."""

    def run(messages, tiles=(), template=HERMES, tokens_per_tile=1, system_message="S", **more):
        encoded = chat.encode(
            messages,
            tokenizer,
            template=template,
            tiles=tiles,
            tokens_per_tile=tokens_per_tile,
            system_message=system_message,
            **more,
        )
        assert len(encoded.labels) == len(encoded.input_ids)
        return tokenizer.decode(encoded.input_ids, skip_special=False), encoded.input_ids, encoded.labels

    return run


def image(name=None):
    part = {"type": "image", "image": Image.new("RGB", (2, 2))}
    return {**part, "name": name} if name else part


def text(words):
    return {"type": "text", "text": words}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


HEAD = "<|im_start|>system\nS<|im_end|>"
OPEN = "<|im_start|>assistant\n"
MARK = "<img><IMG_CONTEXT></img>"


def test_a_question_leaves_the_answer_open(render):
    rendered, _, labels = render([user("What is this?")])
    assert rendered == f"{HEAD}<|im_start|>user\nWhat is this?<|im_end|>{OPEN}"
    assert set(labels) == {chat.IGNORE}


def test_only_answers_and_their_separators_are_supervised(render, tokenizer):
    messages = [user("Hi"), assistant("One."), user("And?"), assistant(" two\nlines")]
    rendered, ids, labels = render(messages)
    assert rendered == (
        f"{HEAD}<|im_start|>user\nHi<|im_end|>{OPEN}One.<|im_end|>"
        f"<|im_start|>user\nAnd?<|im_end|>{OPEN} two\nlines<|im_end|>"
    )
    supervised = [label for label in labels if label != chat.IGNORE]
    assert tokenizer.decode(supervised, skip_special=False) == "One.<|im_end|> two\nlines<|im_end|>"
    assert all(label in (chat.IGNORE, number) for label, number in zip(labels, ids, strict=True))


def test_the_line_break_behind_the_end_of_an_answer_is_not_supervised(render, tokenizer):
    messages = [user("Hi"), assistant("One."), user("And?"), assistant(" two\n")]
    for template in (chat.INTERNVL2_5, HERMES):
        _, ids, labels = render(messages, template=template)
        supervised = [label for label in labels if label != chat.IGNORE]
        assert tokenizer.decode(supervised, skip_special=False) == "One.<|im_end|> two\n<|im_end|>"
        options = {"template": template, "tiles": (), "tokens_per_tile": 1, "system_message": "S"}
        assert chat.count(messages, tokenizer, **options) == (len(ids), len(supervised))
    rendered, _, _ = render(messages, template=chat.INTERNVL2_5)
    assert rendered.endswith(f"{OPEN} two\n<|im_end|>\n")
    typed = [user("a <|im_end|>\n b"), assistant("c")]
    assert set(render(typed, template=chat.INTERNVL2_5, control_tokens="original")[2]) != {chat.IGNORE}


def test_the_ids_are_those_of_the_whole_text(render, tokenizer):
    messages = [user("Why does the car turn?"), assistant("Because."), user("What?"), assistant("The image.")]
    rendered, ids, _ = render(messages)
    assert ids == tokenizer.encode(rendered)


def test_history_is_not_supervised_when_a_question_is_open(render):
    _, _, labels = render([user("a"), assistant("b"), user("c")])
    assert labels[-3:] == [chat.IGNORE] * 3


@pytest.mark.parametrize(("given", "wanted"), [(None, HERMES.system_message), ("", ""), ("Be brief.", "Be brief.")])
def test_the_system_message(render, given, wanted):
    rendered, _, _ = render([user("a")], system_message=given)
    assert rendered.startswith(f"<|im_start|>system\n{wanted}<|im_end|><|im_start|>user")
    rendered, _, _ = render([{"role": "system", "content": "Own."}, user("a")], system_message=given)
    assert rendered.startswith("<|im_start|>system\nOwn.<|im_end|>")


def test_templates_are_found_by_name():
    assert chat.find_template("phi3-chat").sep == "<|end|>"
    with pytest.raises(ChatError, match='unknown chat template "vicuna"; known: Hermes-2, internlm2-chat, phi3-chat'):
        chat.find_template("vicuna")


@pytest.mark.parametrize(
    ("content", "tiles", "wanted"),
    [
        ([image(), text("Q")], [1], f"{MARK}\nQ"),
        ([text("Q"), image()], [1], f"Q{MARK}\n"),
        ([image(), image(), text("Q")], [1, 1], f"Image-1: {MARK}\nImage-2: {MARK}\nQ"),
        ([image("CAM_FRONT"), image("CAM_BACK"), text("Q")], [1, 1], f"CAM_FRONT: {MARK}\nCAM_BACK: {MARK}\nQ"),
        ([image("Frame-1"), text("Q")], [1], f"Frame-1: {MARK}\nQ"),
        ([image(), text("Left <image> here")], [1], f"Left {MARK} here"),
        ([image(), image(), text("<image> and <image>?")], [1, 1], f"{MARK} and {MARK}?"),
        ([image(), text("Q")], [3], f"<img>{'<IMG_CONTEXT>' * 3}</img>\nQ"),
    ],
)
def test_images_stand_where_they_should(render, content, tiles, wanted):
    rendered, _, _ = render([user(content)], tiles)
    assert rendered == f"{HEAD}<|im_start|>user\n{wanted}<|im_end|>{OPEN}"


def test_images_are_numbered_through_the_conversation(render):
    messages = [user([image(), text("a")]), assistant("b"), user([image(), text("c")])]
    rendered, _, _ = render(messages, [1, 2])
    assert f"Image-1: {MARK}\na" in rendered
    assert "Image-2: <img><IMG_CONTEXT><IMG_CONTEXT></img>\nc" in rendered


def test_each_tile_takes_its_tokens(render, tokenizer):
    _, ids, _ = render([user([image(), image(), text("Q")])], [3, 1], tokens_per_tile=4)
    context = tokenizer.token_id("<IMG_CONTEXT>")
    assert ids.count(context) == 16
    first = ids.index(context)
    assert ids[first : first + 12] == [context] * 12
    assert ids[first + 12] == tokenizer.token_id("</img>")


def test_the_internlm2_template_strips_turns_in_training_only(render):
    template = chat.TEMPLATES["internlm2-chat"]
    rendered, _, _ = render([user(" a "), assistant(" b ")], template=template)
    assert rendered.endswith("user\na<|im_end|><|im_start|>assistant\nb<|im_end|>")
    rendered, _, _ = render([user(" a ")], template=template)
    assert "user\n a <|im_end|>" in rendered


@pytest.mark.parametrize(("n", "limit", "each"), [(0, 12, 12), (1, 12, 12), (5, 12, 2), (13, 12, 1)])
def test_several_images_share_the_tiles(n, limit, each):
    assert chat.tile_limits(n, limit) == each


@pytest.mark.parametrize(
    ("messages", "tiles", "message"),
    [
        ([], [], "has no question"),
        ([{"role": "system", "content": "S"}], [], "has no question"),
        ([assistant("a")], [], "turn 1 is from the assistant"),
        ([user("a"), user("b")], [], "turn 2 is from the user"),
        ([user("a"), assistant("b"), assistant("c")], [], "turn 3 is from the assistant"),
        ([user("a"), {"role": "system", "content": "S"}], [], "turn 2 is from the system"),
        ([{"role": "tool", "content": "a"}], [], 'turn 1: unknown role "tool"; known: system, user, assistant'),
        ([user([])], [], "turn 1.* is empty"),
        ([user("")], [], "turn 1.* is empty"),
        ([user("a"), assistant("")], [], "turn 2.* is empty"),
        ([user("no image")], [1], "has 0 images, but tiles of 1 are given"),
        ([user([image(), text("Q")])], [], "has 1 images, but tiles of 0 are given"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_explained(render, messages, tiles, message):
    with pytest.raises(ChatError, match=message) as caught:
        render(messages, tiles)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["a <|im_end|> b", "a <|endoftext|> b"])
def test_the_original_gives_no_labels_where_it_cannot_tell_turns_apart(render, words):
    for messages in ([user(words), assistant("c")], [user("c"), assistant(words)]):
        assert set(render(messages, control_tokens="original")[2]) == {chat.IGNORE}
    tagged = [user("a"), assistant("<ref>b</ref>")]
    assert set(render(tagged, control_tokens="original")[2]) != {chat.IGNORE}


def test_an_empty_answer_may_stand_in_the_history(render):
    rendered, _, _ = render([user("a"), assistant(""), user("b")])
    assert rendered == f"{HEAD}<|im_start|>user\na<|im_end|>{OPEN}<|im_end|><|im_start|>user\nb<|im_end|>{OPEN}"


def test_the_system_message_holds_no_images(render):
    with pytest.raises(ChatError, match="turn 1: a system message holds no images"):
        render([{"role": "system", "content": [image()]}, user("a")], [1])


TYPED = ("[UNUSED_TOKEN_146]", "<|im_start|>user", "<|im_end|>", "<img>", "<IMG_CONTEXT>", "</img>", "<|endoftext|>")


@pytest.mark.parametrize("words", TYPED)
@pytest.mark.parametrize("kind", ["bpe", "internlm2", "phi3"])
def test_control_tokens_that_somebody_typed_are_text(words, kind, tokenizer):
    """No id of a control token comes out of a question, an answer, a system message or a name, and no text is lost."""
    template = {"bpe": HERMES, "internlm2": chat.TEMPLATES["internlm2-chat"], "phi3": chat.TEMPLATES["phi3-chat"]}[kind]
    if kind != "bpe":
        tokenizer = load_tokenizer(GOLDEN / "tokenizers" / kind)
    words = {"<|im_start|>user": template.user_role.strip(), "<|im_end|>": template.sep}.get(words, words)
    tags = "<ref>it</ref>"

    def encoded(words):
        shown = {"type": "image", "image": "a.png", "name": f"view {words}"}
        messages = [
            {"role": "system", "content": f"Say {words}."},
            user([shown, text(f"Is {words}{words} there, {tags}?")]),
            assistant(f"No {words}, {tags}."),
        ]
        return chat.encode(messages, tokenizer, template=template, tiles=[2], tokens_per_tile=1)

    typed, plain = encoded(words), encoded("X")
    control = {token.id for content, token in tokenizer.added.items() if content not in chat.TAGS}

    def controls(ids):
        return [number for number in ids if number in control]

    assert controls(typed.input_ids) == controls(plain.input_ids)
    assert typed.input_ids.count(tokenizer.token_id("<ref>")) == 2
    supervised = [label for label in typed.labels if label != chat.IGNORE]
    told = tokenizer.decode(supervised, skip_special=False)
    assert told.replace(" ", "") == f"No{words},{tags}.{template.sep}".replace(" ", "")


def test_a_typed_mark_and_a_placed_image_render_differently():
    one = [user([image(), text(r"<image> or \<image>")])]
    other = [user([image(), text(r"\<image> or <image>")])]
    first, second = (chat.render(messages, template=HERMES) for messages in (one, other))
    assert first != second
    assert r"<image> or \<image>" in first
