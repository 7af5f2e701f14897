"""Questions about the text of a picture, drawn from the picture's name: all of it, a line at a box, the box of a line.

They are asked in Chinese where the text is Chinese, else in English. Boxes are thousandths of the picture's sides.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mini_internvl.data.check import trainable
from mini_internvl.data.ocr import Line, PictureText
from mini_internvl.inputs import boxes
from mini_internvl.inputs.messages import normalise
from mini_internvl.records import Message, Sample

SOURCE = "ocr"
READ_ALL_CHARACTERS = 2000  # of a longer text only single lines are asked for
PHRASE_CHARACTERS = 60  # of a longer line the box is not asked for
CHINESE_SHARE = 0.3  # least share of Chinese characters in a Chinese text

READ_ALL = {
    "en": (
        "Read all the text in the image.",
        "What text is in the image? Write it line by line.",
        "Transcribe the text in the image.",
    ),
    "zh": ("请读出图中的所有文字。", "图中写了什么？请逐行写出。", "请逐行转写图片中的文字。"),
}
READ_LINE = {
    "en": ("What does the text in {} say?", "Read the text at {}.", "Which text stands in {}?"),
    "zh": ("{}中的文字是什么？", "请读出{}处的文字。", "{}里写了什么？"),
}
FIND_LINE = {
    "en": ("Where does the text {} stand?", "Give the box of the text {}.", "Find {} in the image."),
    "zh": ("文字{}在图中的什么位置？", "请给出文字{}的位置框。", "请在图中找出{}。"),
}

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def language(text: str) -> str:
    """``"zh"`` for a Chinese text, else ``"en"``."""
    shown = len(re.sub(r"\s", "", text))
    return "zh" if shown and len(_CHINESE.findall(text)) >= CHINESE_SHARE * shown else "en"


def ask(picture: PictureText, lines: Sequence[Line], image: Path) -> Sample:
    """The questions of a picture about some of its lines, at least one, in reading order; each stands alone.

    ValueError: the text cannot be trained on, such as one with the tags of images or boxes.
    """
    seed = hashlib.blake2b(picture.name.encode(errors="surrogateescape"), digest_size=16).digest()
    rng = random.Random(int.from_bytes(seed, "big"))
    whole = "\n".join(line.text for line in lines)
    if re.search(r"</?(ref|box)>", whole):
        raise ValueError("the text holds a tag of boxes, which a model would read as one; leave the picture out")
    said = language(whole)
    asked = []
    if len(whole) <= READ_ALL_CHARACTERS:
        asked.append((rng.choice(READ_ALL[said]), whole))
    line = rng.choice(lines)
    place = boxes.to_thousand(line.box, picture.width, picture.height)
    asked.append((rng.choice(READ_LINE[said]).format(boxes.render_boxes([place])), line.text))
    counted = Counter(one.text for one in lines)
    once = [one for one in lines if counted[one.text] == 1 and len(one.text) <= PHRASE_CHARACTERS]
    if once:
        line = rng.choice(once)
        place = boxes.to_thousand(line.box, picture.width, picture.height)
        question = rng.choice(FIND_LINE[said]).format(f"<ref>{line.text}</ref>")
        asked.append((question, boxes.render(line.text, [place])))
    rng.shuffle(asked)
    messages = list[Message]()
    for question, answer in asked:
        first = [{"type": "image", "image": str(image)}, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": question if messages else first})
        messages.append({"role": "assistant", "content": answer})
    trainable(normalise(messages))
    return Sample(id=picture.name, messages=messages, source=SOURCE, independent=len(asked) > 1)
