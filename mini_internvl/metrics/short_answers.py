"""Short answers against one gold answer: the same words, or the share of the gold's words that were said.

By definition: words are what white space divides, in lower case and without the punctuation at their ends ("Yes." and
"**Yes**" are "yes"). Recall counts each word of the gold as often as it stands there. Published scripts differ in how
they clean texts: compare a score with theirs only after a look at both.
"""

from __future__ import annotations

from collections import Counter

ENDS = ".,;:!?\"'`()[]*_。，、？！"
"""What is taken off both ends of a word: punctuation, and the marks of emphasis in Markdown."""


def same_words(answer: str, gold: str) -> bool:
    """Whether the answer says what the gold says, no more and no less; an empty answer never does."""
    said = plain(answer)
    return said != "" and said == plain(gold)


def plain(text: str) -> str:
    """A text in lower case, with single spaces and without punctuation at the ends of its words."""
    return " ".join(_words(text))


def word_recall(answer: str, gold: str) -> float:
    """The share of the gold's words that the answer holds; 0 for a gold without words."""
    wanted = Counter(_words(gold))
    return sum((wanted & Counter(_words(answer))).values()) / sum(wanted.values()) if wanted else 0.0


def _words(text: str) -> list[str]:
    return [word for part in text.lower().split() if (word := part.strip(ENDS))]
