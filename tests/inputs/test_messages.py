"""Messages, normalised once: parts, placeholders, what may be opened, and the mistakes that name their turn."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
from PIL import Image

from mini_internvl.inputs.messages import ChatError, ImagePart, beside, image_parts, normalise, question

URL = "data:image/png;base64,xx"


def text(words):
    return {"type": "text", "text": words}


def image(source="a.png", **more):
    return {"type": "image", "image": source, **more}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def parts(content):
    [turn] = normalise([user(content)])
    return [part if isinstance(part, str) else part.source for part in turn.parts]


def test_images_are_listed_in_reading_order():
    messages = [
        user([image("a.png"), text("x"), {"type": "image_url", "image_url": {"url": URL}}]),
        assistant("y"),
        user([image("c.png", name="N", scale=2, max_tiles=3), text("z")]),
    ]
    assert [part.source for part in image_parts(messages)] == ["a.png", URL, "c.png"]
    assert image_parts(messages)[2] == ImagePart(source="c.png", name="N", scale=2, max_tiles=3)
    assert image_parts([user("plain")]) == []
    turns = normalise(messages)
    assert normalise(turns) == turns
    assert question(messages) == "x\ny\nz"


def test_placeholders_place_images_in_the_text():
    assert parts([image("a"), image("b"), text("see <image>, then <image>.")]) == ["see ", "a", ", then ", "b", "."]
    assert parts([text("one "), text("two"), image("a")]) == ["one two", "a"]
    assert parts([image("a"), text("")]) == ["a"]


def test_an_escaped_placeholder_is_text_everywhere():
    asked = r"What does the tag \<image> do in SVG?"
    meant = "What does the tag <image> do in SVG?"
    assert parts(asked) == parts([text(asked)]) == [meant]
    assert parts([image("a"), text(asked)]) == ["a", meant]
    assert parts([image("a"), text(r"<image> and \<image>")]) == ["a", " and <image>"]
    assert normalise([user("a"), assistant(r"The tag \<image>.")])[1].text == "The tag <image>."
    with pytest.raises(
        ChatError, match=r"turn 1 has 1 <image> placeholders but 0 images; write \\<image> where the text"
    ):
        normalise([user(meant)])


def test_an_image_in_an_answer_is_refused_in_training_and_text_in_a_history():
    for answer in ("Here: <image>", [text("Here: "), image("a.png")]):
        with pytest.raises(ChatError, match="turn 2 is an answer and holds an image"):
            normalise([user("a"), assistant(answer)])
    assert normalise([user("a"), assistant("Write <image>."), user("b")])[1].text == "Write <image>."


def test_half_a_surrogate_pair_is_refused_in_a_sample_and_replaced_in_a_question(caplog):
    with pytest.raises(ChatError, match=r"turn 2 holds half a surrogate pair \(\\ud83d\)"):
        normalise([user("a"), assistant("nice \ud83d")])
    assert parts("nice \ud83d") == ["nice \ufffd"]
    assert "turn 1 holds half a surrogate pair" in caplog.text
    assert parts("nice \U0001f600") == ["nice \U0001f600"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user([{"type": "audio", "audio": 1}])], 'turn 1: unknown part type "audio"; known: text, image'),
        ([user([{"type": ["text"], "text": "x"}])], r"""turn 1: unknown part type "\['text'\]"; known: text, image"""),
        ([user([{"type": {}}])], r'turn 1: unknown part type "\{\}"; known: text, image'),
        ("words", "the messages are str; give a list of them"),
        ([user([{"type": "video"}])], 'turn 1: a part of type "video" needs "video": a path, a data URL or bytes'),
        ([user([{"type": "image"}])], 'turn 1: a part of type "image" needs'),
        ([user([{"type": "image_url", "image_url": "x"}])], 'turn 1: a part of type "image_url" needs'),
        ([user([{"type": "text"}])], 'turn 1: a part of type "text" needs'),
        ([user(["words"])], 'turn 1: unknown part type "str"'),
        ([{"role": "user"}], "turn 1: the content is NoneType"),
        ([user("a"), assistant("b"), user(5)], "turn 3: the content is int"),
        (["hello"], "turn 1 is str"),
        (user("Hi"), "the messages are dict; give a list of them"),
        ([user([image(name=5)])], "turn 1: an image's name is int"),
        ([user([image(scale=0)])], "turn 1: an image's scale is 0; it must be a whole number of at least 1"),
        ([user([image(max_tiles="6")])], "turn 1: an image's max_tiles is '6'"),
        ([user([image("https://example.com/a.png")])], "turn 1: https://example.com/a.png is a web address"),
        ([user([image(), text("<image> and <image>")])], "turn 1 has 2 <image> placeholders but 1 images"),
    ],
)
def test_messages_that_cannot_be_read_are_explained(messages, message):
    with pytest.raises(ChatError, match=message) as caught:
        normalise(messages)
    assert "\n" not in str(caught.value)


def test_of_a_request_from_elsewhere_only_data_urls_are_opened():
    [turn] = normalise([user([image(URL), {"type": "image_url", "image_url": {"url": URL}}])], data_urls_only=True)
    assert [part.source for part in turn.images] == [URL, URL]
    picture = Image.new("RGB", (2, 2))
    for source in (
        "a.png",
        "/etc/passwd",
        Path("a.png"),
        "file:///etc/passwd",
        "DATA:image/png;base64,xx",
        b"x",
        picture,
    ):
        for part in (image(source), {"type": "image_url", "image_url": {"url": source}}):
            with pytest.raises(ChatError, match="turn 1: only images as data:image/png;base64,"):
                normalise([user([part, text("Q")])], data_urls_only=True)
        assert image_parts([user([image(source)])])[0].source is source


def test_paths_of_a_data_file_stand_beside_it():
    there = Path("/data/set")
    messages = [
        user([image("a.png"), {"type": "image_url", "image_url": {"url": "b.png"}}, text("Q")]),
        user([image("/x/c.png"), image(URL), {"type": "image_url", "image_url": {"url": URL}}]),
        assistant("A"),
    ]
    sources = [part.source for part in image_parts(beside(messages, there)[:2])]
    assert sources == ["/data/set/a.png", "/data/set/b.png", "/x/c.png", URL, URL]
    assert beside(["odd", {"role": "user"}], there) == ["odd", {"role": "user"}]


def test_any_sequence_of_messages_is_taken():
    assert normalise(deque([user("a"), assistant("b")])) == normalise([user("a"), assistant("b")])
