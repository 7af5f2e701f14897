"""BLEU-1..4, ROUGE-L and CIDEr over PTB tokens, equal to pycocoevalcap 1.2 but without Java.

Corpus values and per-item values come from one pass. Unusual next to other packages: BLEU adds tiny constants instead
of smoothing, ROUGE-L takes the best precision and the best recall over the references separately, and CIDEr's length
penalty compares counts of *bigrams*. BLEU and CIDEr split a caption at any white space, ROUGE-L at plain spaces only,
which differs for tokens such as "1 1/2" (with a hard space).

N-grams are numbers here: each distinct n-gram of the data gets one, and counting and matching are operations on sorted
arrays of ``caption number * number of n-grams + n-gram number`` ("keys"), with no Python loop over n-grams.
Source: pycocoevalcap ``bleu_scorer.py``, ``rouge.py``, ``cider_scorer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mini_internvl.metrics import ptb

ORDERS = 4
TINY, SMALL = 1e-15, 1e-9  # added to matches and to totals in BLEU
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # width of CIDEr's length penalty


@dataclass(frozen=True, kw_only=True)
class CaptionScores(Mapping[str, float]):
    """Corpus values by name (``Bleu_1`` .. ``Bleu_4``, ``ROUGE_L``, ``CIDEr``), each a fraction (CIDEr up to 10)."""

    corpus: Mapping[str, float]  # name -> value over all items
    per_item: Mapping[str, Sequence[float]]  # name -> value of each item; CIDEr's frequencies are the corpus's

    def __getitem__(self, name: str) -> float:
        return self.corpus[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.corpus)

    def __len__(self) -> int:
        return len(self.corpus)


def caption_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    line_breaks: Literal["official", "space"] = "official",
) -> CaptionScores:
    """Score one caption per item against its references.

    Args:
        hypotheses: N captions.
        references: N lists of at least one caption.
        line_breaks: "official" lets a carriage return or other line end inside a caption shift all later captions, as
            the original does; "space" protects against it (see :mod:`mini_internvl.metrics.ptb`).

    Raises:
        ValueError: no items, different numbers, an item without reference or with a bare string for its references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} captions against {len(references)} lists of references")
    for number, group in enumerate(references):
        if isinstance(group, str) or not group:
            what = "a string instead of a list of references" if group else "no reference"
            raise ValueError(f"item {number} has {what}: give each item a list of at least one caption")
    heard = ptb.tokenize([caption for group in references for caption in group], line_breaks=line_breaks)
    said = ptb.tokenize(hypotheses, line_breaks=line_breaks)
    item = np.repeat(np.arange(len(references)), [len(group) for group in references])  # item of each reference
    counts = _Counts.of(said, heard, item)
    bleu, bleu_items = _bleu(counts)
    per_item: dict[str, Sequence[float]] = {f"Bleu_{n + 1}": column for n, column in enumerate(bleu_items.T.tolist())}
    per_item["ROUGE_L"] = _rouge_l(said, heard, item)
    per_item["CIDEr"] = _cider(counts).tolist()
    corpus = {f"Bleu_{n + 1}": value for n, value in enumerate(bleu.tolist())}
    for name in ("ROUGE_L", "CIDEr"):
        corpus[name] = math.fsum(per_item[name]) / len(said)
    return CaptionScores(corpus=corpus, per_item=per_item)


