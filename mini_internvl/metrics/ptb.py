"""PTB tokens without Java: Stanford CoreNLP 3.4.1's PTBTokenizer, as the caption scorers call it.

Options ``preserveLines`` and ``lowerCase``, then the fixed list of punctuation tokens is dropped. The table of rules is in
``ptb_rules.py``; this file runs it and gives each token its written form. Unusual, and kept: lower-casing comes first, so
bracket tokens appear as ``-lrb-`` and are *not* dropped; captions are read as lines of one text, so that a line break of
another kind inside one (CR, VT, FF, U+2028...) moves all later captions down.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from mini_internvl.metrics.lexer import Lexer, Rule
from mini_internvl.metrics.ptb_rules import NAMES, RULES

DROPPED = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
"""Tokens that the scorers leave out (``ptbtokenizer.py`` of pycocoevalcap)."""
FIRST = (
    Rule(name="title", pattern="ph\\.d\\."),
    Rule(name="madam", pattern="[A-Za-z]*ma'am"),
    Rule(name="rock and roll", pattern="'n'"),
)
SPLITS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'twas": 2, "'tis": 2}
"""Words of two tokens: length of the first."""
PLAIN_WORDS = re.compile("(?:[A-Za-z]+ )+")
"""Words of letters with a space behind: no rule does anything else with them, so they need no automaton."""
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
DOUBLE_QUOTES = frozenset(['"', "&quot;", "``", "''", "\x93", "\x94", "\xab", "\xbb", "\u201c", "\u201d"])
MONEY = {"\u20ac": "$", "\x80": "$", "\u20a0": "$", "\xa4": "$", "\xa3": "#", "\xa2": "cents"}
FRACTIONS = {"\xbd": "1/2", "\xbc": "1/4", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
SPELLED = (("\xad", ""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&apos;", "'"), ("\u2019", "'"), ("\x92", "'"))


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokens of each caption, joined by spaces.

    The captions are read together, one a line; only a line feed inside a caption is a space.
    """
    text = "\n".join(caption.replace("\n", " ") for caption in captions)
    lines: list[list[str]] = [[]]
    for token in _tokens(text):
        if token == "\n":
            lines.append([])
        elif token not in DROPPED:
            lines[-1].append(token)
    lines += [[] for _ in range(len(captions) - len(lines))]
    return [" ".join(line) for line in lines[: len(captions)]]


@functools.cache
def _lexer() -> Lexer:
    return Lexer([*FIRST, *RULES], NAMES)


def _tokens(text: str) -> Iterator[str]:
    """Written forms in order; "\\n" for a line break."""
    lexer = _lexer()
    names = [rule.name for rule in lexer.rules]
    start, dead = lexer.automaton.start, lexer.automaton.dead
    marks, length, at = text.translate(lexer.classes), len(text), 0
    while at < length:
        if plain := PLAIN_WORDS.match(text, at):
            for word in plain.group().lower().split():
                cut = SPLITS.get(word, len(word))
                yield from (part for part in (word[:cut], word[cut:]) if part)
            at = plain.end()
            continue
        state, place, stop, rule = start, at, at, -1
        while place < length:
            state = state[marks[place]]
            if state is dead:
                break
            place += 1
            if state.rule >= 0:
                stop, rule = place, state.rule
        if rule < 0:  # a character that no rule knows
            at += 1
            continue
        name = names[rule]
        end = max(at + 1, lexer.token_end(rule, marks, at, stop))
        if name in ("cannot", "gonna"):
            end = at + SPLITS[text[at:stop].lower()]
        elif name == "clitic3" and end < length:  # without a following sign a clitic stands only at the very end
            name, end = "quote", at + 1
        written = _written(name, text[at:end])
        if written:
            yield written
        at = end


def _written(name: str, text: str) -> str:
    """The form in which a token of a rule is written, "" for none."""
    if name == "newline":
        return "\n"
    if name in ("space", "other", "del"):
        return ""
    if name in ("quote", "open", "open2"):
        return "''" if text in DOUBLE_QUOTES else "'"
    if name in ("lp", "rp", "lc", "rc", "ls", "rs"):
        return BRACKETS[text]
    if name == "mdash":
        return "--"
    if name == "dashes":
        return "-" if len(text) == 1 else "--" if len(text) <= 4 else text
    if name == "dots":
        return "..."
    if name == "euro":
        return MONEY.get(text, text)
    if name == "vulgar":
        return FRACTIONS.get(text, text)
    if name != "ninetiess":
        for spelled, meant in SPELLED:
            text = text.replace(spelled, meant)
    return text.lower()
