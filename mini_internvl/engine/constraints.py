"""Answers of a given form: a JSON schema, a regular expression or one of some texts, held to by llguidance.

The tokens that may come next are computed from the tokenizer's own bytes, so the form holds whatever the model prefers.
An answer that reaches its longest length first is cut off all the same: ``finish_reason`` is then "length".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mini_internvl.inputs.tokenizer import SPACE, FastTokenizer, SentencePieceTokenizer, Tokenizer

INSTALL = 'answers of a given form need llguidance: pip install "mini-internvl[constraints]"'
WHITE_SPACE = r"\n? {0,16}"  # between parts of JSON: enough to indent, and not for ever
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What form an answer must have; made by :func:`json_schema`, :func:`regex` and :func:`choice`."""

    kind: Literal["json", "regex", "choice"]
    text: str
    """The schema as JSON, or the regular expression that says the same."""


def json_schema(schema: Mapping[str, Any] | str) -> Constraint:
    """JSON that a schema allows. ValueError when its text is no JSON object."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"the JSON schema is no JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise ValueError("the JSON schema is no JSON object")
    return Constraint(kind="json", text=json.dumps(schema, ensure_ascii=False))


def regex(pattern: str) -> Constraint:
    """Text that a regular expression matches as a whole."""
    return Constraint(kind="regex", text=pattern)


def choice(texts: Sequence[str]) -> Constraint:
    """One of some texts. ValueError when there are none, or an empty one."""
    if isinstance(texts, str) or not texts or not all(texts):
        raise ValueError(f"the choices are {texts!r}; give one or more texts, none of them empty")
    return Constraint(kind="choice", text="|".join(map(re.escape, texts)))


class Constraints:
    """Makes matchers for a tokenizer, whose ``stop_ids`` may end a complete answer; ``size`` counts the logits."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], size: int) -> None:
        self._tokenizer, self._stop_ids, self._size = tokenizer, sorted(stop_ids), size
        self._compiled = functools.lru_cache(maxsize=32)(self._compile)

    def matcher(self, constraint: Constraint) -> ConstraintMatcher:
        """For one answer. ValueError when llguidance is missing or cannot use the constraint."""
        return ConstraintMatcher(self._compiled(constraint).deep_copy())

    @functools.cached_property
    def _vocabulary(self) -> Any:
        try:
            import llguidance
        except ImportError:
            raise ValueError(INSTALL) from None
        tokenizer = self._tokenizer
        if isinstance(tokenizer, FastTokenizer):
            return llguidance.LLTokenizer(tokenizer.backend.to_str(), n_vocab=self._size, eos_token=self._stop_ids)
        assert isinstance(tokenizer, SentencePieceTokenizer)
        words = llguidance.TokenizerWrapper(_Words(tokenizer, self._size, self._stop_ids))
        return llguidance.LLTokenizer(words, eos_token=self._stop_ids)

    def _compile(self, constraint: Constraint) -> Any:
        vocabulary = self._vocabulary
        from llguidance import LLMatcher

        if constraint.kind == "json":
            grammar = LLMatcher.grammar_from_json_schema(constraint.text, {"whitespace_pattern": WHITE_SPACE})
        else:
            grammar = LLMatcher.grammar_from_regex(constraint.text)
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            name = {"json": "JSON schema", "regex": "regular expression", "choice": "choice"}[constraint.kind]
            raise ValueError(f"the {name} cannot be used: {' '.join(matcher.get_error().split())[:300]}")
        return matcher


class ConstraintMatcher:
    """One answer's place in a constraint."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allow(self, logits: Tensor) -> Tensor:
        """(V,) logits with minus infinity for each token that may not come now."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if len(allowed) < len(logits):
            allowed = np.pad(allowed, (0, len(logits) - len(allowed)))
        return logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def accept(self, token: int) -> bool:
        """Take a token; whether the answer is complete, so that nothing may follow.

        ValueError where the constraint does not allow it, or has become too complex to follow.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise ValueError(f"the constraint cannot be held to: {self._matcher.get_error().splitlines()[0][:300]}")
        return bool(self._matcher.is_stopped())


class _Words:
    """A sentencepiece vocabulary as llguidance reads one."""

    def __init__(self, tokenizer: SentencePieceTokenizer, size: int, stop_ids: Sequence[int]) -> None:
        model, added = tokenizer.model, {token.id: token for token in tokenizer.added.values()}
        self.eos_token_id, self.bos_token_id = stop_ids[0], None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        self._encode = tokenizer.continue_ids
        for number in range(size):
            if number in added:
                text = added[number].content.encode()
            elif number < model.get_piece_size() and not (model.is_control(number) or model.is_unknown(number)):
                piece = model.id_to_piece(number)
                found = _BYTE.fullmatch(piece)
                self.tokens.append(bytes([int(found[1], 16)]) if found else piece.replace(SPACE, " ").encode())
                continue
            else:
                text = f"<[{number}]>".encode()
            self.tokens.append(text)
            self.special_token_ids.append(number)

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(errors="ignore"))
