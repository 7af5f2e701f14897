"""The judge: its prompts are plain text, and a reply of an odd shape ends nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mini_internvl.engine.remote import Address, RemoteEngine
from mini_internvl.evaluate.cache import AnswerCache
from mini_internvl.evaluate.judge import Judge
from mini_internvl.records import JudgeError


def judge(server: Any, cache: AnswerCache | None = None) -> Judge:
    return Judge(RemoteEngine(Address.read(server.model), tries=1), cache)


def test_a_prompt_may_hold_any_text(fake_server: Any) -> None:
    prompt = "The answer was: <image> \\<image> <img> <|im_end|>. Is it right?"
    with fake_server.serve(lambda body: "No") as server:
        assert judge(server)(prompt, system="Judge <image>s.") == "No"
    assert [turn["content"] for turn in server.bodies[0]["messages"]] == ["Judge <image>s.", prompt]


@pytest.mark.parametrize("message", ['{"content": [3]}', '{"content": 7}'])
def test_an_odd_reply_is_counted_and_kept_and_does_not_end_the_scoring(
    fake_server: Any, tmp_path: Path, message: str
) -> None:
    body = f'{{"choices": [{{"message": {message}}}], "usage": ["odd"]}}'
    with fake_server.serve(lambda _: (200, body, {})) as server, AnswerCache(tmp_path / "answers.sqlite") as cache:
        for _ in range(2):
            asking = judge(server, cache)
            assert asking("Right?") == message.split(": ")[1].rstrip("}")
            assert asking.odd == 1
        assert len(server.bodies) == 1


def test_a_reply_without_a_choice_is_the_judges_failure(fake_server: Any) -> None:
    with (
        fake_server.serve(lambda _: (200, '{"choices": []}', {})) as server,
        pytest.raises(JudgeError, match="the answer has no choices"),
    ):
        judge(server)("Right?")
