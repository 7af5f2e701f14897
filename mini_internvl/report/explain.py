"""One sentence for each metric, so that a page can be read without knowing the field's abbreviations.

A benchmark's own ``METRICS`` (metric name, or its last part -> sentence; optional) goes before the table here.
"""

from __future__ import annotations

import re

from mini_internvl.report.folders import Result

_SENTENCES = {
    r"accuracy": "Per cent of questions answered right, by the benchmark's own rule.",
    r"accuracy_all": "Accuracy over every question, also of the types that the primary metric leaves out.",
    r"mean": "The kinds' percentages of right answers, averaged: each kind weighs alike.",
    r"anls": "Average normalized Levenshtein similarity: 100 for the reference's very text, less for each differing "
    "character, 0 where more than half differs.",
    r"CIDEr": "Word sequences shared with the reference, rare ones weighing more. 0 is none; it may exceed 100.",
    r"B(?:leu_)?[1-4]": "BLEU-N: the share of the answer's sequences of up to N words that the reference has; short "
    "answers are penalised.",
    r"ROUGE(?:_L)?": "ROUGE-L: the longest common word sequence with the reference, recall and precision in one.",
    r"RMSE": "Root mean squared error, in the signal's unit; a few large errors weigh much.",
    r"A[\d.]+": "Per cent of answers nearer to the reference than the number, in the signal's unit.",
    r"mean_iou": "Overlap of the answered and the reference box (intersection over union), averaged; no box counts 0.",
    r"human": "Accuracy on the questions that people wrote.",
    r"augmented": "Accuracy on the questions that a program wrote.",
    r"score": "Points: one for each question answered right.",
    r"share": "Per cent of all questions answered right.",
    r"final": "The challenge's weighted sum of accuracy, language, match and the judge's marks, from 0 to 1.",
    r"language": "Mean of BLEU-1 to BLEU-4, ROUGE-L and CIDEr, as the challenge weighs them.",
    r"match|distance|gpt|chatgpt": "Answered coordinates close to the reference's, and the judge's marks.",
    r"recall": "Per cent of the right options that were chosen, where several are right.",
    r"prefetch_rate": "Per cent of answers that rules could read, so that no judge was asked.",
}
_PARTS = "The primary metric over the part of the items that the row names."


def explain(result: Result) -> list[tuple[str, str]]:
    """(metric, sentence) for the metrics of a result, each once; parts of the items share one last line."""
    own = getattr(result.module, "METRICS", {})
    names: dict[str, dict[str, None]] = {}
    others = {}
    for metric in result.values:
        name = metric.rpartition("/")[2]
        usual = (s for pattern, s in _SENTENCES.items() if re.fullmatch(pattern, name, re.IGNORECASE))
        sentence = own.get(metric) or own.get(name) or next(usual, "")
        if sentence:
            names.setdefault(sentence, {})[name] = None
        else:
            others = {_PARTS: {"other rows": None}}
    return [(", ".join(found), sentence) for sentence, found in {**names, **others}.items()]
