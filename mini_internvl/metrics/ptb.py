"""Penn Treebank tokenization of captions, as the standard caption scorers do it, but without Java.

The COCO caption tools write all captions to one file, one per line, tokenize the file with CoreNLP 3.4.1's PTBTokenizer
in lower case, read the lines back by position and drop a fixed list of punctuation tokens. `tokenize` gives the same
strings. Two consequences of that procedure surprise:

* Only line feeds inside a caption are replaced beforehand. A carriage return, vertical tab, form feed, U+2028 or U+2029
  in a caption is a line end to the tokenizer, so every later caption shifts by one place (and the last one falls off).
  `line_breaks="space"` treats them as spaces instead; `has_line_break` says whether a caption is affected.
* Brackets survive, as "-lrb-" and so on: the list of dropped tokens has them in upper case.

One thing is deliberately steadier here: the original's file has no line feed behind its last caption, so that one alone
is cut differently when it ends in a bare clitic ("they're" becomes "they re"). Here every caption has a line feed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from mini_internvl.metrics.lexer import Lexer

#: Tokens that are dropped before scoring (pycocoevalcap, tokenizer/ptbtokenizer.py); the upper-case ones never occur.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_LINE_BREAKS = re.compile("[\r\v\f\u2028\u2029]")
# Plain words with one space behind each: whatever follows, each is one token, apart from a few contractions.
_PLAIN_WORDS = re.compile("(?:(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna) )[A-Za-z]+ )+")


@lru_cache(maxsize=1)
def _lexer() -> Lexer:
    from mini_internvl.metrics.ptb_rules import NAMES, RULES

    return Lexer(RULES, NAMES, shortcut=_PLAIN_WORDS)


def has_line_break(caption: str) -> bool:
    """Whether `caption` holds a character that the tokenizer takes for a line end although it is no line feed."""
    return _LINE_BREAKS.search(caption) is not None


def tokenize(captions: Sequence[str], *, line_breaks: Literal["official", "space"] = "official") -> list[str]:
    """Tokenizes captions together; the i-th result holds the tokens of the i-th line, joined by single spaces.

    Args:
        captions: any texts; a line feed inside one counts as a space.
        line_breaks: "official" lets other line ends inside a caption shift the later captions, as the original does;
            "space" makes them spaces too, so that every result belongs to its caption.

    Source: pycocoevalcap 1.2, PTBTokenizer.tokenize (options preserveLines and lowerCase).
    """
    if line_breaks == "space":
        captions = [_LINE_BREAKS.sub(" ", caption) for caption in captions]
    text = "".join(caption.replace("\n", " ") + "\n" for caption in captions)
    lines = [_without_punctuation(line) for line in _tokenized_lines(text)[: len(captions)]]
    return lines + [""] * (len(captions) - len(lines))


def _tokenized_lines(text: str) -> list[str]:
    """The tokenizer's output for a whole text: lower case, tokens joined by spaces, punctuation still there."""
    # The tokenizer reads UTF-16: a character beyond the first 65,536 is two units to it.
    wide = max(text, default="") > "\uffff"
    if wide:
        units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
        text = "".join(map(chr, units.tolist()))
    lines: list[str] = []
    line: list[str] = []
    for token in _lexer().tokens(text):
        if token == "\n":
            lines.append(" ".join(line))
            line = []
        else:
            line.append(token)
    lines.append(" ".join(line))
    whole = "\n".join(lines).lower()
    if wide:
        whole = whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace").lower()
    return whole.split("\n")


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
