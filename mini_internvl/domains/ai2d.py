"""AI2D: multiple choice about school-book diagrams, from the authors' own files.

The raw folder holds ``questions/NAME.png.json``, ``images/NAME.png``, ``annotations/NAME.png.json`` and the list
``ai2d_test_ids.csv`` of the test's images, which are not trained on; and the file of the benchmark, InternVL's. A
question file is ``{"imageName": ..., "questions": {QUESTION: {"answerTexts": [...], "correctAnswer": 0, ...}}}``.
Unusual: a question with ``abcLabel`` is about letters that stand in the place of the diagram's texts. Such images are
taken from ``abc_images`` (InternVL's folder) or drawn there, once, from the annotations' rectangles.
Source: the loader of google-research/big_vision, ``datasets/ai2d``, whose letters stand at the same places.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl import files
from mini_internvl.benchmarks import _choices
from mini_internvl.benchmarks import ai2d as benchmark
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Question, needed
from mini_internvl.data import DataError, Fault
from mini_internvl.domains import AdaptRecipe, DomainBenchmark, DomainExample, ExampleImage
from mini_internvl.domains._questions import expected, samples
from mini_internvl.files import new_file
from mini_internvl.inputs.images import load_image
from mini_internvl.records import Sample

SOURCE = "ai2d"
TITLE = "School-book diagrams (AI2D)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = {"ai2d": DomainBenchmark(test="test")}
TEST_IDS = "ai2d_test_ids.csv"
LARGEST = 16 << 20  # bytes of a file of questions or annotations


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """Up to 8 questions about one diagram a sample; a fault for each question without answer or diagram."""
    chosen("split", split, SPLITS)
    folder = next((place for place in (Path(raw) / "ai2d", Path(raw)) if (place / "questions").is_dir()), None)
    if folder is None:
        raise DataError(f"{Path(raw) / 'questions'} is no folder; give the unpacked ai2d-all.zip (prior.allenai.org)")
    ids = next((place for place in (folder / TEST_IDS, Path(raw) / TEST_IDS) if place.is_file()), None)
    path = ids or needed(folder, TEST_IDS, "https://s3-us-east-2.amazonaws.com/prior-datasets")
    yield from samples(_read(folder, _test_ids(path)), SOURCE)


def _test_ids(path: Path) -> set[str]:
    """The diagrams of the test, one a line, with or without ``.png``; DataError where the list names none."""
    words = re.split(r'[\s,;"]+', files.read_text(path, limit=LARGEST, error=DataError))
    names = {word.removesuffix(".png") for word in words if word}
    if not any(map(str.isdecimal, names)):
        raise DataError(f"{path} names no diagram by its number, so the test would be trained on; fetch it again")
    return names


def _read(folder: Path, test: set[str]) -> Iterator[Question | Fault]:
    """The questions of all diagrams but the test's; those of letters after the others of a diagram."""
    for path in sorted((folder / "questions").glob("*.json")):
        name = path.name.removesuffix(".json")
        if name.partition(".")[0] in test:
            continue
        try:
            asked = files.read_object(path, limit=LARGEST, error=DataError).get("questions")
        except DataError as error:
            yield Fault(file=path, place="the file", reason=str(error))
            continue
        if not isinstance(asked, Mapping):
            yield Fault(file=path, place="the file", reason="questions is no object of questions")
            continue
        diagram = _Diagram(folder=folder, name=name)
        for text, row in sorted(asked.items(), key=lambda one: _about_letters(one[1])):
            try:
                yield _question(text, row, diagram)
            except ValueError as error:
                yield Fault(file=path, place=f'question "{text}"', reason=str(error))


def _about_letters(row: Any) -> bool:
    """Whether a question is about letters in the place of the diagram's texts."""
    return isinstance(row, Mapping) and row.get("abcLabel") is True


def _question(text: str, row: Any, diagram: _Diagram) -> Question:
    """ValueError says what is wrong with a question."""
    options, right = (row.get("answerTexts"), row.get("correctAnswer")) if isinstance(row, Mapping) else (None, None)
    if not text.strip():
        raise ValueError("the question holds no text")
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise ValueError("answerTexts is no list of texts")
    if type(right) is not int or not 0 <= right < len(options) <= len(string.ascii_uppercase):
        raise ValueError(
            f"correctAnswer is {right!r}; it must be the place of one of {len(options)} answerTexts, from 0"
        )
    lettered = dict(zip(string.ascii_uppercase, (option.strip() for option in options), strict=False))
    return Question(
        id=str(row.get("questionId") or f"{diagram.name}-{text}"),
        image=diagram.lettered() if _about_letters(row) else diagram.plain(),
        prompt=_choices.choice_prompt({"question": text.strip()}, lettered, chinese=False),
        answer=string.ascii_uppercase[right],
    )


