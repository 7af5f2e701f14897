"""What an evaluation asks of an engine: tiles from headers, the prompt as text, images that are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mini_internvl.engine import Engine, GenerationConfig, load
from mini_internvl.engine.engine import user
from mini_internvl.inputs.images import ImageError, image_dimensions

SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Engine:
    return load(checkpoint, device="cpu", dtype="float32")


def sideways(path: Path) -> Path:
    image = Image.new("RGB", (200, 50), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, suffix: str) -> None:
    assert image_dimensions(sideways(tmp_path / f"a.{suffix}")) == (50, 200)
    with pytest.raises(ImageError, match="is missing"):
        image_dimensions(tmp_path / "nothing.png")


def test_tiles_are_counted_as_they_are_cut(tiny: Engine, tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 60))
    sources: list[Any] = [sideways(tmp_path / "a.jpg"), wide, Image.new("RGB", (30, 30))]
    for images in ([], sources[:1], sources[1:2], sources):
        for limit in (None, 1, 3):
            messages = user("What?", *images)
            prompt = tiny.prepare(messages, max_tiles=limit)
            assert tiny.count_tiles(messages, max_tiles=limit) == sum(prompt.tiles)


def test_the_prompt_as_text(tiny: Engine) -> None:
    image = Image.new("RGB", (30, 30))
    assert tiny.render(user("What?", image, image)).count("<image>") == 2
    assert tiny.render(user("What?", image)).endswith("<image>\nWhat?<|im_end|><|im_start|>assistant\n")
    assert tiny.arithmetic == "torch cpu float32"


def test_images_of_several_questions_are_read_once(tiny: Engine, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Image.new("RGB", (120, 80), "green")
    asked = [user("What is this?", str(image)), user("What?", other), user("Why?", str(image)), user("Why?")]
    alone = [tiny.chat(messages, SHORT).text for messages in asked]
    encoded = []
    encode = tiny.model.encode_images
    monkeypatch.setattr(tiny.model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    tiny.forget()
    prompts = tiny.prepare_batch(asked)
    assert prompts[0].pixel_values is prompts[2].pixel_values
    assert [reply.text for reply in tiny.chat_batch(prompts, SHORT)] == alone
    assert sum(encoded) == sum(prompts[0].tiles) + sum(prompts[1].tiles)
    assert [reply.text for reply in tiny.chat_batch(asked, SHORT)] == alone
    assert sum(encoded) == sum(prompts[0].tiles) + sum(prompts[1].tiles)  # nothing is read again
