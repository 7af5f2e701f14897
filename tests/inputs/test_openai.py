"""Messages of the OpenAI wire form: what is sent can be read."""

from __future__ import annotations

from PIL import Image

from mini_internvl.inputs.messages import image_parts, normalise
from mini_internvl.inputs.openai import to_wire


def test_what_is_sent_can_be_read_again() -> None:
    image = Image.effect_noise((9, 5), 50).convert("RGB")
    content = [{"type": "image", "image": image, "name": "Front"}, {"type": "text", "text": "Q"}]
    turns = normalise(to_wire([{"role": "user", "content": content}]), data_urls_only=True)
    assert turns[0].text == "Front: Q"
    [part] = image_parts(turns)
    assert part.source.startswith("data:image/png;base64,")
