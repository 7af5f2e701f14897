"""From sources of samples to the batches of each optimiser step.

Everything is a pure function of the step number: which source a sample comes from, which of its samples it is, and how
a step is cut into micro batches. So a run resumes anywhere without replaying, and workers share nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mini_internvl import plugins, synth
from mini_internvl.inputs import chat
from mini_internvl.inputs.images import beside as image_beside
from mini_internvl.inputs.messages import beside, normalise
from mini_internvl.inputs.prepare import CutImage, Processor
from mini_internvl.inputs.tiles import normalise as normalise_tiles
from mini_internvl.recipes import SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example, Sample
from mini_internvl.train.independent import PADDING, join, position_ids, split_questions
from mini_internvl.train.patches import patch_labels

IGNORE = -100


class DataError(ValueError):
    """A training sample that cannot be used; the message names it."""


class Source(Protocol):
    """Samples by number; numbers past the end begin again."""

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class SynthSource:
    """Images drawn on the fly; never runs out."""

    kind: str
    seed: int
    split: str

    def __getitem__(self, index: int) -> Sample:
        return synth.make(self.kind, self.seed, index, self.split)


class ListSource:
    """Samples held in a list, shuffled anew for each pass."""

    def __init__(self, samples: Sequence[Sample], seed: int, name: str) -> None:
        if not samples:
            raise DataError(f"{name} holds no samples")
        self.samples, self.seed = samples, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int) -> Sample:
        turn, place = divmod(index, len(self.samples))
        if self._order is None or self._order[0] != turn:
            self._order = (turn, np.random.default_rng((self.seed, turn)).permutation(len(self.samples)))
        return self.samples[int(self._order[1][place])]


def open_source(recipe: SourceRecipe, seed: int) -> Source:
    """Open one source of a recipe.

    Raises:
        DataError: the file or folder is missing, or a row is wrong (named by file and line).
    """
    if recipe.kind == "synth":
        if recipe.name not in synth.KINDS:
            raise DataError(f'unknown synth kind "{recipe.name}"; known: {", ".join(synth.KINDS)}')
        if reason := synth.missing(recipe.name):
            raise DataError(f"{reason}; or take the source {recipe.name} out of the recipe")
        return SynthSource(recipe.name, recipe.seed, recipe.split)
    if recipe.kind == "domain":
        domain = plugins.find("domains", recipe.name)
        samples, name = list(domain.convert(Path(recipe.path), recipe.split)), f"{recipe.path} ({recipe.split})"
    else:
        samples, name = list(read_jsonl(Path(recipe.path))), recipe.path
    if recipe.independent:
        samples = [replace(sample, independent=True) for sample in samples]
    for sample in samples:
        _check_apart(sample, name)
    return ListSource(samples, seed, name)


def _check_apart(sample: Sample, name: str) -> None:
    try:
        if sample.independent:
            split_questions(sample.messages)
    except ValueError as error:
        raise DataError(f"{name}, sample {sample.id}: {error}") from None


def read_jsonl(path: Path) -> list[Sample]:
    """Rows of InternVL's jsonl (``conversations``, ``image``) or of OpenAI messages (``messages``).

    Image paths are relative to the file's folder. A row may say ``"independent": true`` of its questions.

    Raises:
        DataError: names the file and line.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    samples = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not valid JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: a row is an object with messages or conversations")
            try:
                messages = (
                    beside(row["messages"], path.parent) if "messages" in row else from_conversations(row, path.parent)
                )
                normalise(messages)
            except KeyError as error:
                raise DataError(f"{where}: no field {error}") from None
            except (AttributeError, TypeError, ValueError) as error:
                raise DataError(f"{where}: {error}") from None
            independent = row.get("independent", row.get("apart", False))
            if not isinstance(independent, bool):
                raise DataError(f"{where}: independent is {json.dumps(independent)}; it must be true or false")
            samples.append(
                Sample(id=str(row.get("id", number)), messages=messages, source=path.stem, independent=independent)
            )
    return samples


