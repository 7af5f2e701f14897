"""Thinking aloud: the message that asks for it, and the thought told apart from the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_internvl.inputs.thinking import SYSTEM, split_thought, thinking


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("42", ("", "42")),
        ("<think>\n6 x 7\n</think>\n\n42", ("6 x 7", "42")),
        ("6 x 7</think> 42", ("6 x 7", "42")),
        ("<think>a</think>b<think>c</think> d", ("a</think>b<think>c", "d")),
        ("<think>still thinking", ("still thinking", "")),
        ("I <think> so", ("", "I <think> so")),
        ("", ("", "")),
    ],
)
def test_a_thought_is_told_apart(text, wanted):
    assert split_thought(text) == wanted


@given(st.text(), st.text().filter(lambda text: "</think>" not in text))
def test_what_follows_the_last_mark_is_the_answer(thought, answer):
    assert split_thought(f"<think>{thought}</think>{answer}")[1] == answer.strip()


def test_the_message_that_asks_comes_first_and_one_of_the_conversation_follows():
    asked = {"role": "user", "content": "What?"}
    system, question = thinking([asked])
    assert (system.role, system.text, question.text) == ("system", SYSTEM, "What?")
    system, question = thinking([{"role": "system", "content": "Be brief."}, asked])
    assert (system.text, question.text) == (f"{SYSTEM}\n\nBe brief.", "What?")
