"""Tokens to text as they come: the pieces make the text of the whole, and a stop text ends it.

A piece is held back while it ends inside a character that needs several tokens, or in what may become a stop text. Only
the last few tokens are decoded again for each new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mini_internvl.inputs.tokenizer import Tokenizer


class TextStream:
    """The text of one answer."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []  # the last tokens; those before ``_shown`` are decoded for what they say of the next
        self._shown = 0
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """The text that a token lets out, and whether a stop text ends the answer before it."""
        if self._tokenizer.is_special(token):
            return "", False
        self._ids.append(token)
        text = self._new_text()
        if text.endswith("\ufffd"):
            return "", False
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return self._let_out(text)

    def finish(self) -> str:
        """What is held back when no further token comes."""
        text, ended = self._let_out(self._new_text())
        return text if ended else text + self._held

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._shown])
        return self._tokenizer.decode(self._ids)[len(before) :]

    def _let_out(self, text: str) -> tuple[str, bool]:
        held = self._held + text
        found = [place for place in (held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            return held[: min(found)], True
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
