"""What the medical question sets share: closed and open questions, their prompt and their metrics.

A closed question has a few known answers (yes, no, one of two sides), an open one any. Both ask for a word or phrase.
The accuracy counts the same words (``metrics/short_answers.py``), which is hard on open questions: so their recall,
the share of the gold's words that the answer holds, stands beside it. By definition: the papers of these sets score
classifiers over fixed answers, and later ones differ in how they clean a text.
"""

from __future__ import annotations

from collections.abc import Callable

from mini_internvl.benchmarks import _vqa
from mini_internvl.benchmarks._questions import Question
from mini_internvl.benchmarks._tally import Asked, Judge, Tally, empty_answers, with_answers
from mini_internvl.metrics.short_answers import same_words, word_recall
from mini_internvl.records import Item, Score

PROTOCOLS = {
    "words": "The same words, whatever their case and the punctuation at their ends; recall for open questions."
}
PRIMARY_METRIC = "accuracy"
NEW_TOKENS = 50
CHINESE = "请用一个词或短语回答问题。"


def question(name: str, image: str | bytes, text: str, answer: str, *, closed: bool, **labels: str) -> Question:
    """A question with its prompt; ``labels`` are groups of metrics, such as ``language="zh"``."""
    prompt = f"{text}\n{CHINESE}" if labels.get("language") == "zh" else _vqa.short_question(text, vlmevalkit=True)
    kept = {group: label for group, label in labels.items() if label}
    reference = {"answer": answer, "question": text, "kind": "closed" if closed else "open", "labels": kept}
    return Question(id=name, image=image, prompt=prompt, answer=answer, reference=reference)


def right(item: Item, text: str, protocol: str = "words") -> bool:
    """Whether the answer says the gold one's words."""
    return same_words(text, item.reference["answer"])


def make_score(benchmark: str) -> Callable[..., Score]:
    """``accuracy`` over all, ``closed/accuracy``, ``open/accuracy``, ``open/recall``, and one for each label."""

    @with_answers(PROTOCOLS)
    def score(asked: Asked, protocol: str, judge: Judge | None) -> Score:
        """Shares of right answers, and of the gold's words in open ones, in per cent; no judge is needed."""
        tally = Tally("accuracy")
        for item, text in asked:
            kind, labels = item.reference["kind"], item.reference["labels"].items()
            groups = [f"{group}/{label}" for group, label in labels]
            tally.add(right(item, text), "accuracy", f"{kind}/accuracy", *groups)
            if kind == "open":
                tally.add(word_recall(text, item.reference["answer"]), "open/recall")
        return tally.score(benchmark, items=len(asked), notes=empty_answers(asked))

    return score
