"""Thinking aloud before an answer, as the models of 3.5 learnt it: ``<think>...</think>``, then what counts.

The system message below asks for it; without it these models answer at once.
Source: the model cards of InternVL3.5, which name the message and the temperature.
"""

from __future__ import annotations

from typing import Literal

from mini_internvl.inputs.messages import Messages, Turn, normalise

BEGIN, END = "<think>", "</think>"
TEMPERATURE = 0.6  # at 0 long thoughts repeat themselves
TOKENS = 4096  # that a thought may take on top of its answer
SYSTEM = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer \
from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""


def thinking(messages: Messages) -> tuple[Turn, ...]:
    """The same conversation, asked to think first; a system message of its own follows."""
    turns = normalise(messages)
    if turns and turns[0].role == "system":
        return Turn(role="system", parts=(f"{SYSTEM}\n\n{turns[0].text}",)), *turns[1:]
    return Turn(role="system", parts=(SYSTEM,)), *turns


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of an answer, without the marks; a thought that was cut off has no answer."""
    if END in text:
        thought, _, answer = text.rpartition(END)
        return thought.strip().removeprefix(BEGIN).strip(), answer.strip()
    if text.lstrip().startswith(BEGIN):
        return text.strip().removeprefix(BEGIN).strip(), ""
    return "", text


class ThoughtStream:
    """Tells thought and answer apart while a text comes piece by piece.

    Only a text that opens with ``<think>`` has a thought here. What may still become a mark is held back.
    """

    def __init__(self) -> None:
        self.held = ""
        self.state: Literal["start", "thought", "gap", "answer"] = "start"

    def push(self, piece: str, *, last: bool = False) -> list[tuple[bool, str]]:
        """The next piece -> (whether it is thought, text) of what is certain, without the marks.

        Blanks before the answer are left out; ``last`` gives what was held back, too.
        """
        self.held += piece
        found = []
        if self.state == "start":
            self.held = self.held.lstrip()
            if BEGIN.startswith(self.held) and not last:
                return []
            self.state = "thought" if self.held.startswith(BEGIN) else "answer"
            self.held = self.held.removeprefix(BEGIN)
        if self.state == "thought":
            thought, mark, self.held = self.held.partition(END)
            if not mark and not last:
                begun = max(length for length in range(len(END)) if thought.endswith(END[:length]))
                thought, self.held = thought[: len(thought) - begun], thought[len(thought) - begun :]
            found.append((True, thought))
            self.state = "gap" if mark else "thought"
        if self.state == "gap":
            self.held = self.held.lstrip()
            self.state = "answer" if self.held else "gap"
        if self.state == "answer":
            found.append((False, self.held))
            self.held = ""
        return [(thought, text) for thought, text in found if text]
