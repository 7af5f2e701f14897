"""Thinking aloud: the message that asks for it, and the thought told apart from the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_internvl.commands.ask import print_stream
from mini_internvl.inputs.thinking import BEGIN, END, SYSTEM, ThoughtStream, split_thought, thinking


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


@given(
    st.sampled_from(["", BEGIN]),
    st.text(" \n<>/think").filter(lambda text: END not in text),
    st.sampled_from(["", END]),
    st.text(" \n<think"),
    st.data(),
)
def test_a_stream_is_taken_apart_as_the_whole_text(begin, thought, end, answer, data):
    """However it is cut into pieces, and also where it is cut off in the thought."""
    text = begin + thought + end + answer
    stream, parts, place = ThoughtStream(), {True: "", False: ""}, 0
    while place < len(text):
        length = data.draw(st.integers(1, len(text) - place))
        for is_thought, piece in stream.push(text[place : place + length]):
            parts[is_thought] += piece
        place += length
    for is_thought, piece in stream.push("", last=True):
        parts[is_thought] += piece
    whole = split_thought(text) if text.lstrip().startswith(BEGIN) else ("", text.strip())
    assert (parts[True].strip(), parts[False].strip()) == whole


def test_the_thought_is_told_apart_from_the_answer(capsys):
    def stream():
        yield from ("<think>", "Two cars", ".</th", "ink>\n\n", "Two", ".")
        return "reply"

    assert print_stream(stream(), think=True) == ("<think>Two cars.</think>\n\nTwo.", "reply")
    out, err = capsys.readouterr()
    assert out == "Two.\n"
    assert "Two cars." in err
    print_stream(stream())
    assert "<think>Two cars.</think>" in capsys.readouterr().out
