"""Drawing helpers: colours with names, readable pairs of them, backgrounds, fitted text, mild damage."""

from __future__ import annotations

import io
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..records import PatchAnnotation
from . import fonts

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 36, 36), "green": (40, 150, 60), "blue": (36, 84, 214), "yellow": (244, 208, 40),
    "orange": (244, 130, 24), "purple": (132, 52, 172), "pink": (246, 130, 180), "brown": (124, 76, 40),
    "black": (24, 24, 24), "white": (250, 250, 250), "gray": (132, 132, 132), "cyan": (50, 200, 220),
}  # fmt: skip
"""Named colours and their middle value."""


def jitter(rng: random.Random, colour: RGB, by: int = 14) -> RGB:
    """The colour moved a little in every channel."""
    r, g, b = (min(255, max(0, c + rng.randint(-by, by))) for c in colour)
    return r, g, b


def luminance(colour: RGB) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def ink_and_paper(rng: random.Random) -> tuple[RGB, RGB]:
    """A text colour and a background colour with good contrast; half the time dark on light, plain."""
    style = rng.random()
    if style < 0.35:
        dark, light = rng.randrange(60), 255 - rng.randrange(40)
        return (dark, dark, dark), (light, light, light)
    while True:
        ink: RGB = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        paper: RGB = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if abs(luminance(ink) - luminance(paper)) > 110:
            return ink, paper


@lru_cache(maxsize=64)
def _ramp(width: int, height: int, across: bool) -> np.ndarray:
    """Values 0..1 along one axis, (height, width, 1) float32."""
    line = np.linspace(0, 1, width if across else height, dtype=np.float32)
    full = np.broadcast_to(line[None, :] if across else line[:, None], (height, width))
    return np.ascontiguousarray(full)[..., None]


def background(rng: random.Random, width: int, height: int, colour: RGB, strength: int = 24) -> Image.Image:
    """A background near the colour: plain, a gradient, noise or stripes."""
    style = rng.random()
    if style < 0.55:
        return Image.new("RGB", (width, height), colour)
    base = np.array(colour, np.float32)
    if style < 0.75:
        other = np.array(jitter(rng, colour, strength), np.float32)
        ramp = _ramp(width, height, rng.random() < 0.5)
        pixels = base + (other - base) * ramp
    elif style < 0.9:
        noise = np.random.default_rng(rng.getrandbits(32))
        pixels = base + noise.integers(-strength // 2, strength // 2 + 1, (height, width, 1))
    else:
        image = Image.new("RGB", (width, height), colour)
        draw, other_colour, step = ImageDraw.Draw(image), jitter(rng, colour, strength // 2), rng.randint(6, 20)
        for at in range(0, max(width, height), step):
            box = (at, 0, at + step // 3, height) if rng.random() < 0.5 else (0, at, width, at + step // 3)
            draw.rectangle(box, fill=other_colour)
        return image
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def damage(rng: random.Random, image: Image.Image, share: float = 0.15) -> Image.Image:
    """Mild noise, blur or JPEG artefacts for a share of the images."""
    style = rng.random() / share
    if style >= 1:
        return image
    if style < 0.4:
        pixels = np.asarray(image).astype(np.int16)
        noise = np.random.default_rng(rng.getrandbits(32)).integers(-18, 19, pixels.shape, dtype=np.int16)
        return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    if style < 0.65:
        return image.filter(ImageFilter.GaussianBlur(0.4 + 0.4 * rng.random()))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(35, 80))
    return Image.open(buffer).convert("RGB")


@lru_cache(maxsize=512)
def size_of(font: ImageFont.FreeTypeFont, text: str) -> tuple[int, int, int, int]:
    """Ink box of the text drawn at (0, 0): left, top, right, bottom in pixels."""
    left, top, right, bottom = font.getbbox(text)
    return int(left), int(top), int(right), int(bottom)


def fit(path: str, text: str, width: int, height: int, largest: int, smallest: int = 8) -> ImageFont.FreeTypeFont:
    """The font at the largest size (pixels) whose ink box stays within width x height, never below ``smallest``."""
    size = largest
    for _ in range(4):
        font = fonts.load(path, size)
        left, top, right, bottom = size_of(font, text)
        ratio = min(width / max(1, right - left), height / max(1, bottom - top))
        if ratio >= 1 or size <= smallest:
            return font
        size = max(smallest, min(size - 1, int(size * ratio)))
    return fonts.load(path, size)


def character_box(font: ImageFont.FreeTypeFont, character: str, at: tuple[float, float],
                  size: tuple[int, int]) -> tuple[float, float, float, float]:  # fmt: skip
    """The box of a character drawn at ``at`` (pixels) in an image of ``size``, in shares of it, a line's height."""
    _, cap, _, base = size_of(font, "Hg")
    left, top, right, bottom = size_of(font, character)
    (x, y), (width, height) = at, size
    return (x + left) / width, (y + min(top, cap + 2)) / height, (x + right) / width, (y + max(bottom, base)) / height


def annotate_text(font: ImageFont.FreeTypeFont, text: str, at: tuple[float, float], size: tuple[int, int],
               line: int | None = 0, colour: str | None = None) -> list[PatchAnnotation]:  # fmt: skip
    """One patch annotation for every visible character of a text drawn at ``at`` (pixels) in an image of ``size``."""
    return [
        PatchAnnotation(
            text=character, place=place, line=line, colour=colour,
            box=character_box(font, character, (at[0] + font.getlength(text[:place]), at[1]), size),
        )
        for place, character in enumerate(text) if character != " "
    ]  # fmt: skip


def anywhere(rng: random.Random, font: ImageFont.FreeTypeFont, text: str, room: tuple[int, int],
             margin: int) -> tuple[int, int]:  # fmt: skip
    """A random place (pixels) to draw the text at, its ink inside a room of that width and height."""
    left, top, right, bottom = size_of(font, text)
    x = rng.randint(margin, max(margin, room[0] - (right - left) - margin)) - left
    return x, rng.randint(margin, max(margin, room[1] - (bottom - top) - margin)) - top


def centre(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], text: str, font: ImageFont.FreeTypeFont,
           fill: RGB) -> tuple[float, float]:  # fmt: skip
    """Draws the text so that its ink is centred in the box; returns where it began."""
    left, top, right, bottom = size_of(font, text)
    x = (box[0] + box[2] - left - right) / 2
    y = (box[1] + box[3] - top - bottom) / 2
    draw.text((x, y), text, font=font, fill=fill)
    return x, y


def turned(rng: random.Random, image: Image.Image, paper: RGB, degrees: float = 4.0) -> Image.Image:
    """The image turned by a few degrees, corners filled with the background."""
    angle = rng.uniform(-degrees, degrees)
    return image.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=paper)
