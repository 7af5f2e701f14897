"""What a score is worth that needs no seeing: grey in place of images, and answers guessed from training data.

Many benchmarks can be answered in part without looking. ``blinded`` asks a model so; the grey image keeps the form of
its input, for a model that never read text alone answers that with nothing of use. ``Guesser`` asks no model: it
answers with what the training data answer most often to questions of the same kind.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from PIL import Image

from mini_internvl.inputs import boxes
from mini_internvl.inputs.messages import ImagePart, Messages, Turn, normalise
from mini_internvl.inputs.questions import asked, kinds
from mini_internvl.records import Item, Prediction, Sample

FEWEST = 5  # training answers from which a guess is made, unless they are to the same question
ALIKE = 0.9  # share of the answers to a kind of question that must be numbers, or boxes, for their median to be taken
DISTINCT = 20_000  # different answers to a kind of question that are counted

GREY = Image.new("RGB", (448, 448), (124, 116, 104))  # the mean colour that images are normalised by

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def blinded(items: Iterable[Item]) -> list[Item]:
    """The same questions, ``GREY`` in place of each of their images."""
    return [replace(item, messages=cast(Any, _grey(item.messages))) for item in items]


def _grey(messages: Messages) -> tuple[Turn, ...]:
    def blind(part: str | ImagePart) -> str | ImagePart:
        return part if isinstance(part, str) else replace(part, source=GREY, scale=1)

    return tuple(replace(turn, parts=tuple(map(blind, turn.parts))) for turn in normalise(messages))


class Guesser:
    """The most frequent answer to a kind of question; of numbers and of single boxes the median.

    Questions are of a kind when they differ only in numbers, quoted or tagged phrases and options. A question of a kind
    that training does not have is guessed by its first words, then by its first, then from all answers.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.guesses: dict[str, str] = {}
        for sample in samples:
            for conversation, said in asked(sample):
                answer = said.strip()
                for kind in kinds(conversation[-1].text):
                    counted = self.answers[kind]
                    if answer in counted or len(counted) < DISTINCT:
                        counted[answer] += 1

    def __call__(self, text: str) -> str:
        """A guess at the answer to a question; "" where training had no answers."""
        exact, *wider = kinds(text)
        known = [exact] * (exact in self.answers)
        known += [kind for kind in wider if kind in self.answers and self.answers[kind].total() >= FEWEST]
        if not known:
            return ""
        kind = known[0]
        if kind not in self.guesses:
            self.guesses[kind] = _typical(self.answers[kind])
        phrases = re.findall(r"<ref>(.*?)</ref>", text, re.DOTALL)
        found = boxes.parse(self.guesses[kind])
        if len(phrases) == 1 and len(found) == 1 and found[0][0]:  # the box with the phrase that is asked for
            return boxes.render(phrases[0], [[round(edge) for edge in box] for box in found[0][1]])
        return self.guesses[kind]

    def predictions(self, items: Sequence[Item]) -> list[Prediction]:
        """One for each item, by its last question."""
        return [Prediction(item_id=item.id, text=self(normalise(item.messages)[-1].text)) for item in items]


def _typical(answers: Counter[str]) -> str:
    most = answers.most_common(1)[0][0]
    wanted = ALIKE * answers.total()
    numbers = {answer: float(answer) for answer in answers if _NUMBER.fullmatch(answer)}
    if sum(answers[answer] for answer in numbers) >= wanted:
        middle = statistics.median([number for answer, number in numbers.items() for _ in range(answers[answer])])
        decimals = max(len(answer.partition(".")[2]) for answer in numbers)
        return f"{middle:.{decimals}f}"
    parsed = {answer: found for answer in answers if len(found := boxes.parse(answer)) == 1 and len(found[0][1]) == 1}
    if sum(answers[answer] for answer in parsed) >= wanted:
        drawn = [found[0][1][0] for answer, found in parsed.items() for _ in range(answers[answer])]
        box = [round(statistics.median(edges)) for edges in zip(*drawn, strict=True)]
        return boxes.render(parsed[next(iter(parsed))][0][0] or "object", [box])
    return most
