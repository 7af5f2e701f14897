"""The English words that images show, and what separates test texts from training texts.

Any text (word, number, code) belongs to exactly one split by a hash of its lower-case form, so a test text can never
occur in a training image. Texts of one or two characters are too few to divide and are used in training only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

TEST_SHARE = 0.12  # share of texts kept for test images

UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ"
LOWER = "abcdefghijkmnopqrstuvwxyz"  # letters without O, I and l, which many fonts draw like 0 and 1
CLEAR_UPPER = "ABDEFGHJKLMNPQRTY"
CLEAR_LOWER = "abdefghijkmnqrt"  # letters whose case can be told when they stand alone
DIGITS = "0123456789"


def hash_share(text: str) -> float:
    """A number from 0 to 1 by a hash of the text: what is below the test share belongs to the test split."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32


@lru_cache(maxsize=200_000)
def is_test(text: str) -> bool:
    """Whether a text belongs to the test split, by a hash of its lower-case form."""
    return len(text) > 2 and hash_share(text.lower()) < TEST_SHARE


@lru_cache(maxsize=2)
def words(split: str) -> tuple[str, ...]:
    """The lower-case words of a split, 2 to 8 letters, sorted."""
    text = Path(__file__).with_name("words.txt").read_text(encoding="ascii")
    usable = sorted({w for w in text.split() if 2 <= len(w) <= 8})
    return tuple(w for w in usable if is_test(w) == (split == "test"))


def _random_text(rng: random.Random, length: int) -> str:
    """Letters of one case, digits, or both, without look-alikes."""
    style = rng.random()
    if style < 0.35:
        alphabet, clear = UPPER, CLEAR_UPPER
    elif style < 0.65:
        alphabet, clear = LOWER, CLEAR_LOWER
    elif style < 0.85:
        alphabet, clear = DIGITS, DIGITS
    else:
        alphabet, clear = UPPER + DIGITS, CLEAR_UPPER
    first = rng.choice(clear)
    rest = "".join(rng.choices(clear if length <= 2 else alphabet, k=length - 1))
    at = rng.randrange(length)
    return rest[:at] + first + rest[at:]


def _number(rng: random.Random) -> str:
    """An integer, a decimal number, a price, a percentage, a date or a time of at most 8 characters."""
    kind = rng.randrange(8)
    if kind <= 1:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind == 2:
        return f"{rng.randrange(1000)}.{rng.randrange(10)}"
    if kind == 3:
        return f"{rng.choice('$€£')}{rng.randrange(200)}.{rng.choice((0, 50, 95, 99, rng.randrange(100))):02d}"
    if kind == 4:
        return f"{rng.randrange(101)}%" if rng.random() < 0.6 else f"{rng.randrange(100)}.{rng.randrange(10)}%"
    if kind == 5:
        return f"{rng.randint(1, 31):02d}/{rng.randint(1, 12):02d}" + (f"/{rng.randrange(100):02d}" * rng.randrange(2))
    if kind == 6:
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return f"{rng.randrange(1, 10)},{rng.randrange(1000):03d}"


def of_split(split: str, make: Callable[[], str], short_too: bool = False) -> str:
    """Draws until the text belongs to the split; ``short_too`` takes one of one or two characters for either split."""
    while True:
        text = make()
        if is_test(text) == (split == "test") or (short_too and len(text) <= 2):
            return text


def _blend(rng: random.Random) -> str:
    """The beginning of one training word and the end of another, 3 to 8 letters: reads like a word, seldom is one."""
    while True:
        first, second = rng.choice(words("train")), rng.choice(words("train"))
        text = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        if 3 <= len(text) <= 8:
            return text


def word(rng: random.Random, split: str) -> str:
    """A word in lower case, Title case or capitals: common in the test split, in training half of them are blends.

    Without them a small model learns the 1,755 training words by heart and takes unseen ones for the nearest of them.
    """
    if split == "train" and rng.random() < 0.5:
        text = of_split(split, lambda: _blend(rng))
    else:
        choices = words(split)
        text = choices[int(rng.random() * len(choices))]
    case = rng.random()
    return text if case < 0.4 else text.upper() if case < 0.7 else text.capitalize()


def random_text(rng: random.Random, split: str, length: int) -> str:
    """A random string of the length; three characters or more in the test split."""
    length = max(3, length) if split == "test" else length
    return of_split(split, lambda: _random_text(rng, length))


def number(rng: random.Random, split: str) -> str:
    """A number as signs and tickets show it, at most 8 characters."""
    return of_split(split, lambda: _number(rng))
