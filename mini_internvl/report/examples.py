"""The examples of an evaluation page: which items, their images from the benchmark's own files, boxes drawn on them.

Images are not kept with answers. The benchmark is asked for its items again; where its files have gone, the page
says so and shows the texts alone.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_internvl.inputs import boxes as written
from mini_internvl.inputs.messages import image_parts
from mini_internvl.records import Item
from mini_internvl.report import paired
from mini_internvl.report.folders import ReportAnswer, Result
from mini_internvl.report.images import data_urls
from mini_internvl.report.labels import Label
from mini_internvl.report.page import short

PER_BENCHMARK, IN_ALL = 60, 480  # most examples of one benchmark, and of a page
IMAGES_PER_ITEM = 6
IMAGE_BYTES, LARGEST_IMAGE = 9_500_000, 110_000  # JPEG bytes of all images together and of one; as base64 a third more
BOXES_PER_ITEM = 20
PICTURES, BOXES_PER_PICTURE = 6, 600  # whole pictures of a benchmark that are shown
PICTURE_IOU = 0.5  # at which their boxes count

REFERENCES = (
    *("answer", "answers", "gold", "truth", "label", "labels", "gt", "gts"),
    *("target", "reference", "references", "box", "boxes"),
)
"""Keys of a reference that hold the right answer, the likeliest first."""
CHOICES = ("options", "choices")

Box = tuple[float, float, float, float]


@dataclass(kw_only=True)
class ReportExample:
    """One item as the page shows it, with the answer of the other run; ``state`` is its class of the filter."""

    answer: ReportAnswer
    other: ReportAnswer | None
    state: str
    labels: Sequence[Label]
    sources: list[Any] = field(default_factory=list)
    """Images as the benchmark gives them; emptied when they are drawn."""
    images: list[tuple[str, str | None]] = field(default_factory=list)
    """(name, data URL or None where the image cannot be read); ``more`` are not shown."""
    more: int = 0
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    """Class ("true", "other", "this") -> boxes drawn on the first image, as shares of its sides."""

    @property
    def reference(self) -> str:
        """The right answer in words, cut; of boxes the integers 0..1000 in which answers are given."""
        text = reference_text(self.answer.reference)
        if self.boxes.get("true") and not written.parse(text):
            text = str([[round(1000 * edge) for edge in box] for box in self.boxes["true"]])
        return short(text)

    @property
    def marks(self) -> list[tuple[str, str, bool | None, str]]:
        """(whose, answer, right, overlap of the boxes) of each run, the other one first."""
        sides = [("other", self.other), ("this", self.answer)]
        return [(name, short(a.text), a.right, self._overlap(name)) for name, a in sides if a]

    def _overlap(self, side: str) -> str:
        """ "IoU 0.83": of each reference box with the best answered one, averaged; empty without reference boxes."""
        true, given = self.boxes.get("true", ()), self.boxes.get(side, ())
        if not true:
            return ""
        best = [max((written.iou(box, other) for other in given), default=0.0) for box in true]
        return f"IoU {math.fsum(best) / len(best):.2f}" if given else "no readable box"


@dataclass(frozen=True, kw_only=True)
class BenchmarkExamples:
    """The examples of one benchmark that are shown; ``problem`` says why they have no images, if so."""

    examples: Sequence[ReportExample]
    problem: str
    pictures: Sequence[ReportExample] = ()
    """Whole pictures with the boxes of their crops joined, where crops were asked."""

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """Key -> values of the categories, for the choice."""
        found: dict[str, list[str]] = {}
        for key, value in sorted({label for example in self.examples for label in example.labels}):
            found.setdefault(key, []).append(value)
        return {key: values for key, values in found.items() if len(values) > 1}


def collect(result: Result, other: Result | None, benchmarks: int) -> BenchmarkExamples:
    """The examples of one of so many benchmarks, with their images still to be drawn."""
    examples = choose(result, other, max(4, min(PER_BENCHMARK, IN_ALL // benchmarks)))
    pictures = list(itertools.islice(_pictures(result, other), PICTURES))
    return BenchmarkExamples(examples=examples, problem=load(result, examples), pictures=pictures)


def _pictures(result: Result, other: Result | None) -> Iterator[ReportExample]:
    """The whole pictures behind crops, by the benchmark's ``wholes``: boxes of all crops of a picture, joined."""
    joined = getattr(result.module, "wholes", None)
    if not callable(joined):
        return
    sides = [
        {(one.picture, one.phrase): one for one in joined((a.reference, a.text) for a in side.answers if _cut(a))}
        for side in (result, other)
        if side is not None
    ]
    for key, this in sides[0].items():
        theirs = sides[1].get(key) if other else None
        drawn = {"true": this.gold, "other": theirs.answered if theirs else [], "this": this.answered}
        width, height = this.size
        boxes = {
            name: [(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in some]
            for name, some in drawn.items()
        }
        yield ReportExample(
            answer=_told(this),
            other=_told(theirs) if theirs else None,
            state="unjudged",
            labels=(),
            sources=[this.picture],
            images=[("", None)],
            boxes={name: kept for name, some in boxes.items() if (kept := _inside(some, BOXES_PER_PICTURE))},
        )


def _cut(answer: ReportAnswer) -> bool:
    return isinstance(answer.reference, Mapping) and bool(answer.reference.get("crop"))


def _told(whole: Any) -> ReportAnswer:
    """What is said of a whole picture."""
    return ReportAnswer(
        id=Path(whole.picture).name,
        question=f"{whole.phrase}, in {whole.crops} crops",
        text=f"{len(whole.answered):,} boxes, F1 {100 * whole.f1(PICTURE_IOU):.1f}",
        right=None,
        reference=f"{len(whole.gold):,} boxes",
    )


def choose(result: Result, other: Result | None, most: int) -> list[ReportExample]:
    """At most ``most`` examples in item order, as many of each class, spread over categories and over the file."""
    theirs = {answer.id: answer for answer in other.answers} if other else {}
    every = []
    for answer in result.answers:
        second = theirs.get(answer.id)
        state = paired.state(answer, second, compared=other is not None)
        every.append(ReportExample(answer=answer, other=second, state=state, labels=result.labels[answer.id]))
    classes: dict[str, list[int]] = {}
    for place, example in enumerate(every):
        classes.setdefault(example.state, []).append(place)
    shares = _even({name: len(places) for name, places in classes.items()}, most)
    kept: list[int] = []
    for name, places in classes.items():
        ordered = sorted(places, key=lambda place: (every[place].labels, place))
        kept += [ordered[i * len(ordered) // shares[name]] for i in range(shares[name])]
    return [every[place] for place in sorted(kept)]


def _even(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """Equal shares; what a small class does not need goes to the others."""
    shares = dict.fromkeys(sizes, 0)
    for left, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        shares[name] = min(sizes[name], (most - sum(shares.values())) // (len(sizes) - left))
    return shares


def load(result: Result, examples: Sequence[ReportExample]) -> str:
    """Give the examples their images and boxes from the benchmark's files; returns why there are none, or nothing."""
    benchmark = result.module
    if benchmark is None:
        return f"this version has no benchmark called {result.benchmark}"
    if not examples:
        return ""
    wanted = {example.answer.id: example for example in examples}
    changed = 0
    try:
        for item in ask_again(result):
            example = wanted.pop(item.id, None)
            if example and _same(item, example.answer):
                _fill(example, item, benchmark)
            elif example:
                changed += 1
            if not wanted:
                break
    except (ValueError, OSError, ImportError) as error:
        return " ".join(str(error).split())
    if wanted or changed:
        gone = f"of {len(examples)} examples, {len(wanted)} are no longer in the data"
        return f"{gone} and {changed} have another reference now"
    return ""


def ask_again(result: Result) -> Iterator[Item]:
    """The benchmark's items as they were asked: with the settings of the score that ``items`` takes."""
    assert result.module is not None
    data = result.facts.get("data")
    root = data.get("path") if isinstance(data, dict) else data
    takes = inspect.signature(result.module.items).parameters
    if root and not Path(root).exists():  # a run folder that was moved holds its own data
        root = next((p for parent in result.folder.resolve().parents[:3] if (p := parent / root).exists()), root)
    if not root and takes["root"].default is inspect.Parameter.empty:
        raise ValueError("the score does not name the data folder")
    settings = {"split": result.text("split") or None}
    settings |= {name: result.facts.get(name) for name, p in takes.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    yield from result.module.items(root, **{name: value for name, value in settings.items() if value is not None})


def _same(item: Item, answer: ReportAnswer) -> bool:
    """Whether an item still has the reference that its answer was scored with."""
    if not isinstance(answer.reference, Mapping):
        return True
    reference = json.loads(json.dumps(dict(item.reference)))
    return all(reference[key] == value for key, value in answer.reference.items() if key in reference)


def _fill(example: ReportExample, item: Item, benchmark: Any) -> None:
    parts = image_parts(item.messages)
    names = [part.name for part in parts]
    example.sources = [part.source for part in parts[:IMAGES_PER_ITEM]]
    example.images = [(name, None) for name in names[:IMAGES_PER_ITEM]]
    example.more = len(parts) - len(example.sources)
    if not parts:
        return
    true, mine = _boxes(benchmark, item, example.answer)
    drawn = {"true": true, "other": _boxes(benchmark, item, example.other)[1] if example.other else [], "this": mine}
    example.boxes = {name: kept for name, boxes in drawn.items() if true and (kept := _inside(boxes))}


def _boxes(benchmark: Any, item: Item, answer: ReportAnswer) -> tuple[Collection[Any], Collection[Any]]:
    """Reference and answered boxes as shares of the image: the benchmark's, or those written in the texts (0..1000)."""
    draw = getattr(benchmark, "boxes", None)
    if callable(draw):  # the name may be an imported module
        true, given = draw(item, answer.text)
        return true, given
    texts = (reference_text(item.reference), answer.text)
    found = [[box for _, boxes in written.parse(text) for box in boxes] for text in texts]
    return [[edge / 1000 for edge in box] for box in found[0]], [[edge / 1000 for edge in box] for box in found[1]]


def _inside(boxes: Collection[Sequence[float]], most: int = BOXES_PER_ITEM) -> list[Box]:
    """The boxes that can be drawn, cut at the image's edges."""
    kept = []
    for box in list(boxes)[:most]:
        if len(box) == 4 and all(math.isfinite(edge) for edge in box):
            left, top, right, bottom = (min(1.0, max(0.0, float(edge))) for edge in box)
            kept.append((min(left, right), min(top, bottom), max(left, right), max(top, bottom)))
    return kept


def draw_images(examples: Sequence[ReportExample]) -> None:
    """Turn the sources of all examples of a page into data URLs that share the page's bytes."""
    urls = iter(data_urls([s for example in examples for s in example.sources], IMAGE_BYTES, LARGEST_IMAGE))
    for example in examples:
        example.images = [(name, next(urls)) for name, _ in example.images[: len(example.sources)]]
        example.sources = []


def reference_text(reference: Any) -> str:
    """The right answer of an item in words: its answer, with the option's text where it is a letter."""
    if not isinstance(reference, Mapping):
        return _words(reference)
    key = next((key for key in REFERENCES if reference.get(key) not in (None, "", [], {})), None)
    if key is None:
        return _words(dict(reference))
    text = _words(reference[key])
    options = next((reference[key] for key in CHOICES if reference.get(key)), None)
    if isinstance(options, Mapping) and options.get(text):
        return f"{text}. {options[text]}"
    if isinstance(options, list) and len(text) == 1 and 0 <= ord(text) - ord("A") < len(options):
        return f"{text}. {options[ord(text) - ord('A')]}"
    return text


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " | ".join(dict.fromkeys(value))
    return "" if value is None else json.dumps(value, ensure_ascii=False)
