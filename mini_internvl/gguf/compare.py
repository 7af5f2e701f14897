"""A checkpoint against the GGUF files made of it, as llama.cpp computes them: ids, logits of the answer, greedy tokens.

Pictures of the built-in prompts are first resized to the grid of tiles that the model cuts them into. llama.cpp has a
rule of its own for other sizes, but cuts such a picture into the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mini_internvl.engine.compare import (
    MIXED_TOLERANCE,
    Comparison,
    Difference,
    PromptComparison,
    check,
    default_prompts,
    first_difference,
)
from mini_internvl.engine.engine import Engine
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.gguf.run import IMAGE, LlamaCpp
from mini_internvl.inputs.images import load_image
from mini_internvl.inputs.messages import normalise
from mini_internvl.records import Message


def compare_gguf(
    engine: Engine,
    folder: Path,
    prompts: Mapping[str, Sequence[Message]] | None = None,
    *,
    max_new_tokens: int = 24,
    tolerance: float | None = None,
    progress: Callable[[PromptComparison], None] = lambda done: None,
) -> Comparison:
    """Compare an engine with a folder of GGUF files, calling ``progress`` after each prompt.

    Args:
        prompts: name -> messages, last turn from the user; ``None`` for the built-in ones.
        tolerance: allowed difference of logits, not below 0; ``None`` for that of a 16-bit type.

    ValueError when llama-cpp-python is missing, a file cannot be read, or a prompt cannot be rendered.
    """
    allowed = MIXED_TOLERANCE if tolerance is None else tolerance
    chosen = grid_prompts(engine) if prompts is None else prompts
    check(chosen, tolerance)
    longest = max(len(engine.prepare(messages).input_ids) for messages in chosen.values())
    results = []
    with LlamaCpp(folder, context=longest + 4 * engine.model.config.tokens_per_tile + max_new_tokens) as theirs:
        for name, messages in chosen.items():
            results.append(_compare_prompt(engine, theirs, name, messages, max_new_tokens))
            progress(results[-1])
    reason = "llama.cpp" if tolerance is None else "as asked"
    return Comparison(prompts=tuple(results), tolerance=allowed, reason=reason, max_new_tokens=max_new_tokens)


def grid_prompts(engine: Engine) -> dict[str, list[Message]]:
    """The built-in prompts, every image resized to the grid of tiles that the engine's model cuts it into."""
    return {name: [_resized(message, engine) for message in messages] for name, messages in default_prompts().items()}


def _resized(message: Message, engine: Engine) -> Message:
    side, cuts = engine.model.config.image_size, iter(engine.processor.cuts([message], None))

    def fitted(part: Any) -> Any:
        if part["type"] != "image":
            return part
        columns, rows = next(cuts)[1].grid(part["image"].width, part["image"].height)
        return {**part, "image": part["image"].resize((columns * side, rows * side), Image.Resampling.BICUBIC)}

    return {**message, "content": [fitted(part) for part in message["content"]]}


@torch.inference_mode()
def _compare_prompt(
    engine: Engine, theirs: LlamaCpp, name: str, messages: Sequence[Message], max_new_tokens: int
) -> PromptComparison:
    ours = engine.prepare(messages)
    texts, images = _marked(messages, theirs.marker)
    answer = theirs.answer(texts, images, max_new_tokens)
    context, tile = engine.model.image_token_id, engine.model.config.tokens_per_tile
    facts: dict[str, Any] = {"name": name, "tokens": len(ours.input_ids), "tiles": ours.tiles}
    if (cut := answer.prompt.count(IMAGE) // tile) != sum(ours.tiles):
        return PromptComparison(**facts, problem=f"images are cut into {sum(ours.tiles)} tiles and {cut}")
    assert context is not None
    prompt = [context if number == IMAGE else number for number in answer.prompt]
    if where := first_difference(engine, engine, ours.input_ids, prompt):
        what = f"ids differ from place {where.index} on: {where.first} and {where.second}"
        return PromptComparison(**facts, problem=what, prompt_difference=where)
    visual = engine.encode([ours])[0]
    config = GenerationConfig(max_new_tokens=max_new_tokens)
    tokens = [step.token for step in engine.generate([ours], config)[0] if step.token is not None]
    row = torch.tensor([[*ours.input_ids, *answer.tokens]], device=engine.model.device)
    states = engine.model.hidden(row, visual_tokens=visual)[0, len(prompt) - 1 :][: len(answer.logits)]
    logits = engine.model.language_model.lm_head(states).float().cpu()
    equal, length = (
        sum(a == b for a, b in zip(tokens, answer.tokens, strict=False)),
        max(len(tokens), len(answer.tokens)),
    )
    where = first_difference(engine, engine, tokens, answer.tokens)
    if where and where.index < len(logits):
        own = int(logits[where.index].argmax())
        other = int(answer.logits[where.index].argmax())
        gap = float(logits[where.index, own] - logits[where.index, other])
        where = Difference(index=where.index, first=where.first, second=where.second, gap=gap)
    return PromptComparison(
        **facts,
        logits=float((logits - answer.logits).abs().max()),
        answer_difference=where,
        agreement=equal / length if length else 1.0,
    )


def _marked(messages: Sequence[Message], marker: str) -> tuple[list[dict[str, str]], list[Image.Image]]:
    """Messages as llama.cpp's server hands them to the template: text, a marker for each image."""
    turns = normalise(messages)
    texts = [
        {"role": turn.role, "content": "".join(part if isinstance(part, str) else marker for part in turn.parts)}
        for turn in turns
    ]
    return texts, [load_image(part.source, scale=part.scale) for turn in turns for part in turn.images]
