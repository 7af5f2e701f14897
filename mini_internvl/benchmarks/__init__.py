"""The benchmarks: one file each, found by its name.

A benchmark file knows the questions, their fixed wording and the scoring; it never knows a model. It has exactly::

    items(root: Path, split: str = "test") -> Iterator[Item]
                     the questions in a folder of raw records, one Item each, with the full prompt.
    score(items, predictions) -> Score
                     figures in the unit that papers print. An item without a prediction counts as answered with
                     nothing; predictions for other items are ignored. Figure names are "group/figure".
    right(item, text) -> bool
                     whether one answer alone counts as right, for lists of examples; score() does not use it where
                     the benchmark's figures are graded.
    HEADLINE         the name of the one figure that stands for the benchmark.
    HEADLINE_MAX     its largest value, where that is not 100 (optional).
    LOWER_IS_BETTER  names of the figures where less is better (often empty).
    EXAMPLE          (rows, good, bad): a list of raw rows, and for the items they give, in order, lists of good and bad
                     answers. (A benchmark that draws its items reads no rows; its ``root`` has a default.)

Modules whose name begins with an underscore are helpers, not benchmarks.
"""
