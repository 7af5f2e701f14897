"""One word or number of up to 8 characters as the world shows it: sign, label, button, ticket, screen, plain."""

from __future__ import annotations

import random

from PIL import ImageDraw

from .. import canvas, fonts, lexicon
from ..base import QA, Annotated, wordings

ASK = wordings("words")

LAYOUTS = ("sign", "label", "button", "ticket", "screen", "plain", "plain")
SIZES = ((112, 112, 7), (224, 112, 3))
DARK = ("black", "blue", "red", "green", "purple", "brown")
LIGHT = ("white", "yellow", "cyan", "pink", "orange")
Box = tuple[int, int, int, int]


def text(rng: random.Random, split: str) -> tuple[str, str]:
    """A text of up to 8 characters and its sort: word or number."""
    if rng.random() < 0.6:
        return lexicon.word(rng, split), "word"
    return lexicon.number(rng, split), "number"


def _named(rng: random.Random, dark: bool) -> tuple[str, canvas.RGB]:
    """A named colour on the dark or on the light side."""
    name = rng.choice(DARK if dark else LIGHT)
    return name, canvas.jitter(rng, canvas.COLOURS[name], 10)


def _panel(rng: random.Random, pen: ImageDraw.ImageDraw, layout: str, box: Box, paper: canvas.RGB,
           ink: canvas.RGB) -> Box:  # fmt: skip
    """Draws the object and returns where its text may stand."""
    left, top, right, bottom = box
    if layout == "sign":
        post = rng.random() < 0.4 and bottom - top > 60
        if post:
            x, bottom = (left + right) // 2, bottom - (bottom - top) // 4
            pen.rectangle((x - 4, bottom, x + 4, box[3] + 20), fill=(110, 100, 90))
        pen.rounded_rectangle((left, top, right, bottom), rng.randint(2, 12), fill=paper)
        pen.rounded_rectangle((left + 3, top + 3, right - 3, bottom - 3), 8, outline=ink, width=2)
        return left + 8, top + 7, right - 8, bottom - 7
    if layout == "label":
        point = min(16, (bottom - top) // 3)
        pen.polygon([(left, (top + bottom) // 2), (left + point, top), (right, top), (right, bottom),
                     (left + point, bottom)], fill=paper)  # fmt: skip
        middle = (top + bottom) // 2
        pen.ellipse((left + 6, middle - 3, left + 12, middle + 3), fill=ink)
        return left + point + 4, top + 4, right - 5, bottom - 4
    if layout == "button":
        pen.rounded_rectangle((left + 2, top + 3, right + 2, bottom + 3), (bottom - top) // 2, fill=(40, 40, 40))
        pen.rounded_rectangle((left, top, right, bottom), (bottom - top) // 2, fill=paper)
        inset = (bottom - top) // 5 + 3
        return left + inset, top + 4, right - inset, bottom - 4
    if layout == "ticket":
        pen.rectangle(box, fill=paper)
        for x in range(left, right, 8):
            pen.line((x, top + 3, x + 4, top + 3), fill=ink)
            pen.line((x, bottom - 3, x + 4, bottom - 3), fill=ink)
        for y in range(top, bottom - 5, 10):
            pen.pieslice((left - 4, y, left + 4, y + 8), 270, 90, fill=(120, 120, 120))
        return left + 8, top + 7, right - 5, bottom - 7
    pen.rounded_rectangle((left - 4, top - 4, right + 4, bottom + 4), 4, fill=(70, 70, 74))
    pen.rectangle(box, fill=paper)
    if rng.random() < 0.5:
        for y in range(top, bottom, 4):
            pen.line((left, y, right, y), fill=canvas.jitter(rng, paper, 6))
    return left + 4, top + 4, right - 4, bottom - 4


def _room(rng: random.Random, width: int, height: int, layout: str) -> Box:
    """Where the object stands: most of the width, a part of the height."""
    margin = rng.randint(5, 9)
    tall = rng.randint(min(44, height - 2 * margin), height - 2 * margin)
    if layout in ("button", "label"):
        tall = min(tall, 62)
    top = rng.randint(margin, height - margin - tall)
    return margin, top, width - margin, top + tall


def draw_annotated(rng: random.Random, split: str) -> Annotated:
    """An image near 112 x 112 or 224 x 112 pixels with letters of 14 to 48 pixels, and where its characters are."""
    layout = rng.choice(LAYOUTS)
    shown, sort = text(rng, split)
    wide, high, _ = rng.choices(SIZES, weights=[s[2] for s in SIZES])[0]
    width, height = wide - rng.randint(0, wide // 12), high - rng.randint(0, 8)
    path = fonts.pick(rng, split)
    dark_ink = layout != "screen" and rng.random() < 0.6
    ink_name, ink = _named(rng, dark_ink)
    paper_name, paper = _named(rng, not dark_ink)
    if abs(canvas.luminance(ink) - canvas.luminance(paper)) < 75:
        ink_name, ink = ("black", (16, 16, 16)) if dark_ink else ("white", (252, 252, 252))
        paper_name, paper = ("white", (250, 250, 250)) if dark_ink else ("black", (16, 16, 16))
    if layout == "plain":
        image = canvas.background(rng, width, height, paper, 16)
        pen, room = ImageDraw.Draw(image), (4, 4, width - 4, height - 4)
    else:
        image = canvas.background(rng, width, height, canvas.jitter(rng, (150, 160, 165), 70), 30)
        pen = ImageDraw.Draw(image)
        room = _panel(rng, pen, layout, _room(rng, width, height, layout), paper, ink)
    largest = rng.randint(22, 48 if wide > 112 else 40)
    font = canvas.fit(path, shown, room[2] - room[0] - 2, room[3] - room[1] - 2, largest)
    if layout == "plain":
        at: tuple[float, float] = canvas.anywhere(rng, font, shown, image.size, 4)
        pen.text(at, shown, font=font, fill=ink)
        if rng.random() < 0.25:
            image = canvas.turned(rng, image, paper, 4)
    else:
        at = canvas.centre(pen, room, shown, font, ink)
    annotations = canvas.annotate_text(font, shown, at, image.size, colour=ink_name)
    image = canvas.damage(rng, image, 0.15)
    return image, _ask(rng, split, shown, sort, layout, ink_name, paper_name), annotations


def _ask(rng: random.Random, split: str, shown: str, sort: str, layout: str, ink: str, paper: str) -> list[QA]:
    """The reading question first, in training a helper after it."""
    generic = ASK["read_word"] if sort == "word" else ASK["read_number"]
    named = layout != "plain" and rng.random() < 0.6
    question = rng.choice(ASK["read_any"]).format(layout) if named else rng.choice(generic)
    if rng.random() < 0.05:
        question = rng.choice(ASK["read_chinese"])
    made = [QA(question, shown, "read")]
    if split == "test":
        return made
    others = [
        QA(rng.choice(ASK["text_colour"]), ink, "text_colour", main=False),
        QA(f"What colour is the {'background' if layout == 'plain' else layout}?", paper, "back_colour", main=False),
    ]
    if layout != "plain":
        others.append(QA(rng.choice(ASK["what"]), f"a {layout}", "object", main=False))
    if rng.random() < 0.5:
        other = shown if rng.random() < 0.5 else text(rng, split)[0]
        verb = "Is the text" if layout == "plain" else f"Does the {layout} say"
        others.append(QA(f'{verb} "{other}"?', "Yes" if other == shown else "No", "verify", main=False))
    return [*made, rng.choice(others)]
