"""Charts of real tables: values, extremes, comparisons, counts, titles and colours."""

from __future__ import annotations

import random

from PIL import Image

from .. import canvas, fonts, plots, tables
from ..base import QA, Annotated

SIZES = ((224, 224, 6), (224, 112, 3), (336, 224, 1))
STYLES = (("bars", 4), ("rows", 3), ("line", 3), ("pie", 2), ("table", 2))
TYPE = {"bars": "bar chart", "rows": "bar chart", "line": "line chart", "pie": "pie chart", "table": "table"}
ITEM = {"bars": "bar", "rows": "bar", "line": "point", "pie": "slice", "table": "row"}
PALETTE = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "gray", "cyan")

VALUE = ("What is the value of {0}?", "What is the value for {0}?", "How much is {0}?", "Read the value of {0}.",
         "Which number is shown for {0}?", "What value does {0} have?", "{0}: what is the value?")  # fmt: skip
HIGHEST = ("Which {0} is the highest?", "Which category has the highest value?", "What has the largest value?",
           "Which label has the greatest value?", "Where is the maximum?")  # fmt: skip
LOWEST = ("Which {0} is the lowest?", "Which category has the lowest value?", "What has the smallest value?",
          "Which label has the least value?", "Where is the minimum?")  # fmt: skip
COUNT = ("How many {0}s are there?", "How many {0}s does the {1} have?", "Count the {0}s.",
         "How many {0}s can you see?", "How many categories are shown?")  # fmt: skip
TITLE = ("What is the title?", "What is the title of the {0}?", "Read the title.", "What does the title say?",
         "What is this {0} about?")  # fmt: skip
KIND = ("What kind of chart is this?", "What type of chart is shown?",
        "Is this a bar chart, a line chart, a pie chart or a table?", "What sort of figure is this?",
        "Which type of chart do you see?")  # fmt: skip
GREATER = ("Is {0} greater than {1}?", "Is {0} higher than {1}?", "Is the value of {0} larger than the value of {1}?",
           "Is {0} more than {1}?", "Does {0} have a higher value than {1}?")  # fmt: skip
COLOUR = ("What colour is the {0} of {1}?", "What color is {1}?", "Which colour is {1}?", "What is the colour of {1}?",
          "What is the color of the {0} for {1}?")  # fmt: skip
WHOSE = ("Which {0} has the value {1}?", "What has the value {1}?", "Which category has the value {1}?",
         "Which label belongs to {1}?", "Where is the value {1}?")  # fmt: skip

LABELS = ("Read all labels.", "Which labels are there?", "List the labels.")
VALUES = ("Read all labels and values.", "List all values.", "Write down the data.")


