"""Pictures with boxes as training samples: what is there, how many, and where.

For each class in a picture: how many objects, and all their boxes ("Detect", the paper's form, boxes from top to
bottom). Presence is asked of at most two classes that are not there and of no more that are, one at least, so that
neither answer can be guessed; a picture without objects is asked for absent classes alone.
Unusual: nothing is asked of classes whose objects are not all known (crowds of COCO, boxes that cannot be used), since
the answers would be wrong. No boxes are asked for where a class has more than ``MOST_BOXES`` in a picture: the answer
would be too long.
Cutting the picture into crops helps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from mini_internvl.domains._annotated import Picture
from mini_internvl.inputs import boxes
from mini_internvl.inputs.boxes import Box
from mini_internvl.records import Message, Sample

PRESENCE = 'Is there an object of the class "{}" in the image? Answer yes or no.'
COUNT = 'How many objects of the class "{}" are in the image? Answer with a number.'
DETECT = "Detect <ref>{}</ref>"
MOST_BOXES = 40  # of one class in one answer
MOST_QUESTIONS = 8  # in a sample: more would make one picture weigh too much in a step
ABSENT = 2  # classes that are not in a picture whose presence is asked for


def samples(picture: Picture, classes: Sequence[str], *, seed: int) -> Iterator[Sample]:
    """Samples of independent questions about a picture; ``classes`` are all that the data know, sorted."""
    asked = list(_questions(picture, classes, random.Random(f"{seed} {picture.id}")))
    for start in range(0, len(asked), MOST_QUESTIONS):
        some = asked[start : start + MOST_QUESTIONS]
        messages: list[Message] = []
        for question, answer in some:
            content = [{"type": "image", "image": picture.image}, {"type": "text", "text": question}]
            messages += [
                {"role": "user", "content": question if messages else content},
                {"role": "assistant", "content": answer},
            ]
        name = f"{picture.id}#{start // MOST_QUESTIONS + 1}" if len(asked) > MOST_QUESTIONS else picture.id
        yield Sample(id=name, messages=messages, independent=len(some) > 1)


def crowded(picture: Picture) -> int:
    """How many classes of the picture have too many objects for their boxes to be asked for."""
    return sum(len(found) > MOST_BOXES for found in by_class(picture).values())


def phrase(name: str) -> str:
    """A class as it is asked for: ``palm_tree`` is ``palm tree``."""
    return " ".join(name.replace("_", " ").replace("<", " ").replace(">", " ").replace('"', " ").split())


def _questions(picture: Picture, classes: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    objects = by_class(picture)
    present = sorted(objects)
    unasked = {phrase(name) for name in picture.unasked}
    absent = [name for name in dict.fromkeys(map(phrase, classes)) if name not in objects and name not in unasked]
    absent = rng.sample(absent, min(len(absent), ABSENT))
    for name in sorted(rng.sample(present, min(len(present), max(1, len(absent))))):
        yield PRESENCE.format(name), "yes"
    for name in sorted(absent):
        yield PRESENCE.format(name), "no"
    if not present and absent:
        yield COUNT.format(absent[0]), "0"
    for name in present:
        yield COUNT.format(name), str(len(objects[name]))
        if len(objects[name]) <= MOST_BOXES:
            scaled = [boxes.to_thousand(box, *picture.size) for box in objects[name]]
            yield DETECT.format(name), boxes.render(name, sorted(scaled, key=lambda box: (box[1], box[0])))


def by_class(picture: Picture) -> dict[str, list[Box]]:
    """Class as it is asked for -> its boxes, of the classes that something is asked of."""
    found: dict[str, list[Box]] = {}
    unasked = {phrase(name) for name in picture.unasked}
    for name, box in picture.objects:
        if phrase(name) not in unasked:
            found.setdefault(phrase(name), []).append(box)
    return found
