"""Text as it comes: the pieces make the whole on every kind of tokenizer, and stop texts end it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.engine.text import TextStream
from mini_internvl.inputs.tokenizer_files import load_tokenizer

TOKENIZERS = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parents[1] / "golden" / "data") / "tokenizers"
KINDS = {path.name: load_tokenizer(path) for path in sorted(TOKENIZERS.iterdir())}
TEXTS = st.text(st.sampled_from("ab \n.,\u00e9\u4e2d\U0001f697<|>"), max_size=20)


def pieces(tokenizer, ids, stop=()):
    stream, found = TextStream(tokenizer, stop), []
    for token in ids:
        text, ended = stream.push(token)
        found.append(text)
        if ended:
            return found
    return [*found, stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_make_the_text_of_the_whole(kind, data):
    tokenizer = KINDS[kind]
    known = st.integers(0, tokenizer.size - 1).filter(tokenizer.has_id)
    ids = data.draw(st.one_of(TEXTS.map(tokenizer.continue_ids), st.lists(known, max_size=12)))
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, stop=st.text(st.sampled_from("ab .\u00e9"), min_size=1, max_size=3))
def test_a_stop_text_ends_the_answer_before_it(kind, text, stop):
    tokenizer = KINDS[kind]
    ids = tokenizer.continue_ids(text)
    whole = tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, ids, ("never", stop))) == whole.partition(stop)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_is_shown_when_it_is_complete(kind):
    tokenizer = KINDS[kind]
    ids = tokenizer.continue_ids("a\U0001f697 b")
    found = [piece for piece in pieces(tokenizer, ids) if piece]
    assert "".join(found) == tokenizer.decode(ids)
    assert all("\ufffd" not in piece for piece in found)
    cut = pieces(tokenizer, tokenizer.continue_ids("a\U0001f697")[:3])  # the limit falls inside a character
    assert "\ufffd" not in "".join(cut[:-1])