@dataclass(frozen=True, kw_only=True)
class _Grams:
    """The n-grams of one order: keys, caption * number + n-gram, with how often the caption has the n-gram.

    Keys rise and are distinct. Those of the S hypotheses' n-grams are (S,), of the H references' (H,).
    """

    number: int  # distinct n-grams in the data
    said: np.ndarray
    said_count: np.ndarray
    heard: np.ndarray
    heard_count: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Lengths (N,) of hypotheses, lengths (R,) and items (R,), rising, of references; n-grams, one entry per order."""

    said_length: np.ndarray
    heard_length: np.ndarray
    item: np.ndarray
    grams: Sequence[_Grams]

    @staticmethod
    def of(said: Sequence[str], heard: Sequence[str], item: np.ndarray) -> _Counts:
        """Counts the n-grams of tokenized captions."""
        captions = [text.split() for text in (*said, *heard)]
        length = np.array([len(words) for words in captions])
        flat = [word for words in captions for word in words]
        number = {word: place for place, word in enumerate(dict.fromkeys(flat))}
        words = np.fromiter((number[word] for word in flat), np.int64, len(flat))
        owner = np.repeat(np.arange(len(captions)), length)
        left = np.repeat(length.cumsum(), length) - np.arange(len(words))  # words from here to the caption's end
        at, gram = np.arange(len(words)), words  # where an n-gram begins, and its number
        grams = []
        for order in range(1, ORDERS + 1):
            if order > 1:
                longer = left[at] >= order
                at = at[longer]
                pairs = gram[longer] * len(number) + words[at + order - 1]
                gram = np.unique(pairs, return_inverse=True)[1].reshape(-1)
            distinct = int(gram.max(initial=-1)) + 1
            keys, count = np.unique(owner[at] * distinct + gram, return_counts=True)
            first = np.searchsorted(keys, len(said) * distinct)  # the references' keys begin here
            grams.append(
                _Grams(
                    number=distinct,
                    said=keys[:first],
                    said_count=count[:first],
                    heard=keys[first:] - len(said) * distinct,
                    heard_count=count[first:],
                )
            )
        return _Counts(said_length=length[: len(said)], heard_length=length[len(said) :], item=item, grams=grams)


def _bleu(counts: _Counts) -> tuple[np.ndarray, np.ndarray]:
    """Clipped n-gram precision with brevity penalty: (ORDERS,) for the corpus, (N, ORDERS) for the items."""
    length = counts.said_length
    matched = np.empty((len(length), ORDERS))
    for order, grams in enumerate(counts.grams):
        most, most_count = _most_per_item(counts, grams)
        clipped = np.minimum(grams.said_count, _look_up(most, most_count, grams.said))
        owner = grams.said // max(1, grams.number)
        matched[:, order] = np.bincount(owner, clipped, len(length))
    guessed = np.maximum(0, length[:, None] - np.arange(ORDERS))
    closest = _closest_lengths(counts)
    sums = [part.sum(0)[None] for part in (matched, guessed, length, closest)]
    return _bleu_values(*sums)[0], _bleu_values(matched, guessed, length, closest)


def _bleu_values(matched: np.ndarray, guessed: np.ndarray, length: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(rows, ORDERS) cumulative geometric means of the precisions, times the brevity penalty of each row."""
    product = np.cumprod((matched + TINY) / (guessed + SMALL), axis=1)
    ratio = (length + TINY) / (reference + SMALL)
    penalty = np.exp(np.minimum(0, 1 - 1 / ratio))  # 1 where the ratio is 1 or more
    return product ** (1 / np.arange(1, ORDERS + 1)) * penalty[:, None]


def _closest_lengths(counts: _Counts) -> np.ndarray:
    """(N,) for each hypothesis the reference length closest to its own, the shorter one on a tie."""
    distance = np.abs(counts.heard_length - counts.said_length[counts.item])
    best_first = np.lexsort((counts.heard_length, distance, counts.item))
    first = np.searchsorted(counts.item, np.arange(len(counts.said_length)))
    return counts.heard_length[best_first][first]


def _most_per_item(counts: _Counts, grams: _Grams) -> tuple[np.ndarray, np.ndarray]:
    """Keys item * number + n-gram over all references of an item, and the most that one reference has of it."""
    reference, gram = np.divmod(grams.heard, max(1, grams.number))
    keys = counts.item[reference] * grams.number + gram
    in_order = np.lexsort((grams.heard_count, keys))
    keys, most = keys[in_order], grams.heard_count[in_order]
    last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
    return keys[last], most[last]


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is missing; `keys` rise."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _cider(counts: _Counts) -> np.ndarray:
    """(N,) tf-idf weighted n-gram similarity times 10, averaged over orders and references."""
    items, references = len(counts.said_length), len(counts.item)
    total = np.zeros(references)  # similarity of each reference to its hypothesis, summed over orders
    for grams in counts.grams:
        width = max(1, grams.number)
        most, _ = _most_per_item(counts, grams)
        frequency = np.bincount(most % width, minlength=width)  # items whose references have the n-gram
        weight = math.log(items) - np.log(np.maximum(1, frequency))
        owner, gram = np.divmod(grams.said, width)
        said = grams.said_count * weight[gram]
        said_norm = np.sqrt(np.bincount(owner, said**2, items))
        reference, gram = np.divmod(grams.heard, width)
        heard = grams.heard_count * weight[gram]
        norm = np.sqrt(np.bincount(reference, heard**2, references)) * said_norm[counts.item]
        mine = _look_up(grams.said, said, counts.item[reference] * width + gram)
        product = np.bincount(reference, np.minimum(mine, heard) * heard, references)
        total += np.divide(product, norm, out=np.zeros(references), where=norm > 0)
    bigrams = np.maximum(0, counts.said_length - 1)[counts.item] - np.maximum(0, counts.heard_length - 1)
    total *= np.exp(-(bigrams**2) / (2 * SIGMA**2))
    return 10 * np.bincount(counts.item, total, items) / ORDERS / np.bincount(counts.item, minlength=items)


def _rouge_l(said: Sequence[str], heard: Sequence[str], item: np.ndarray) -> list[float]:
    """For each item the F-measure of the longest common subsequence; an empty caption is one empty token."""
    best = [(0.0, 0.0)] * len(said)
    captions = [text.split(" ") for text in said]
    for number, text in zip(item.tolist(), heard, strict=True):
        caption, reference = captions[number], text.split(" ")
        common = _common(caption, reference)
        precision, recall = best[number]
        best[number] = max(precision, common / len(caption)), max(recall, common / len(reference))
    return [(1 + BETA**2) * p * r / (r + BETA**2 * p) if p and r else 0.0 for p, r in best]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row in bits (Hyyrö 2004)."""
    if first == second:
        return len(first)
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()
