"""The tokenizer of a GGUF file: tokens, merges or scores, special tokens, chat template.

llama.cpp rebuilds a byte-level BPE from its merges, and names the cutting of text before it; of sentencepiece it knows
the kind trained by BPE. Unlike ours it does not normalise text (NFC), and strips white space behind special tokens for
Phi-3 alone, which it tells by the model's name. Tags such as ``<box>`` are written as tokens that people may type and
read; as control tokens they would be left out of answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mini_internvl.gguf.tensors import library
from mini_internvl.inputs import chat, jinja
from mini_internvl.inputs.tokenizer import SPACE, FastTokenizer, SentencePieceTokenizer, Tokenizer, TokenizerError
from mini_internvl.inputs.tokenizer_files import QWEN2_PIECES
from mini_internvl.model.config import VLMConfig

if TYPE_CHECKING:
    import gguf

PIECES = {QWEN2_PIECES: "qwen2"}
"""How text is cut before BPE -> llama.cpp's name of it."""
ADDED_SCORE = -1000.0  # of an added token in a sentencepiece vocabulary, which merging must never prefer


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What llama.cpp needs to cut text into ids."""

    model: str  # "gpt2" for byte-level BPE, "llama" for sentencepiece
    pre: str
    tokens: Sequence[str]  # one for each row of the model's vocabulary
    types: Sequence[int]  # of each token: normal, control, ...
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    space_in_front: bool = False  # whether text between special tokens gets a space in front


def vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The tokens of a model with so many vocabulary rows; rows without a token are written as unused.

    TokenizerError for a tokenizer that has more tokens, or that llama.cpp cannot rebuild.
    """
    if tokenizer.size > rows:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.size} tokens, the model {rows} rows for them; take both from one checkpoint"
        )
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer, rows)
    assert isinstance(tokenizer, FastTokenizer)
    return _bpe(tokenizer, rows)


def add_keys(writer: gguf.GGUFWriter, tokenizer: Tokenizer, stops: Sequence[int], config: VLMConfig) -> None:
    """Vocabulary, special tokens and chat template; ``stops`` are further tokens that end an answer."""
    found, template = vocabulary(tokenizer, config.llm.vocab_size), chat.find_template(config.template)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.scores:
        writer.add_token_scores(found.scores)
    writer.add_add_space_prefix(found.space_in_front)
    bos, end = jinja.bos_token(tokenizer), tokenizer.token_id(template.sep.strip())
    writer.add_add_bos_token(bool(bos))
    writer.add_bos_token_id(tokenizer.token_id(bos) if bos else _silent(tokenizer, end))
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    if more := [number for number in stops if number != end]:
        writer.add_eom_token_id(more[0])
    if tokenizer.pad_token:
        writer.add_pad_token_id(tokenizer.token_id(tokenizer.pad_token))
    if isinstance(tokenizer, SentencePieceTokenizer):
        writer.add_unk_token_id(tokenizer.model.unk_id())
    begin = jinja.begin(tokenizer, template)
    writer.add_chat_template(jinja.chat_template(template, begin, config.system_message, marked=True))


def strips_like_phi3(tokenizer: Tokenizer) -> bool:
    """Whether white space behind the template's tokens is dropped, which llama.cpp does for a "phi-3"."""
    tokens = [token for text, token in tokenizer.added.items() if text.startswith("<|") and token.special]
    return sum(token.rstrip for token in tokens) * 2 > len(tokens)


def _silent(tokenizer: Tokenizer, end: int) -> int:
    """A token for the place of BOS where there is none; llama.cpp would otherwise take the eleventh."""
    return tokenizer.token_id(tokenizer.pad_token) if tokenizer.pad_token else end


def _with_added(tokenizer: Tokenizer, tokens: list[str | None], types: list[int]) -> list[str]:
    """Put added tokens in their places; what is left without a token is unused."""
    kinds = library().TokenType
    for text, token in tokenizer.added.items():
        plain = text in chat.TAGS or not token.special
        tokens[token.id], types[token.id] = text, kinds.USER_DEFINED if plain else kinds.CONTROL
    for number, piece in enumerate(tokens):
        if piece is None:
            tokens[number], types[number] = f"[PAD{number}]", kinds.UNUSED
    return [str(piece) for piece in tokens]


def _bpe(tokenizer: FastTokenizer, rows: int) -> Vocabulary:
    parts = json.loads(tokenizer.backend.to_str())
    model = parts["model"]
    pieces = [part["pattern"].get("Regex") for part in _steps(parts["pre_tokenizer"]) if part["type"] == "Split"]
    pre = PIECES.get(pieces[0]) if len(pieces) == 1 else None
    if model["type"] != "BPE" or model.get("byte_fallback") or pre is None:
        raise TokenizerError(
            f"llama.cpp has no name for the way in which this tokenizer.json ({model['type']}) cuts text; "
            "give a folder with vocab.json and merges.txt, or with tokenizer.model"
        )
    kinds = library().TokenType
    tokens: list[str | None] = [None] * rows
    for text, number in model["vocab"].items():
        tokens[number] = text
    types = [int(kinds.NORMAL)] * rows
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary(model="gpt2", pre=pre, tokens=_with_added(tokenizer, tokens, types), types=types, merges=merges)


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [step]


def _sentencepiece(tokenizer: SentencePieceTokenizer, rows: int) -> Vocabulary:
    model, kinds = tokenizer.model, library().TokenType
    tokens: list[str | None] = [None] * rows
    types, scores = [int(kinds.NORMAL)] * rows, [ADDED_SCORE] * rows
    named = (("is_unknown", kinds.UNKNOWN), ("is_control", kinds.CONTROL), ("is_unused", kinds.UNUSED))
    for number in range(model.get_piece_size()):
        tokens[number], scores[number] = model.id_to_piece(number), model.get_score(number)
        for test, kind in (*named, ("is_byte", kinds.BYTE)):
            if getattr(model, test)(number):
                types[number] = int(kind)
    if any(kind == kinds.NORMAL and score != int(score) for kind, score in zip(types, scores, strict=True)):
        raise TokenizerError("llama.cpp cannot rebuild this tokenizer.model: it was not trained by BPE")
    for token in tokenizer.added.values():
        scores[token.id] = ADDED_SCORE
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=_with_added(tokenizer, tokens, types),
        types=types,
        scores=scores,
        space_in_front=model.encode("a", out_type=str)[0].startswith(SPACE),
    )
