"""Requests of the OpenAI wire form: what is read, what is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from mini_internvl.inputs.messages import ChatError, image_parts, normalise
from mini_internvl.inputs.openai import Request, read_request, to_wire

ASKED = [{"role": "user", "content": "Hi"}]


def test_a_request_and_its_defaults() -> None:
    assert read_request({"messages": ASKED}) == Request(turns=normalise(ASKED))
    body = {"messages": ASKED, "model": "m", "max_completion_tokens": 9, "temperature": 1, "top_p": 0.5, "seed": 3}
    assert read_request({**body, "stream": True, "n": 1}) == Request(
        turns=normalise(ASKED), model="m", max_tokens=9, temperature=1, top_p=0.5, seed=3, stream=True
    )


def test_what_is_sent_can_be_read_again() -> None:
    image = Image.effect_noise((9, 5), 50).convert("RGB")
    content = [{"type": "image", "image": image, "name": "Front"}, {"type": "text", "text": "Q"}]
    request = read_request({"messages": to_wire([{"role": "user", "content": content}])})
    assert request.turns[0].text == "Front: Q"
    [part] = image_parts(request.turns)
    assert part.source.startswith("data:image/png;base64,")


@pytest.mark.parametrize("url", ["/etc/passwd", "a.png", "file:///etc/passwd", "https://example.com/a.png"])
def test_a_request_opens_no_file_and_no_address(url: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image", "image": url}):
        with pytest.raises(ChatError, match=r"turn 1: .*(not accepted here; send it as data:|is a web address)"):
            read_request({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}]})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the request has no messages"),
        ({"messages": "Hi"}, "the request has no messages"),
        ({"messages": []}, "the last one must come from the user"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Yes"}]}, "the last one must come from the user"),
        ({"messages": ASKED, "max_tokens": 0}, "max_tokens is 0; it must be a whole number of at least 1"),
        ({"messages": ASKED, "max_tokens": True}, "max_tokens is true; it must be a whole number"),
        ({"messages": ASKED, "temperature": 3}, "temperature is 3; it must be a number of 0 to 2"),
        ({"messages": ASKED, "temperature": float("nan")}, "temperature is NaN; it must be a number"),
        ({"messages": ASKED, "top_p": "1"}, 'top_p is "1"; it must be a number of 0 to 1'),
        ({"messages": ASKED, "stream": 1}, "stream is 1; it must be true or false"),
    ],
)
def test_a_request_that_cannot_be_answered_names_the_field(body: object, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        read_request(body)
