"""BLEU-1..4, ROUGE-L and CIDEr over PTB tokens, equal to pycocoevalcap 1.2 but without Java.

Corpus values and per-item values come from one pass. Unusual next to other packages: BLEU adds tiny constants instead
of smoothing, ROUGE-L takes the best precision and the best recall over the references separately, and CIDEr's length
penalty compares counts of *bigrams*. N-grams are counted once per distinct caption.
Source: pycocoevalcap ``bleu_scorer.py``, ``rouge.py``, ``cider_scorer.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mini_internvl.metrics import ptb

ORDERS = 4
TINY, SMALL = 1e-15, 1e-9  # added to matches and to totals in BLEU
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # width of CIDEr's length penalty

Tokens = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionScores(Mapping[str, float]):
    """Corpus values by name (``Bleu_1`` .. ``Bleu_4``, ``ROUGE_L``, ``CIDEr``), each a fraction (CIDEr up to 10)."""

    corpus: Mapping[str, float]
    """Name -> value over all items."""
    per_item: Mapping[str, Sequence[float]]
    """Name -> value of each item alone (CIDEr with the corpus's document frequencies)."""

    def __getitem__(self, name: str) -> float:
        return self.corpus[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.corpus)

    def __len__(self) -> int:
        return len(self.corpus)


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption per item against its references.

    Args:
        hypotheses: N captions.
        references: N lists of at least one caption.

    Raises:
        ValueError: no items, different numbers, or an item without reference.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} captions against {len(references)} lists of references")
    if not all(references):
        raise ValueError("an item has no reference")
    flat = iter(ptb.tokenize([caption for group in references for caption in group]))
    groups = [[_tokens(next(flat)) for _ in group] for group in references]
    captions = [_tokens(text) for text in ptb.tokenize(list(hypotheses))]
    corpus, items = _bleu(captions, groups)
    items["ROUGE_L"] = [_rouge_l(caption, group) for caption, group in zip(captions, groups, strict=True)]
    items["CIDEr"] = _cider(captions, groups)
    for name in ("ROUGE_L", "CIDEr"):
        corpus[name] = math.fsum(items[name]) / len(captions)
    return CaptionScores(corpus=corpus, per_item=items)


def _tokens(text: str) -> Tokens:
    return tuple(text.split())


@lru_cache(maxsize=65536)
def _ngrams(tokens: Tokens) -> tuple[Counter[Tokens], ...]:
    """Counts of the 1- to 4-grams."""
    return tuple(Counter(zip(*(tokens[i:] for i in range(order)), strict=False)) for order in range(1, ORDERS + 1))


def _bleu(
    captions: Sequence[Tokens], groups: Sequence[Sequence[Tokens]]
) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Clipped n-gram precision with brevity penalty, for the corpus and for each item."""
    totals = [[0, 0] for _ in range(ORDERS)]  # matched, guessed
    length, reference_length = 0, 0
    items: dict[str, list[float]] = {f"Bleu_{order}": [] for order in range(1, ORDERS + 1)}
    for caption, group in zip(captions, groups, strict=True):
        counts = []
        for order, mine in enumerate(_ngrams(caption)):
            theirs = [_ngrams(reference)[order] for reference in group]
            matched = sum(min(n, max(other[gram] for other in theirs)) for gram, n in mine.items())
            counts.append((matched, max(0, len(caption) - order)))
        closest = min((abs(len(reference) - len(caption)), len(reference)) for reference in group)[1]
        for order, value in enumerate(_bleu_values(counts, len(caption), closest), 1):
            items[f"Bleu_{order}"].append(value)
        for total, (matched, guessed) in zip(totals, counts, strict=True):
            total[0] += matched
            total[1] += guessed
        length += len(caption)
        reference_length += closest
    values = _bleu_values(totals, length, reference_length)
    return {f"Bleu_{order}": value for order, value in enumerate(values, 1)}, dict(items)


def _bleu_values(counts: Sequence[Sequence[int]], length: int, reference_length: int) -> list[float]:
    """Cumulative geometric means of the precisions, times the brevity penalty."""
    ratio = (length + TINY) / (reference_length + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for order, (matched, guessed) in enumerate(counts, 1):
        product *= (matched + TINY) / (guessed + SMALL)
        values.append(product ** (1 / order) * penalty)
    return values


def _rouge_l(caption: Tokens, group: Sequence[Tokens]) -> float:
    """F-measure of the longest common subsequence; an empty caption is one empty token."""
    caption = caption or ("",)
    precisions, recalls = [], []
    for reference in group:
        reference = reference or ("",)
        common = _common(caption, reference)
        precisions.append(common / len(caption))
        recalls.append(common / len(reference))
    precision, recall = max(precisions), max(recalls)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(first: Tokens, second: Tokens) -> int:
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


def _cider(captions: Sequence[Tokens], groups: Sequence[Sequence[Tokens]]) -> list[float]:
    """tf-idf weighted n-gram similarity times 10, averaged over orders and references."""
    frequency: Counter[Tokens] = Counter()
    for group in groups:
        frequency.update({gram for reference in group for counts in _ngrams(reference) for gram in counts})
    size = math.log(len(groups))
    weight = {gram: size - math.log(count) for gram, count in frequency.items()}

    @lru_cache(maxsize=65536)
    def vector(tokens: Tokens) -> tuple[tuple[dict[Tokens, float], float], ...]:
        parts = []
        for counts in _ngrams(tokens):
            part = {gram: count * weight.get(gram, size) for gram, count in counts.items()}
            parts.append((part, math.sqrt(math.fsum(value * value for value in part.values()))))
        return tuple(parts)

    scores = []
    for caption, group in zip(captions, groups, strict=True):
        total = 0.0
        for reference in group:
            difference = max(0, len(caption) - 1) - max(0, len(reference) - 1)
            penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
            for (mine, norm), (theirs, other_norm) in zip(vector(caption), vector(reference), strict=True):
                if norm and other_norm:
                    product = sum(
                        min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs
                    )
                    total += product / (norm * other_norm) * penalty
        scores.append(10 * total / ORDERS / len(group))
    return scores
