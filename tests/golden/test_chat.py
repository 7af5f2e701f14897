"""Conversations of the three templates: ids, labels and generation prompts, token by token."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest

from mini_internvl.inputs import chat
from mini_internvl.inputs.tokenizer_files import load_tokenizer

ROOT = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parent / "data")
CASES = json.loads((ROOT / "chat/conversations.json").read_text(encoding="utf-8"))
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@functools.cache
def _tokenizer(name):
    return load_tokenizer(ROOT / "tokenizers" / name)


def _messages(turns):
    messages = []
    for turn in turns:
        images = [{"type": "image", "image": None}] * turn["value"].count("<image>")
        content = [*images, {"type": "text", "text": turn["value"]}] if images else turn["value"]
        messages.append({"role": ROLES[turn["from"]], "content": content})
    return messages


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['llm']}-{case['case']}")
def test_ids_and_labels(case):
    messages = _messages(case["messages"])
    encode = functools.partial(
        chat.encode,
        tokenizer=_tokenizer(case["llm"]),
        template=chat.find_template(case["template"]),
        tiles=case["context_tokens_per_image"],
        tokens_per_tile=1,
        control_tokens="original",
    )
    try:
        sample = encode(messages)
    except chat.ChatError:
        assert case.get("warning"), "only a sample that the original gives up may be refused"
        return
    assert sample.input_ids == case["input_ids"]
    assert sample.labels == case["labels"]
    assert encode(messages[:-1]).input_ids == case["generation_input_ids"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['llm']}-{case['case']}")
def test_supervised_text(case):
    supervised = [number for number in case["labels"] if number != -100]
    text = _tokenizer(case["llm"]).decode(supervised, skip_special=False)
    assert text.replace(" ", "") == case["supervised_text"].replace(" ", "")
