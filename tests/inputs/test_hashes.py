"""Images are alike after resizing and compression, and not alike because they are of one kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mini_internvl import synth
from mini_internvl.inputs.hashes import ImageHashes, Looks, _lowest, look


def blobs(seed):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((240, 180), Image.Resampling.BICUBIC)


def changed(image, how):
    if how == "small":
        return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    if how == "large":
        return image.resize((image.width * 2, image.height * 2))
    if how == "grey":
        return image.convert("L")
    if how == "brighter":
        return image.point(lambda value: min(255, int(value * 1.1) + 5))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("how", ["small", "large", "grey", "brighter", "JPEG"])
def test_a_changed_copy_is_found_among_others(how):
    known = Looks([look(blobs(seed)) for seed in range(40)])
    for seed in range(0, 40, 7):
        assert known.similar(look(changed(blobs(seed), how))) == seed


def test_other_images_are_not_similar():
    known = Looks([look(blobs(seed)) for seed in range(100)])
    assert [known.similar(look(blobs(seed))) for seed in range(100, 300)] == [None] * 200
    assert Looks([]).similar(look(blobs(0))) is None


def page(seed):
    """Thin black letters on white."""
    letters = np.random.default_rng(seed).integers(97, 123, (9, 20), dtype=np.uint8)
    image = Image.new("RGB", (190, 170), "white")
    text = "\n".join(bytes(line).decode() for line in letters)
    ImageDraw.Draw(image).text((8, 6), text, fill="black", font=ImageFont.load_default(13))
    return image


@pytest.mark.parametrize("how", ["small", "JPEG"])
def test_pages_of_text_are_found_and_told_apart(how):
    known = Looks([look(page(seed)) for seed in range(30)])
    assert [known.similar(look(changed(page(seed), how))) for seed in range(30)] == list(range(30))
    assert [known.similar(look(page(seed))) for seed in range(100, 130)] == [None] * 30


def test_an_image_of_one_colour_has_no_look():
    assert look(Image.new("RGB", (50, 50), "red")) is None


def test_drawn_images_of_one_kind_are_told_apart():
    samples = [synth.make("shapes", 0, number) for number in range(40)]
    images = [sample.messages[0]["content"][0]["image"] for sample in samples]
    assert all(isinstance(image, Image.Image) for image in images)
    looks = [look(image) for image in images]
    for number, one in enumerate(looks):
        others = Looks([other for place, other in enumerate(looks) if place != number and other])
        assert one is None or others.similar(one) is None


def test_content_is_hashed_wherever_it_lies(tmp_path):
    blobs(1).save(tmp_path / "a.png")
    hashes = ImageHashes()
    assert hashes.one(str(tmp_path / "a.png")) == hashes.one((tmp_path / "a.png").read_bytes())


def of_one_kind(seed):
    """Pictures from a camera that stands still: most of each is in all of them."""
    numbers = np.random.default_rng(seed).integers(0, 256, (7, 9, 3))
    still = np.random.default_rng(10**6).integers(0, 256, (7, 9, 3))
    small = (0.75 * still + 0.25 * numbers).astype(np.uint8)
    return Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)


def test_a_copy_is_found_among_many_images_of_one_kind():
    known = Looks()
    for seed in range(1500):
        assert known.add(look(of_one_kind(seed))) == seed
    found = [known.similar(look(changed(of_one_kind(seed), "JPEG"))) for seed in range(0, 1500, 10)]
    assert sum(number == seed for number, seed in zip(found, range(0, 1500, 10), strict=True)) >= 149
    compared = [len(known._met(_lowest(look(of_one_kind(seed)).grey))) for seed in range(2000, 2050)]
    assert np.mean(compared) < 100
