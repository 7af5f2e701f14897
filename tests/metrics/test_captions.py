"""Caption scores against a second, plain implementation from the definitions, and their limits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.metrics.captions import caption_scores

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def plain_bleu(pairs, n):
    matched, guessed = [0] * n, [0] * n
    length = reference_length = 0
    for said, heard in pairs:
        for k in range(n):
            mine = ngrams(said, k + 1)
            matched[k] += sum(min(c, max(ngrams(r, k + 1)[g] for r in heard)) for g, c in mine.items())
            guessed[k] += max(0, len(said) - k)
        length += len(said)
        reference_length += min((abs(len(r) - len(said)), len(r)) for r in heard)[1]
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    value = math.prod((m + 1e-15) / (g + 1e-9) for m, g in zip(matched, guessed, strict=True)) ** (1 / n)
    return value * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


def plain_cider(pairs):
    scores = []
    for said, heard in pairs:
        total = 0.0
        for reference in heard:
            for n in range(1, 5):
                mine, theirs = ({g: c * idf(pairs, g, n) for g, c in ngrams(w, n).items()} for w in (said, reference))
                norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
                same = sum(min(mine[g], theirs[g]) * theirs[g] for g in mine if g in theirs)
                gap = max(0, len(said) - 1) - max(0, len(reference) - 1)
                total += same / norm * math.exp(-(gap**2) / 72) if norm else 0
        scores.append(10 * total / 4 / len(heard))
    return scores


def idf(pairs, gram, n):
    found = sum(any(gram in ngrams(reference, n) for reference in heard) for _, heard in pairs)
    return math.log(len(pairs)) - math.log(max(1, found))


def plain_rouge(said, heard):
    def common(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            row = next_row(row, x, b)
        return row[-1]

    def next_row(row, x, b):
        new = [0]
        for j, y in enumerate(b):
            new.append(row[j] + 1 if x == y else max(new[j], row[j + 1]))
        return new

    said, heard = said or [""], [reference or [""] for reference in heard]
    p = max(common(said, r) / len(said) for r in heard)
    r = max(common(said, r) / len(r) for r in heard)
    return 2.44 * p * r / (r + 1.44 * p) if p and r else 0.0


SENTENCE = st.lists(st.sampled_from(["car", "van", "stops", "turns", "left", "right", "slowly"]), max_size=9)
ITEM = st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3))


@settings(max_examples=80, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=5))
def test_equal_to_the_definitions(pairs):
    scores = caption_scores([" ".join(s) for s, _ in pairs], [[" ".join(r) for r in heard] for _, heard in pairs])
    for n in range(1, 5):
        assert scores[f"Bleu_{n}"] == pytest.approx(plain_bleu(pairs, n), rel=1e-9)
        each = [plain_bleu([pair], n) for pair in pairs]
        assert scores.per_item[f"Bleu_{n}"] == pytest.approx(each, rel=1e-9)
    rouge = [plain_rouge(*pair) for pair in pairs]
    assert scores.per_item["ROUGE_L"] == pytest.approx(rouge, rel=1e-9)
    assert scores["ROUGE_L"] == pytest.approx(sum(rouge) / len(pairs), rel=1e-9)
    cider = plain_cider(pairs)
    assert scores.per_item["CIDEr"] == pytest.approx(cider, rel=1e-9, abs=1e-12)
    assert scores["CIDEr"] == pytest.approx(sum(cider) / len(pairs), rel=1e-9, abs=1e-12)


def test_perfect_answers():
    captions = ["The car turns left slowly now.", "A van stops at the red light."]
    scores = caption_scores(captions, [[caption.upper()] for caption in captions])
    assert set(scores) == set(NAMES)
    assert scores["Bleu_4"] == pytest.approx(1)
    assert scores["ROUGE_L"] == 1
    assert scores["CIDEr"] == pytest.approx(10)


def test_one_item_alone_has_no_cider():
    scores = caption_scores(["the car stops"], [["the car stops"]])
    assert scores["CIDEr"] == 0
    assert scores["Bleu_3"] == pytest.approx(1)


def test_empty_captions():
    scores = caption_scores(["", "the car"], [["the van"], [""]])
    assert scores["Bleu_1"] == pytest.approx(0, abs=1e-12)
    assert (scores["ROUGE_L"], scores["CIDEr"]) == (0, 0)
    assert caption_scores(["", "."], [[""], ["", "!"]])["ROUGE_L"] == 1  # an empty caption is one empty token


def test_a_hard_space_joins_a_token_for_rouge_only():
    # "5 7/8" is one token with a hard space: ROUGE-L sees 2 tokens, BLEU 3.
    scores = caption_scores(["5 7/8 miles"], [["5 miles"]])
    assert scores["ROUGE_L"] == pytest.approx(0.5)
    assert scores["Bleu_1"] == pytest.approx(2 / 3)


def test_line_breaks_can_be_made_harmless():
    said, heard = ["the car\rstops", "a van"], [["the car stops"], ["a van"]]
    assert caption_scores(said, heard)["Bleu_1"] < 0.7
    assert caption_scores(said, heard, line_breaks="space")["Bleu_1"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("said", "heard", "reason"),
    [
        ([], [], "0 captions"),
        (["a"], [["a"], ["b"]], "1 captions against 2"),
        (["a", "b"], [["a"], []], "item 1 has no reference"),
        (["a"], ["a"], "item 0 has a string"),
    ],
)
def test_wrong_input_is_named(said, heard, reason):
    with pytest.raises(ValueError, match=reason):
        caption_scores(said, heard)
