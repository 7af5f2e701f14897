"""Tokenizers: texts to token ids and back, by the tokenizers library or by sentencepiece.

Unusual: sentencepiece checkpoints are tokenised piece by piece between added tokens. The slow InternLM2 tokenizer puts
a space before every piece; the slow Llama one (``legacy`` false) only before the first, and drops it again when a token
with a role (BOS, EOS, ...) comes first. White space next to an added token goes as its ``lstrip`` and ``rstrip`` say.
Source: ``tokenization_utils.py`` and ``tokenization_llama.py`` of transformers 4.37, ``tokenization_internlm2.py``.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

SPACE = "\u2581"  # sentencepiece's visible space


class TokenizerError(ValueError):
    """Tokenizer files that are missing or broken; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token outside the base vocabulary, found in text before anything else."""

    content: str
    id: int
    lstrip: bool = False  # white space before it is dropped; ``rstrip``: after it
    rstrip: bool = False
    single_word: bool = False  # only found where no letter touches it
    special: bool = True  # left out of decoded text


@functools.lru_cache(maxsize=64)
def _any_of(texts: frozenset[str]) -> re.Pattern[str]:
    """Finds the first of some texts; of none, nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts))) or "(?!)")


class Tokenizer(abc.ABC):
    """Text <-> token ids; made by :func:`mini_internvl.inputs.tokenizer_files.load_tokenizer`."""

    kind: str
    """``bpe``, ``sentencepiece`` or ``json``."""
    aliases: frozenset[str] = frozenset()
    """Pieces of the base vocabulary whose numbers added tokens have taken ("[UNUSED_TOKEN_146]", InternLM2)."""

    def __init__(self, added: Sequence[AddedToken], pad_token: str | None = None) -> None:
        self.added = {token.content: token for token in added}
        longest_first = sorted(self.added, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self.pad_token = pad_token
        self._special = {token.id for token in added if token.special}

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of tokens, added ones included."""

    @property
    def fingerprint(self) -> str:
        """Of all that decides the ids of a text."""
        added = repr(sorted(self.added.values(), key=lambda token: (token.id, token.content)))
        return hashlib.blake2b(added.encode() + self._content(), digest_size=16).hexdigest()

    @abc.abstractmethod
    def _content(self) -> bytes:
        """What the ids of a text depend on beside the added tokens."""

    @abc.abstractmethod
    def has_id(self, number: int) -> bool:
        """Whether a number is a token's."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text; a BOS comes first where the kind has one."""

    @abc.abstractmethod
    def continue_ids(self, text: str) -> list[int]:
        """Ids of a text that follows other text: no BOS, and nothing that only stands at a beginning."""

    def typed_ids(self, pieces: Iterable[tuple[str, bool]], control: frozenset[str]) -> list[int]:
        """Ids of text that follows other text, from its pieces: (text, whether somebody typed it).

        Where it was typed, the text of ``control``'s added tokens is characters like any others.
        """
        pieces = list(pieces)
        text = self._plain_text(pieces, control)
        return self._cut_ids(pieces, control) if text is None else self.continue_ids(text)

    def typed_lengths(self, texts: Iterable[Sequence[tuple[str, bool]]], control: frozenset[str]) -> list[int]:
        """How many ids :meth:`typed_ids` gives, of several texts."""
        found = [(pieces, self._plain_text(pieces, control)) for pieces in texts]
        plain = iter(self._lengths([text for _, text in found if text is not None]))
        return [len(self._cut_ids(pieces, control)) if text is None else next(plain) for pieces, text in found]

    def _plain_text(self, pieces: Sequence[tuple[str, bool]], control: frozenset[str]) -> str | None:
        """The pieces as one text, or ``None`` where somebody typed what must not become a token."""
        reserved = _any_of(control | self.aliases)
        if any(typed and reserved.search(text) for text, typed in pieces):
            return None
        return "".join([text for text, _ in pieces])

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """How many ids :meth:`continue_ids` gives, of several texts."""
        return [len(self.continue_ids(text)) for text in texts]

    def _cut_ids(self, pieces: Iterable[tuple[str, bool]], control: frozenset[str]) -> list[int]:
        """As :meth:`typed_ids`: text is cut at added tokens, and white space beside them moved as their flags say."""
        texts = [""]
        tokens: list[AddedToken] = []  # between the texts
        for text, typed in pieces:
            for part in self._splitter.split(text) if self._splitter else [text]:
                found = None if typed and part in control else self.added.get(part)
                if found is None:
                    texts[-1] += part
                else:
                    tokens.append(found)
                    texts.append("")
        ids: list[int] = []
        before, spell = texts[0], bool(control)
        for token, after in zip(tokens, texts[1:], strict=True):
            if token.single_word and not (before[-1:] in ("", " ") and after[:1] in ("", " ")):
                before += token.content + after
                continue
            before = before.rstrip() if token.lstrip else before
            ids += [*self._plain_ids(before, spell), token.id] if before else [token.id]
            before = after.lstrip() if token.rstrip else after
        return ids + self._plain_ids(before, spell) if before else ids

    @abc.abstractmethod
    def _plain_ids(self, text: str, spell: bool = False) -> list[int]:
        """Ids of text without added tokens, between two of them; ``spell`` writes aliases letter by letter."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids. A character whose last bytes are still missing shows as U+FFFD at the end."""

    def is_special(self, number: int) -> bool:
        """Whether a token is left out of decoded text."""
        return number in self._special

    def token_id(self, token: str) -> int:
        """Id of one token; ValueError when there is none of that text."""
        if token in self.added:
            return self.added[token].id
        number = self._base_id(token)
        if number is None:
            raise TokenizerError(f'the tokenizer has no token "{token}"')
        return number

    @abc.abstractmethod
    def _base_id(self, token: str) -> int | None:
        """Id of a token of the base vocabulary."""

    def _kept(self, ids: Iterable[int], skip_special: bool) -> list[int]:
        return [number for number in map(int, ids) if not (skip_special and number in self._special)]


class FastTokenizer(Tokenizer):
    """A tokenizer that the ``tokenizers`` library runs."""

    def __init__(
        self, backend: tokenizers.Tokenizer, added: Sequence[AddedToken], kind: str, pad_token: str | None
    ) -> None:
        super().__init__(added, pad_token)
        self.backend, self.kind = backend, kind
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts are few and short, and workers are forked

    @property
    def size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def _content(self) -> bytes:
        return f"{self.kind} {self.backend.to_str()}".encode()

    def has_id(self, number: int) -> bool:
        return self.backend.id_to_token(number) is not None

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=self.kind == "json").ids

    def continue_ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(found) for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _plain_ids(self, text: str, spell: bool = False) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same model without added tokens."""
        import tokenizers

        plain = tokenizers.Tokenizer(self.backend.model)
        for name in ("normalizer", "pre_tokenizer"):
            if (part := getattr(self.backend, name)) is not None:
                setattr(plain, name, part)
        return plain

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self.backend.decode(self._kept(ids, skip_special), skip_special_tokens=False)

    def _base_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)


class SentencePieceTokenizer(Tokenizer):
    """A ``tokenizer.model`` with the habits of the slow tokenizer it was trained with.

    Args:
        prefix_every_piece: a space before every piece between added tokens (InternLM2, old Llama), or only before the
            whole text (Llama with ``legacy`` false).
        named: tokens with a role (bos, eos, ..., additional special tokens); the leading space is dropped before these.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: sentencepiece.SentencePieceProcessor,
        added: Sequence[AddedToken],
        *,
        prefix_every_piece: bool,
        add_bos: bool,
        named: frozenset[str] = frozenset(),
        pad_token: str | None = None,
    ) -> None:
        super().__init__(added, pad_token)
        self.model, self.prefix_every_piece = model, prefix_every_piece
        self._named = {self.added[token].id for token in named if token in self.added}
        self.bos = [model.bos_id()] if add_bos else []
        self._unknown = model.id_to_piece(model.unk_id())
        self._unknown_length = len(model.encode(self._unknown, out_type=str))
        self._by_id = {token.id: token.content for token in self.added.values()}
        self._special |= {model.bos_id(), model.eos_id()} - set(self._by_id)
        own = {number: model.id_to_piece(number) for number in self._by_id if number < model.get_piece_size()}
        self._taken = [number for number, piece in own.items() if piece != self._by_id[number]]
        self.aliases = frozenset(own[number] for number in self._taken)

    @property
    def size(self) -> int:
        return max(self.model.get_piece_size(), 1 + max((token.id for token in self.added.values()), default=0))

    def _content(self) -> bytes:
        habits = (self.prefix_every_piece, self.bos, sorted(self._named))
        return repr(habits).encode() + self.model.serialized_model_proto()

    def has_id(self, number: int) -> bool:
        return number < self.model.get_piece_size() or number in self._by_id

    def encode(self, text: str) -> list[int]:
        if self.prefix_every_piece or not text:
            return self.bos + self.continue_ids(text)
        ids = self._ids(SPACE + text.replace(SPACE, " "))
        lone_space = self.model.piece_to_id(SPACE)
        if len(ids) > 1 and ids[0] == lone_space and ids[1] in self._named:
            ids = ids[1:]
        return self.bos + ids

    def continue_ids(self, text: str) -> list[int]:
        return self._ids(text if self.prefix_every_piece else text.replace(SPACE, " "))

    def _ids(self, text: str) -> list[int]:
        return self._cut_ids([(text, False)], frozenset())

    def _plain_ids(self, text: str, spell: bool = False) -> list[int]:
        if spell and self.aliases:
            letters = {n: [self.model.piece_to_id(c) for c in self.model.id_to_piece(n)] for n in self._taken}
            return [i for number in self._plain_ids(text) for i in letters.get(number, (number,))]
        if self.prefix_every_piece or not text.startswith((SPACE, " ")):
            return self.model.encode(text, out_type=int)
        # A leading space must survive: tokenise behind the unknown token, then cut it off again.
        return self.model.encode(self._unknown + text, out_type=int)[self._unknown_length :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        kept = self._kept(ids, skip_special)
        runs = itertools.groupby(kept, self._by_id.__contains__)
        text = "".join(
            "".join(self._by_id[number] for number in run) if added else self.model.decode(list(run))
            for added, run in runs
        )
        # The space put before the first word when encoding; a model that puts it itself has taken it off already.
        starts_word = kept and kept[0] not in self._by_id and self.model.id_to_piece(kept[0]).startswith(SPACE)
        return text[1:] if starts_word and not self.prefix_every_piece else text

    def _base_id(self, token: str) -> int | None:
        number = self.model.piece_to_id(token)
        return None if number == self.model.unk_id() and token != self._unknown else number
