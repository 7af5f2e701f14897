"""A checkpoint's tokenizer as one ``tokenizers`` backend, which is what tokenizer.json holds.

A sentencepiece model becomes a BPE with byte fallback: pieces in their order, merges from their scores, and the habits
of the slow tokenizer (which piece gets a space in front, what white space a token swallows) as normalisers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mini_internvl.inputs.tokenizer import (
    SPACE,
    AddedToken,
    FastTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerError,
)
from mini_internvl.inputs.tokenizer_files import backend_token

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Types of sentencepiece pieces (``sentencepiece_model.proto``)."""


def backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer as the ``tokenizers`` library runs it."""
    from tokenizers import processors

    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_backend(tokenizer)
    assert isinstance(tokenizer, FastTokenizer)
    if tokenizer.kind == "bpe":
        tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer.backend


def _sentencepiece_backend(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """A sentencepiece BPE model as a tokenizer.json.

    Phi-3's tokens are searched in normalised text (``normalized``), because only there a space can be put in front of
    the whole text, and taken away again before a token with a role, and not in front of every piece.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    model, every_piece = tokenizer.model, tokenizer.prefix_every_piece
    prefixed = _check_plain(model)
    vocab, merges, fixed = _vocabulary(tokenizer)
    unknown = model.id_to_piece(model.unk_id())
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    if every_piece:
        front = [normalizers.Prepend(SPACE)] if prefixed else []
        backend.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", SPACE)])
    else:
        named = "|".join(re.escape(token.content) for token in tokenizer.added.values() if token.id in tokenizer._named)
        alone = "|".join(map(re.escape, tokenizer.added)) or "(?!)"
        dropped = rf"\A{SPACE}(?=(?:{named or '(?!)'})|(?:{alone})\z)"
        steps = [normalizers.Replace(SPACE, " "), normalizers.Prepend(SPACE), normalizers.Replace(Regex(dropped), "")]
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    starts = [decoders.Strip(" ", 1, 0)] if prefixed or not every_piece else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *starts]
    )
    for token in sorted([*tokenizer.added.values(), *fixed], key=lambda token: token.id):
        backend.add_tokens([backend_token(token, normalized=not every_piece)])
    if tokenizer.bos:
        bos = model.id_to_piece(tokenizer.bos[0])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos[0])]
        )
    return backend


def _vocabulary(tokenizer: SentencePieceTokenizer) -> tuple[dict[str, int], list[tuple[str, str]], list[AddedToken]]:
    """Pieces, merges in order, and the pieces that the model finds whole before it merges anything.

    sentencepiece merges the pair whose union has the best score, the leftmost of equals. Equal scores are those of
    runs of spaces; there the longest union goes first, which grows a run from its left end as the original does.
    """
    model = tokenizer.model
    kinds = _piece_kinds(model.serialized_model_proto())
    taken = {token.id: token.content for token in tokenizer.added.values()}
    vocab: dict[str, int] = {}
    scores: dict[str, float] = {}
    fixed: list[AddedToken] = []
    for number, kind in enumerate(kinds):
        piece = model.id_to_piece(number)
        if kind == _UNUSED:
            piece = f"<unused {number}>"  # out of the way: such text is spelled in bytes
        elif kind == _USER_DEFINED and number not in taken:
            fixed.append(AddedToken(content=piece, id=number, special=False))
        elif kind == _NORMAL and number not in taken:
            scores[piece] = model.get_score(number)
        vocab[taken.get(number, piece)] = number
    vocab |= {content: number for number, content in taken.items()}
    merges = [
        (-score, -len(piece), len(piece) - cut, (piece[:cut], piece[cut:]))
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return vocab, [pair for *_, pair in sorted(merges)], fixed


def _piece_kinds(proto: bytes) -> list[int]:
    """The type of every piece, which sentencepiece's own interface does not tell in full."""
    kinds = []
    for field, value in _fields(proto):
        if field == 1 and isinstance(value, bytes):
            kinds.append(next((int(kind) for name, kind in _fields(value) if name == 3), _NORMAL))
    return kinds


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message's fields."""
    place = 0

    def varint() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = data[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[place : place + size]
        place += size


def _check_plain(model: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the model puts a space in front; TokenizerError when it changes text in other ways."""
    probe = "  \ufb01 \uff21\u0301  x "
    prefix = model.normalize("x").removesuffix("x")
    if model.normalize(probe) != prefix + probe.replace(" ", SPACE):
        raise TokenizerError("tokenizer.model normalises text, which is not supported in the native layout")
    return bool(prefix)
