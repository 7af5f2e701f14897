"""Thinking aloud before an answer, as the models of 3.5 learnt it: ``<think>...</think>``, then what counts.

The system message below asks for it; without it these models answer at once.
Source: the model cards of InternVL3.5, which name the message and the temperature.
"""

from __future__ import annotations

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