@dataclass(frozen=True, kw_only=True)
class _Diagram:
    """The image of a question, with its own texts or with letters in their place."""

    folder: Path
    name: str  # of the image file

    def plain(self) -> str:
        """ValueError where the image is missing."""
        path = self.folder / "images" / self.name
        if not path.is_file():
            raise ValueError(f"the image {path} is missing")
        return str(path)

    def lettered(self) -> str:
        """Draws the image where it is not there; ValueError where it cannot be drawn."""
        path = self.folder / "abc_images" / self.name
        if not path.is_file():
            notes = self.folder / "annotations" / f"{self.name}.json"
            if not notes.is_file():
                raise ValueError(f"{notes} is missing, which says where the letters stand")
            draw_letters(Path(self.plain()), files.read_object(notes, limit=LARGEST, error=DataError), path)
        return str(path)


def draw_letters(image: Path, notes: Mapping[str, Any], path: Path) -> None:
    """Write the image with each of its texts replaced by a letter: black on white, as large as the text's rectangle.

    ValueError: the annotations, or one of their rectangles, are of another form.
    """
    from PIL import ImageDraw

    from mini_internvl.synth import fonts

    texts = notes.get("text")
    if not isinstance(texts, Mapping):
        raise ValueError("the annotations hold no texts")
    drawn = load_image(os.fspath(image))
    pen = ImageDraw.Draw(drawn)
    for name, one in texts.items():
        try:
            (x1, y1), (x2, y2) = one["rectangle"]
            letter = str(one["replacementText"])
            width, height = x2 - x1, y2 - y1
            if min(width, height) < 1:
                raise ValueError
        except (LookupError, TypeError, ValueError):
            raise ValueError(f"the annotation {name} has no rectangle [[x1, y1], [x2, y2]] with its letter") from None
        pen.rectangle((x1, y1, x2, y2), fill="white")
        left, top, right, bottom = fonts.load(fonts.BUILT_IN, 100).getbbox(letter)
        size = 100 * min(width / max(1, right - left), height / max(1, bottom - top))
        font = fonts.load(fonts.BUILT_IN, max(6, min(100, int(size))))
        pen.text(((x1 + x2) / 2, (y1 + y2) / 2), letter, fill="black", font=font, anchor="mm")
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as draft:
        drawn.save(draft, "PNG")


def _row(number: int, options: Any, answer: Any, *, letters: bool = False) -> dict[str, Any]:
    """A question of the files, for the example."""
    return {"abcLabel": letters, "answerTexts": options, "correctAnswer": answer, "questionId": f"1.png-{number}"}


_LETTER = "Answer with the option's letter from the given choices directly."
EXAMPLE = DomainExample(
    files={
        TEST_IDS: "3\n",
        "questions/1.png.json": {
            "imageName": "1.png",
            "questions": {
                "What is A in the diagram?": _row(0, ["ears", "nose", "mouth", "face"], 3, letters=True),
                "Which stage follows the egg?": _row(1, ["adult moth", "larva", "pupa", "egg"], 1),
                "Is the answer there?": _row(2, ["yes", "no"], 2),
                "Are there options?": _row(3, "yes", 0),
                "Is the leaf eaten?": _row(4, ["True", "False"], 0),
            },
        },
        "annotations/1.png.json": {
            "text": {"T0": {"rectangle": [[20, 10], [60, 30]], "replacementText": "A", "value": "face"}}
        },
        "questions/2.png.json": {
            "imageName": "2.png",
            "questions": {
                "What is B?": _row(0, ["a leaf", "a root"], 1, letters=True),
                "What is shown?": _row(1, ["a leaf", "a root"], 0),
            },
        },
        "questions/3.png.json": {"imageName": "3.png", "questions": {"Is it the test?": _row(0, ["yes", "no"], 0)}},
        "questions/4.png.json": {"imageName": "4.png", "questions": {"Is it there?": _row(0, ["yes", "no"], 1)}},
        "questions/5.png.json": [],
        **benchmark.EXAMPLE.files,
    },
    images={
        **{f"images/{number}.png": ExampleImage(seed=number) for number in (1, 2, 3)},
        **benchmark.EXAMPLE.images,
    },
    samples={
        "train": [
            expected(
                SOURCE,
                "1.png-1",
                "images/1.png",
                (f"Which stage follows the egg?\nA. adult moth\nB. larva\nC. pupa\nD. egg\n{_LETTER}", "B"),
                (f"Is the leaf eaten?\nA. True\nB. False\n{_LETTER}", "A"),
            ),
            expected(
                SOURCE,
                "1.png-0",
                "abc_images/1.png",
                (f"What is A in the diagram?\nA. ears\nB. nose\nC. mouth\nD. face\n{_LETTER}", "D"),
            ),
            expected(SOURCE, "1.png-1", "images/2.png", (f"What is shown?\nA. a leaf\nB. a root\n{_LETTER}", "A")),
        ]
    },
    faults={"train": 5},
)