def from_conversations(row: Mapping[str, Any], folder: Path) -> list[Any]:
    """InternVL's ``{image, conversations: [{from, value}]}`` -> messages with image parts.

    A row with one image and no ``<image>`` mark gets it in front, as the original does.

    Raises:
        ValueError: marks and images differ in number, or a speaker is unknown.
    """
    names = row.get("image") or []
    images = [image_beside(name, folder) for name in ([names] if isinstance(names, str) else names)]
    turns = list(row["conversations"])
    if turns and turns[0]["from"] not in ("human", "system"):
        turns = turns[1:]
    marks = sum(turn["value"].count("<image>") for turn in turns)
    if len(images) == 1 and marks == 0:
        first = next((i for i, turn in enumerate(turns) if turn["from"] == "human"), None)
        if first is None:
            raise ValueError("an image but no question: no turn is from human")
        turns[first] = {**turns[first], "value": "<image>\n" + turns[first]["value"]}
        marks = 1
    if marks != len(images):
        raise ValueError(f"{marks} <image> marks but {len(images)} images")
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    messages, rest = [], iter(images)
    for turn in turns:
        if turn["from"] not in roles:
            raise ValueError(f'unknown speaker "{turn["from"]}"; known: human, gpt, system')
        text = turn["value"]
        content: Any = text
        if "<image>" in text:
            content = [{"type": "image", "image": next(rest)} for _ in range(text.count("<image>"))]
            content.append({"type": "text", "text": text})
        messages.append({"role": roles[turn["from"]], "content": content})
    return messages


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Sample -> Example for one model."""

    processor: Processor
    """Cuts and encodes messages for the model."""
    max_tiles: int
    """Most tiles of a sample, shared by its images."""
    max_length: int
    """Longest sample in tokens, all its questions together."""
    with_patches: bool = False
    """Whether examples carry the labels of the loss over patches."""
    marks_needed: bool = True
    """Whether a sample without marks is then an error; otherwise its patches carry no label."""

    def __call__(self, sample: Sample) -> Example:
        """Render images and text.

        Raises:
            DataError: names the sample and what is wrong.
        """
        name = f"{sample.source}/{sample.id}"
        try:
            messages = normalise(sample.messages)
            images = self.processor.cut(messages, max_tiles=sample.max_tiles or self.max_tiles)
            counts = [len(image.tiles) for image in images]
            conversations = split_questions(messages) if sample.independent else [messages]
            pieces = [self.processor.encode(conversation, counts) for conversation in conversations]
            context = self.processor.tokenizer.token_id(chat.IMAGE_CONTEXT)
            encoded, segments = join(pieces, context) if len(pieces) > 1 else (pieces[0], [])
        except (ValueError, OSError) as error:
            raise DataError(f"sample {name}: {error}") from error
        if all(label == IGNORE for label in encoded.labels):
            raise DataError(f"sample {name} has no supervised token; end it with an answer")
        if len(encoded.input_ids) > self.max_length:
            raise DataError(
                f"sample {name} has {len(encoded.input_ids)} tokens, more than max_length {self.max_length}; "
                "raise max_length or lower max_tiles"
            )
        size = self.processor.config.image_size
        labels = self._patch_labels(sample, name, images) if self.with_patches else None
        return Example(
            sample_id=name,
            patch_labels=labels,
            input_ids=torch.tensor(encoded.input_ids),
            labels=torch.tensor(encoded.labels),
            pixel_values=normalise_tiles(torch.cat([image.tiles for image in images]))
            if images
            else torch.empty(0, 3, size, size),
            segment_ids=torch.tensor(segments) if segments else None,
        )

    def _patch_labels(self, sample: Sample, name: str, images: Sequence[CutImage]) -> torch.Tensor:
        config = self.processor.config
        side = config.image_size // config.vision.patch_size
        if not sample.patch_annotations or len(images) != 1:
            if not self.marks_needed:
                return torch.full((sum(len(image.tiles) for image in images), side * side, 4), IGNORE)
            raise DataError(
                f"sample {name} has no marks of one image, which the patches loss needs; "
                "use synth kinds that have them: " + ", ".join(synth.marked_kinds())
            )
        return patch_labels(sample.patch_annotations, images[0].grid, images[0].thumbnail, side)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad on the right to the longest; pixel tiles are joined in row order."""
    length = max(len(example.input_ids) for example in examples)
    shape = (len(examples), length)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    segments = torch.full(shape, PADDING)
    for row, example in enumerate(examples):
        n = len(example.input_ids)
        ids[row, :n], labels[row, :n], mask[row, :n] = example.input_ids, example.labels, 1
        segments[row, :n] = 0 if example.segment_ids is None else example.segment_ids
        positions[row, :n] = position_ids(segments[row, :n])
    patches = [example.patch_labels for example in examples if example.patch_labels is not None]
    return Batch(
        patch_labels=torch.cat(patches) if patches else None,
        sample_ids=tuple(example.sample_id for example in examples),
        input_ids=ids,
        labels=labels,
        attention_mask=mask,
        position_ids=positions,
        segment_ids=segments if any(example.segment_ids is not None for example in examples) else None,
        pixel_values=torch.cat([example.pixel_values for example in examples]),
    )


class StepDataset(Dataset[list[Batch]]):
    """Optimiser step -> its micro batches, similar lengths together so that little is padded."""

    def __init__(self, stage: StageRecipe, encode: Callable[[Sample], Example], *, pad_id: int, seed: int) -> None:
        self.stage, self.encode, self.pad_id = stage, encode, pad_id
        self.sources = [open_source(source, seed + i) for i, source in enumerate(stage.data)]
        weights = np.array([source.weight for source in stage.data])
        count = stage.steps * stage.batch_size
        choices = np.random.default_rng(seed).choice(len(weights), size=count, p=weights / weights.sum())
        self.choices = choices.astype(np.int16)
        # numbers[n]: how many earlier samples came from the same source
        self.numbers = np.zeros(count, dtype=np.int64)
        for source in range(len(weights)):
            own = self.choices == source
            self.numbers[own] = np.arange(own.sum())

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Batch]:
        size = self.stage.batch_size
        numbers = range(step * size, (step + 1) * size)
        examples = [self.encode(self.sources[self.choices[n]][int(self.numbers[n])]) for n in numbers]
        examples.sort(key=lambda example: len(example.input_ids))
        micro = self.stage.micro_batch
        return [collate(examples[i : i + micro], self.pad_id) for i in range(0, size, micro)]


def loader(dataset: StepDataset, start: int, workers: int = 1) -> DataLoader[list[Batch]]:
    """Micro batches of each step from ``start`` on, drawn ahead in a worker process.

    The loader has a generator of its own: it would else take a number from torch's, and a resumed run would differ.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )
