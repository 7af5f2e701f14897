"""The benchmarks: one file each, found by its name.

A benchmark file knows the official files, the prompt and the scoring; it never knows a model. It has::

    TITLE            the benchmark's name in print.
    SPLITS           names of its splits, the default first.
    UNSCORED         splits whose answers are not published (optional); they are exported, not scored.
    PROTOCOLS        name -> one sentence, the paper's first; they differ in prompt or in scoring.
    items(root, split=None, *, protocol=None) -> Iterator[Item]
                     the questions of a split, one Item each with the full prompt, tile limit and answer limit. ``root``
                     is the data folder; the files lie in ``root/NAME`` or directly in ``root``.
                     ``Item.reference`` is plain JSON data; ``Item.target`` names the number or class that is asked for,
                     where a model's head may say it. Raises DataError, which lists what is wrong with the
                     files, each with its row.
    score(items, predictions, *, protocol=None, judge=None) -> Score
                     metrics in the unit that papers print, with standard errors (made by ``_tally.scorer`` where they
                     are shares of right answers). An item without a prediction counts
                     as answered with nothing; predictions for other items are ignored. Metric names are "metric" or
                     "group/metric". Without a judge that the protocol needs, ``Score.partial`` says what is missing.
    right(item, text, protocol="paper") -> bool
                     whether one answer alone counts as right without a judge, for lists of examples; score() does not
                     use it where the benchmark's metrics are graded or taken over several items. ``protocol`` may be
                     left out where all protocols score alike.
    export(items, predictions, folder) -> list[Path]
                     files for the benchmark's server, in its own format (where UNSCORED names a split).
    together(item) -> str
                     names the items that a metric is taken over together, so that a sample takes or leaves them
                     together (optional; without it every item stands alone).
    boxes(item, text) -> (true boxes, answered boxes)
                     left, top, right, bottom as shares of the image, for drawing (optional).
    PRIMARY_METRIC         the name of the one metric that stands for the benchmark.
    PRIMARY_METRIC_MAX     its largest value, where that is not 100 (optional).
    UNJUDGED_METRIC        what stands for it where the primary metric is missing for want of a judge (optional).
    UNJUDGED_METRIC_MAX    its largest value, where that is not 100 (optional).
    LOWER_IS_BETTER  names of the metrics where less is better (optional).
    EXAMPLE          a worked example (``_example.WorkedExample``): official files in small, with good and bad answers.
                     A benchmark that draws its items has ``None``.

Modules whose name begins with an underscore are helpers, not benchmarks.
"""

CONTRACT = ("TITLE", "SPLITS", "PROTOCOLS", "items", "score", "right", "PRIMARY_METRIC")
