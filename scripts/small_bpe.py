"""A small byte-level BPE for models trained from scratch, written as the files of a Qwen2 tokenizer.

Unusual: merges grow words from their leading space, letter by letter (" t", " th", " the"), and never join letters
without one. Frequent words of questions so become one token, while text that an answer reads out of an image stays
spelled in characters, which is far easier to learn from few images. Characters of several bytes become one token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mini_internvl.inputs.chat import FAMILY_TOKENS, ROLES

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *FAMILY_TOKENS)
"""The three of the base tokenizer, then the nine of the family."""


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(sorted(set(range(256)) - set(printable))):
        letters[byte] = chr(256 + number)
    return letters


def grow_merges(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """Merges, in rank order, that grow the commonest words and characters of ``texts``.

    Args:
        texts: what the model will be asked and taught.
        size: upper limit of the number of merges.

    Returns:
        Pairs of printable byte strings; every prefix of a merged word is itself a token.
    """
    letters = byte_letters()
    words: Counter[str] = Counter()
    for text in texts:
        for line in text.splitlines():
            pieces = line.split(" ")
            words.update(" " + piece.strip(".,?!:;\"'()") for piece in pieces[1:])
            words.update(character for character in line if ord(character) > 0x7F)
            if pieces[0][:1].isupper() and pieces[0].isalpha() and len(pieces) > 2:
                words[pieces[0]] += 1
    # The words of the chat template, although no space precedes them: every turn holds one.
    roles = {pair: None for role in ROLES for pair in _growth(list(role))}
    merges: dict[tuple[str, str], None] = {}
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        symbols = [letters[byte] for byte in word.encode()]
        if len(symbols) < 2 or (word.isascii() and not word.strip().isalpha()):
            continue
        new = [pair for pair in _growth(symbols) if pair not in merges]
        if len(merges) + len(new) + len(roles) <= size:
            merges.update(dict.fromkeys(new))
    return list(merges | roles)  # roles last, so that they do not break up " because" at "us"


def _growth(symbols: list[str]) -> list[tuple[str, str]]:
    """The merges that grow a word from its left end."""
    return [("".join(symbols[:i]), symbols[i]) for i in range(1, len(symbols))]


def write_tokenizer(folder: str | Path, merges: list[tuple[str, str]]) -> int:
    """Write vocab.json, merges.txt, added_tokens.json, special_tokens_map.json and tokenizer_config.json.

    Returns:
        The vocabulary size, added tokens included.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*byte_letters().values(), *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    added = {token: len(vocab) + number for number, token in enumerate(ADDED)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": token, **flags} for token, number in added.items()},
        "additional_special_tokens": list(ADDED[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = {"additional_special_tokens": list(ADDED[1:]), "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    for name, content in (
        ("vocab.json", vocab),
        ("added_tokens.json", added),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab) + len(added)
