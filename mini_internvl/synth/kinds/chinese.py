"""Questions in Chinese about shapes, and one to four common characters to read where a Chinese font is installed."""

from __future__ import annotations

import random

from PIL import ImageDraw

from .. import canvas, fonts, lexicon
from ..base import QA, Drawn
from ..scene import SHAPE_COLOURS, SHAPES, Scene, compose

_NAMES = ("圆形", "正方形", "三角形", "星形", "五边形", "六边形", "菱形", "十字形", "圆环")
_COLOURS = ("红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "棕色", "黑色", "白色")
NAMES = dict(zip(SHAPES, _NAMES, strict=True))
COLOURS = dict(zip(SHAPE_COLOURS, _COLOURS, strict=True))
CHARACTERS = (
    "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法"
    "此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西"
    "再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活难神数件安表"
    "原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共风战干接它许八特觉望直服"
)  # fmt: skip
"""Common characters."""
READ = ("图中写的是什么？", "读出图中的文字。", "图片上写着什么？", "图中有哪些字？", "请读出文字。")
COUNT = ("图中有几个图形？", "一共有多少个图形？", "图里有几个图形？", "数一数图形的数量。")
COUNT_SOME = ("图中有几个{0}的图形？", "有多少个{0}的图形？", "{0}的图形有几个？")
COUNT_NAME = ("图中有几个{0}？", "有多少个{0}？", "{0}有几个？")
COLOUR = ("{0}是什么颜色？", "{0}的颜色是什么？", "图中的{0}是什么颜色的？")
NAME = ("{0}的图形是什么形状？", "哪个图形是{0}的？", "{0}的是什么图形？")
THERE = ("图中有{0}吗？", "有没有{0}？", "你看到{0}了吗？")
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
    left, top, right, bottom = canvas.size_of(font, text)
    x = rng.randint(3, max(3, width - (right - left) - 3)) - left
    y = rng.randint(3, max(3, height - (bottom - top) - 3)) - top
    ImageDraw.Draw(image).text((x, y), text, font=font, fill=ink)
    questions = [QA(rng.choice(READ), text, "read")]
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
        QA(rng.choice(COUNT), str(len(shapes)), "count"),
        QA(rng.choice(COUNT_SOME).format(COLOURS[some.colour]), str(colours.count(some.colour)), "count"),
        QA(rng.choice(COUNT_NAME).format(NAMES[some.name]), str(names.count(some.name)), "count"),
    ]
    made += [QA(rng.choice(COLOUR).format(NAMES[s.name]), COLOURS[s.colour], "colour")
             for s in shapes if names.count(s.name) == 1][:2]  # fmt: skip
    made += [QA(rng.choice(NAME).format(COLOURS[s.colour]), NAMES[s.name], "name")
             for s in shapes if colours.count(s.colour) == 1][:2]  # fmt: skip
    wanted = label[some] if rng.random() < 0.5 else COLOURS[rng.choice(SHAPE_COLOURS)] + NAMES[rng.choice(SHAPES)]
    made.append(QA(rng.choice(THERE).format(wanted), "有" if wanted in label.values() else "没有", "exist"))
    once = [s for s in shapes if list(label.values()).count(label[s]) == 1]
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
