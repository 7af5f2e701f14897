"""Prompts that are too long are refused before they are computed, by a message that says what takes the room."""

from __future__ import annotations

from mini_internvl.inputs import chat
from mini_internvl.inputs.prepare import Processor, Prompt


def check_context(prompt: Prompt, processor: Processor, context: int) -> None:
    """ValueError when a prompt leaves no position for an answer; it names the parts of the prompt with their tokens."""
    length = len(prompt.input_ids)
    if length < context:
        return
    raise ValueError(
        f"the prompt has {length} tokens, but the model has {context} positions for prompt and answer"
        f"{_parts(prompt, processor)}; {_remedy(prompt)}"
    )


def _parts(prompt: Prompt, processor: Processor) -> str:
    """ "; system 41, history 310, images 3328 in 13 tiles, question 22"; empty where the conversation is not known."""
    if not prompt.turns:
        return ""
    system, *turns, opened = chat.turn_lengths(
        prompt.turns, processor.tokenizer, template=processor.template, system_message=processor.system_message
    )
    asked = prompt.turns[1:] if prompt.turns[0].role == "system" else prompt.turns
    texts = [length - 3 * len(turn.images) for length, turn in zip(turns, asked, strict=True)]  # <img>, one, </img>
    history, question = sum(texts[:-1]), texts[-1] + opened
    images = len(prompt.input_ids) - system - history - question
    parts = [f"system {system}", f"history {history}" if history else ""]
    parts += [f"images {images} in {sum(prompt.tiles)} tiles" if prompt.tiles else "", f"question {question}"]
    return f" ({', '.join(filter(None, parts))})"


def _remedy(prompt: Prompt) -> str:
    return "lower max_tiles or shorten the conversation" if prompt.tiles else "shorten the conversation"
