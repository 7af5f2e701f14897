"""Questions in Chinese about shapes, and one to four common characters to read where a Chinese font is installed."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import ImageDraw

from .. import canvas, fonts, lexicon
from ..base import QA, Drawn, wordings
from ..scene import SHAPE_COLOURS, SHAPES, Scene, compose, unique

ASK = wordings("chinese")

_NAMES = ("圆形", "正方形", "三角形", "星形", "五边形", "六边形", "菱形", "十字形", "圆环")
_COLOURS = ("红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "棕色", "黑色", "白色")
NAMES = dict(zip(SHAPES, _NAMES, strict=True))
COLOURS = dict(zip(SHAPE_COLOURS, _COLOURS, strict=True))
CHARACTERS = "".join(Path(fonts.__file__).with_name("characters.txt").read_text("utf-8").split())  # common characters
SIDES = {"左边": (-1, 0), "右边": (1, 0), "上面": (0, -1), "下面": (0, 1)}


def _text(rng: random.Random, split: str) -> str:
    """One to four characters; three or four in the test split, where the whole string is unseen."""
    least = 3 if split == "test" else 1
    return lexicon.of_split(split, lambda: "".join(rng.choices(CHARACTERS, k=rng.randint(least, 4))))


def _read(rng: random.Random, split: str, path: str) -> Drawn:
    """Characters on 112 x 112 pixels or 224 x 112."""
    text = _text(rng, split)
    wide = 112 if rng.random() < 0.7 else 224
    width, height = wide - rng.randint(0, wide // 12), 112 - rng.randint(0, 8)
    ink, paper = canvas.ink_and_paper(rng)
    image = canvas.background(rng, width, height, paper, 12)
    font = canvas.fit(path, text, width - 8, height - 8, rng.randint(24, 60))
    ImageDraw.Draw(image).text(canvas.anywhere(rng, font, text, image.size, 3), text, font=font, fill=ink)
    questions = [QA(rng.choice(ASK["read"]), text, "read")]
    if split == "train" and len(text) > 1:
        questions.append(QA("第一个字是什么？", text[0], "part", main=False))
        questions.append(QA("图中有几个字？", str(len(text)), "count", main=False))
    return canvas.damage(rng, image, 0.08), questions


def _ask(rng: random.Random, scene: Scene) -> list[QA]:
    """Number, colour, name, presence and relation."""
    shapes = scene.shapes
    some, names, colours = rng.choice(shapes), [s.name for s in shapes], [s.colour for s in shapes]
    label = {s: f"{COLOURS[s.colour]}{NAMES[s.name]}" for s in shapes}
    made = [
        QA(rng.choice(ASK["count"]), str(len(shapes)), "count"),
        QA(rng.choice(ASK["count_some"]).format(COLOURS[some.colour]), str(colours.count(some.colour)), "count"),
        QA(rng.choice(ASK["count_name"]).format(NAMES[some.name]), str(names.count(some.name)), "count"),
    ]
    made += [QA(rng.choice(ASK["colour"]).format(NAMES[s.name]), COLOURS[s.colour], "colour")
             for s in unique(shapes, "name")][:2]  # fmt: skip
    made += [QA(rng.choice(ASK["name"]).format(COLOURS[s.colour]), NAMES[s.name], "name")
             for s in unique(shapes, "colour")][:2]  # fmt: skip
    wanted = label[some] if rng.random() < 0.5 else COLOURS[rng.choice(SHAPE_COLOURS)] + NAMES[rng.choice(SHAPES)]
    made.append(QA(rng.choice(ASK["there"]).format(wanted), "有" if wanted in label.values() else "没有", "exist"))
    once = unique(shapes)
    if len(once) > 1:
        first, second = rng.sample(once, 2)
        side, (across, down) = rng.choice(list(SIDES.items()))
        offset = across * (first.centre[0] - second.centre[0]) + down * (first.centre[1] - second.centre[1])
        if abs(offset) > (first.size + second.size) / 3:
            question = f"{label[first]}在{label[second]}的{side}吗？"
            made.append(QA(question, "是" if offset > 0 else "不是", "relation"))
    return made


def draw(rng: random.Random, split: str) -> Drawn:
    """Shapes with Chinese questions, or characters to read (never without a Chinese font)."""
    path = fonts.pick_cjk(rng)
    if path is not None and rng.random() < 0.4:
        return _read(rng, split, path)
    scene = compose(rng)
    made = _ask(rng, scene)
    return scene.image, made if split == "test" else rng.sample(made, min(len(made), rng.randint(3, 6)))
