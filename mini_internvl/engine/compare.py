"""Two engines side by side on the same prompts: ids, logits, greedy answers.

Made for checkpoints that should be one model in two forms: converted, merged, quantised, or stored in another type.
Ids come first: where tokenizers or templates differ the models have read different prompts, and logits say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mini_internvl.engine.engine import Engine, Prompt, user
from mini_internvl.engine.sampling import GenerationConfig, LogitsError
from mini_internvl.records import Message

FLOAT32_TOLERANCE = 1e-3  # largest difference of logits that two float32 models may have
MIXED_TOLERANCE = 0.25  # the same where either model is in a 16-bit type
SLICE = 64
"""Positions whose logits are held at a time, so that a long prompt of a large vocabulary needs no table of both."""
END = "(end)"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two sequences of tokens part."""

    index: int
    """Place in the prompt or in the answer, from 0."""
    first: str
    """The first engine's token as text, "(end)" when it has none there; ``second``: the second's."""
    second: str
    gap: float | None = None
    """Answers: by how much the first engine prefers its own token; near 0 is a tie that rounding decides."""


@dataclass(frozen=True, kw_only=True)
class PromptComparison:
    """One prompt, by its name; ``tokens`` and ``tiles`` of each image are the first engine's."""

    name: str
    tokens: int
    tiles: tuple[int, ...]
    problem: str = ""  # why logits were not compared: other ids, tiles or vocabularies
    prompt_difference: Difference | None = None
    logits: float | None = None  # largest absolute difference of logits over the prompt; ``None`` when not compared
    answer_difference: Difference | None = None  # of the greedy tokens
    agreement: float | None = None  # share of greedy tokens that are equal at their place

    def within(self, tolerance: float) -> bool:
        """Whether ids and greedy tokens are equal and the logits differ by at most ``tolerance``."""
        return not self.problem and self.agreement == 1.0 and self.logits is not None and self.logits <= tolerance


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All prompts, in their order; ``reason`` says where the tolerance of the logits comes from."""

    prompts: tuple[PromptComparison, ...]
    tolerance: float
    reason: str
    max_new_tokens: int

    @property
    def equal(self) -> bool:
        return all(prompt.within(self.tolerance) for prompt in self.prompts)


def compare(
    first: Engine,
    second: Engine,
    prompts: Mapping[str, Sequence[Message]] | None = None,
    *,
    max_new_tokens: int = 24,
    tolerance: float | None = None,
    progress: Callable[[PromptComparison], None] = lambda done: None,
) -> Comparison:
    """Compare two engines, on any devices and in any types, calling ``progress`` after each prompt.

    Args:
        prompts: name -> messages, last turn from the user; ``None`` for :func:`default_prompts`. ValueError when there
            are none, or one cannot be rendered.
        tolerance: allowed difference of logits, not below 0; ``None`` chooses by the two types.
    """
    chosen = default_prompts() if prompts is None else prompts
    check(chosen, tolerance)
    types = list(dict.fromkeys(" ".join(engine.model.types) for engine in (first, second)))
    allowed, reason = FLOAT32_TOLERANCE, "both float32"
    if tolerance is not None:
        allowed, reason = tolerance, "as asked"
    elif types != ["float32"]:
        allowed, reason = MIXED_TOLERANCE, " against ".join(types)
    config = GenerationConfig(max_new_tokens=max_new_tokens)
    results = []
    for name, messages in chosen.items():
        results.append(_compare_prompt(first, second, name, messages, config))
        progress(results[-1])
    return Comparison(prompts=tuple(results), tolerance=allowed, reason=reason, max_new_tokens=max_new_tokens)


def check(prompts: Mapping[str, Sequence[Message]], tolerance: float | None) -> None:
    """ValueError where there is nothing to compare on, or the tolerance allows nothing."""
    if not prompts:
        raise ValueError("there are no prompts to compare on; give at least one")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or above")


def default_prompts() -> dict[str, list[Message]]:
    """Prompts with drawn images (shapes, words, a wide one of several tiles, two at once) and of text alone."""
    scene, words, wide = _scene(), _words(), _wide()
    return {
        "shapes": user("Which shapes are in the image, and which colour has each?", scene),
        "words": user("Read the words in the image.", words),
        "wide": user("Describe the image from left to right.", wide),
        "two images": user("What is the difference between the two images?", scene, words),
        "English": user("Name three things that a small model can do well, and one that it cannot."),
        "Chinese": user("请用一句话介绍你自己，然后从1数到5。"),
    }


def _answer(engine: Engine, prompt: Prompt, config: GenerationConfig) -> list[int]:
    """Tokens of an answer; none where the model's logits are no numbers, which the comparison of logits tells."""
    try:
        return [step.token for step in engine.generate([prompt], config)[0] if step.token is not None]
    except LogitsError:
        return []