def _rows_of(rng: random.Random, split: str, style: str) -> tuple[tables.Table, list[int]]:
    """A table of the split and the indices of the 3 to 6 rows that the chart shows."""
    groups = [g for g in tables.sources(split) if g]
    while True:
        table = rng.choice(rng.choice(groups))
        if style != "pie" or table.additive:
            break
    wanted = rng.choices((3, 4, 5, 6), weights=(4, 5, 3, 1))[0]
    total = len(table.labels)
    if table.ordered:
        step = rng.choice((1, 1, 2)) if total >= 2 * wanted else 1
        span = min(wanted, (total - 1) // step + 1)
        start = rng.randrange(total - (span - 1) * step)
        return table, [start + i * step for i in range(span)]
    return table, sorted(rng.sample(range(total), min(wanted, total)), key=lambda _: rng.random())


def _plot(rng: random.Random, split: str, style: str) -> plots.Plot:
    """What the chart shows and how."""
    table, picked = _rows_of(rng, split, style)
    values = tuple(table.values[i] for i in picked)
    whole = all(v == int(v) for v in values)
    shown = tuple(f"{v:.0f}" if whole else f"{v:.1f}" for v in values)
    printed = style == "table" or rng.random() < 0.78
    if style == "pie" and rng.random() < 0.4 and sum(values) > 0:
        shown = tuple(f"{100 * v / sum(values):.0f}%" for v in values)
    dark = rng.random() < 0.12
    paper: canvas.RGB = (30, 32, 38) if dark else rng.choice(((255, 255, 255), (250, 248, 240), (240, 244, 248)))
    ink: canvas.RGB = (240, 240, 240) if dark else rng.choice(((0, 0, 0), (20, 20, 40), (50, 30, 20)))
    palette = [c for c in PALETTE if not (dark and c == "brown")]
    if style == "pie" or (style in ("bars", "rows") and rng.random() < 0.55):
        colours = tuple(rng.sample(palette, len(values)))
    else:
        colours = (rng.choice([c for c in palette if c != "yellow"]),) * len(values)
    return plots.Plot(title=table.title, labels=tuple(table.labels[i] for i in picked), values=values, shown=shown,
                      colours=colours, printed=printed, ink=ink, paper=paper, path=fonts.pick(rng, split),
                      tall=rng.choice((9, 10, 11, 12)))  # fmt: skip


def questions(rng: random.Random, plot: plots.Plot, style: str) -> list[QA]:
    """Questions that the pixels answer: exact values only where they are printed, comparisons only where visible."""
    item, whole = ITEM[style], "table" if style == "table" else "chart"
    order = sorted(range(len(plot.values)), key=lambda i: plot.values[i])
    extent = max(plot.values) - (0 if style in ("bars", "rows") and min(plot.values) >= 0 else min(plot.values))
    visible = max(extent * 0.04, 1e-9)
    made = [
        QA(rng.choice(TITLE).format(whole), plot.title, "title"),
        QA(rng.choice(KIND), TYPE[style], "type"),
        QA(rng.choice(COUNT).format(item, whole), str(len(plot.values)), "count"),
    ]
    if plot.values[order[-1]] - plot.values[order[-2]] >= visible:
        made += [QA(rng.choice(HIGHEST).format(item), plot.labels[order[-1]], "highest")] * 2
    if plot.values[order[1]] - plot.values[order[0]] >= visible:
        made += [QA(rng.choice(LOWEST).format(item), plot.labels[order[0]], "lowest")] * 2
    first, second = rng.sample(range(len(plot.values)), 2)
    if abs(plot.values[first] - plot.values[second]) >= visible:
        greater = plot.values[first] > plot.values[second]
        made += [QA(rng.choice(GREATER).format(plot.labels[first], plot.labels[second]), "Yes" if greater else "No",
                    "compare")] * 2  # fmt: skip
    if len(set(plot.colours)) > 1:
        made += [QA(rng.choice(COLOUR).format(item, plot.labels[i]), plot.colours[i], "colour")
                 for i in rng.sample(range(len(plot.labels)), 2)]  # fmt: skip
    if plot.printed:
        made += [QA(rng.choice(VALUE).format(plot.labels[i]), plot.shown[i], "value")
                 for i in rng.sample(range(len(plot.labels)), 3)]  # fmt: skip
        at = rng.randrange(len(plot.labels))
        if plot.shown.count(plot.shown[at]) == 1:
            made.append(QA(rng.choice(WHOSE).format(item, plot.shown[at]), plot.labels[at], "whose"))
    return made


def draw_annotated(rng: random.Random, split: str) -> Annotated:
    """A chart near 224 x 112, 224 x 224 or 336 x 224 pixels with its questions, and what stands where in it."""
    while True:
        style = rng.choices([s for s, _ in STYLES], weights=[w for _, w in STYLES])[0]
        wide, high, _ = rng.choices(SIZES, weights=[s[2] for s in SIZES])[0]
        width, height = wide - rng.randint(0, wide // 20), high - rng.randint(0, high // 20)
        plot = _plot(rng, split, style)
        image = Image.new("RGB", (width, height), plot.paper)
        pen = plots.Pen(image)
        try:
            getattr(plots, style)(rng, pen, plot)
            break
        except plots.TooNarrow:
            continue
    made = questions(rng, plot, style)
    if split == "test":
        return canvas.damage(rng, image, 0.05), made, pen.patch_annotations
    made += questions(rng, plot, style)
    rng.shuffle(made)
    single = reading(rng, ITEM[style], plot)
    distinct = list({qa.question: qa for qa in [*rng.sample(single, min(3, len(single))), *made]}.values())
    return canvas.damage(rng, image, 0.05), [*distinct[: rng.randint(8, 11)], listing(rng, plot)], pen.patch_annotations


def reading(rng: random.Random, item: str, plot: plots.Plot) -> list[QA]:
    """What can be read off each part of the chart: its value, whose value it is, its colour. The hardest questions."""
    made = []
    for label, shown, colour in zip(plot.labels, plot.shown, plot.colours, strict=True):
        if plot.printed:
            made.append(QA(rng.choice(VALUE).format(label), shown, "value"))
        if plot.printed and plot.shown.count(shown) == 1:
            made.append(QA(rng.choice(WHOSE).format(item, shown), label, "whose"))
        if len(set(plot.colours)) > 1:
            made.append(QA(rng.choice(COLOUR).format(item, label), colour, "colour"))
    return made


def listing(rng: random.Random, plot: plots.Plot) -> QA:
    """All labels in order, with their values where they are printed: much to learn from for one question."""
    if plot.printed:
        rows = (f"{label}: {shown}" for label, shown in zip(plot.labels, plot.shown, strict=True))
        return QA(rng.choice(VALUES), "; ".join(rows), "data", main=False)
    return QA(rng.choice(LABELS), "; ".join(plot.labels), "data", main=False)
