"""Messages of the OpenAI wire form: what is sent can be read, and what comes opens nothing of ours."""

from __future__ import annotations

import pytest
from PIL import Image

from mini_internvl.inputs.messages import ChatError, image_parts
from mini_internvl.inputs.openai import from_wire, to_wire


def test_what_is_sent_can_be_read_again() -> None:
    image = Image.effect_noise((9, 5), 50).convert("RGB")
    content = [{"type": "image", "image": image, "name": "Front"}, {"type": "text", "text": "Q"}]
    turns = from_wire(to_wire([{"role": "user", "content": content}]))
    assert turns[0].text == "Front: Q"
    [part] = image_parts(turns)
    assert part.source.startswith("data:image/png;base64,")


@pytest.mark.parametrize("url", ["/etc/passwd", "a.png", "file:///etc/passwd", "https://example.com/a.png"])
def test_a_request_opens_no_file_and_no_address(url: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image", "image": url}):
        with pytest.raises(ChatError, match=r"turn 1: .*(not accepted here; send it as data:|is a web address)"):
            from_wire([{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}])


def test_a_request_without_a_list_of_messages_is_refused() -> None:
    with pytest.raises(ChatError, match="the request has no messages"):
        from_wire({"role": "user", "content": "Hi"})