@torch.inference_mode()
def _compare_prompt(
    first: Engine, second: Engine, name: str, messages: Sequence[Message], config: GenerationConfig
) -> PromptComparison:
    ours, theirs = first.prepare(messages), second.prepare(messages)
    length, tiles = len(ours.input_ids), ours.tiles
    problem, where = _prompt_problem(first, second, ours, theirs)
    if problem:
        return PromptComparison(name=name, tokens=length, tiles=tiles, problem=problem, prompt_difference=where)
    pairs = ((first, ours), (second, theirs))
    visual = [engine.encode([prompt])[0] for engine, prompt in pairs]
    answers = [_answer(engine, prompt, config) for engine, prompt in pairs]
    equal = sum(a == b for a, b in zip(*answers, strict=False))
    return PromptComparison(
        name=name,
        tokens=length,
        tiles=tiles,
        logits=_largest(first, second, ours.input_ids, visual),
        answer_difference=_answer_difference(first, second, ours.input_ids, visual[0], answers),
        agreement=equal / max(map(len, answers)) if any(answers) else 1.0,
    )


def _prompt_problem(first: Engine, second: Engine, ours: Prompt, theirs: Prompt) -> tuple[str, Difference | None]:
    """Why two prompts cannot be compared, and the first differing id."""
    where = first_difference(first, second, ours.input_ids, theirs.input_ids)
    if ours.tiles != theirs.tiles:
        return f"images are cut into {ours.tiles} tiles and {theirs.tiles}", where
    if where:
        return f"ids differ from place {where.index} on: {where.first} and {where.second}", where
    sides = ours.pixel_values.shape[-1], theirs.pixel_values.shape[-1]
    if ours.tiles and sides[0] != sides[1]:
        return f"tiles have {sides[0]} and {sides[1]} pixels a side", None
    rows = min(engine.model.config.llm.vocab_size for engine in (first, second))
    if max(ours.input_ids) >= rows:
        return f"id {max(ours.input_ids)} has no row in a vocabulary of {rows}", None
    return "", None


def _largest(first: Engine, second: Engine, ids: Sequence[int], visual: Sequence[Tensor | None]) -> float:
    """Largest difference of logits over the prompt; infinite when one is not a number."""
    hidden = [
        engine.model.hidden(torch.tensor([ids], device=engine.model.device), visual_tokens=tokens)[0]
        for engine, tokens in zip((first, second), visual, strict=True)
    ]
    largest = 0.0
    for begin in range(0, len(ids), SLICE):
        tables = [
            engine.model.language_model.lm_head(states[begin : begin + SLICE]).float().cpu()
            for engine, states in zip((first, second), hidden, strict=True)
        ]
        common = min(table.shape[-1] for table in tables)  # spare rows of one table mean nothing
        difference = float((tables[0][:, :common] - tables[1][:, :common]).abs().max())
        largest = max(largest, math.inf if math.isnan(difference) else difference)
    return largest


def _answer_difference(
    first: Engine, second: Engine, ids: Sequence[int], visual: Tensor | None, answers: Sequence[Sequence[int]]
) -> Difference | None:
    where = first_difference(first, second, *answers)
    if where is None or first.model.image_token_id in answers[0][: where.index]:
        return where
    row = torch.tensor([[*ids, *answers[0][: where.index]]], device=first.model.device)
    last = first.model.hidden(row, visual_tokens=visual)[0, -1:]
    logits = first.model.language_model.lm_head(last)[0].float()
    other = [token for token in answers[1][where.index : where.index + 1] if token < len(logits)]
    rivals = other or [stop for stop in second.stop_ids if stop < len(logits)]
    return replace(where, gap=float(logits.max() - logits[rivals].max())) if rivals else where


def first_difference(first: Engine, second: Engine, ours: Sequence[int], theirs: Sequence[int]) -> Difference | None:
    for index, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one != other:
            return Difference(index=index, first=_token(first, ours, index), second=_token(second, theirs, index))
    return None


def _token(engine: Engine, ids: Sequence[int], index: int) -> str:
    if index >= len(ids):
        return END
    return f"{engine.tokenizer.decode([ids[index]], skip_special=False)!r} ({ids[index]})"


def _scene() -> Image.Image:
    image = Image.new("RGB", (448, 448), (236, 240, 232))
    pen = ImageDraw.Draw(image)
    pen.ellipse((40, 50, 190, 200), fill=(206, 43, 55))
    pen.rectangle((250, 60, 400, 210), fill=(32, 92, 170))
    pen.polygon([(110, 250), (40, 400), (190, 400)], fill=(240, 190, 20))
    pen.line((250, 400, 400, 260), fill=(20, 120, 60), width=18)
    return image


def _words() -> Image.Image:
    image = Image.new("RGB", (520, 260), "white")
    pen = ImageDraw.Draw(image)
    pen.text((30, 50), "Platform 7", fill="black", font=ImageFont.load_default(72))
    pen.text((30, 150), "departs 18:42", fill=(160, 20, 20), font=ImageFont.load_default(56))
    return image


def _wide() -> Image.Image:
    """A strip of coloured bars with their numbers, three times as wide as high."""
    image = Image.new("RGB", (1200, 400), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    for i in range(6):
        left, height = 40 + i * 190, 80 + 45 * i
        pen.rectangle((left, 360 - height, left + 120, 360), fill=(40 * i, 200 - 30 * i, 90 + 20 * i))
        pen.text((left + 40, 320 - height), str(10 + 7 * i), fill="black", font=ImageFont.load_default(32))
    return image
