"""Charts of real tables: values, extremes, comparisons, counts, titles and colours."""

from __future__ import annotations

import random

from PIL import Image

from .. import canvas, fonts, plots, tables
from ..base import QA, Annotated, wordings

ASK = wordings("charts")

SIZES = ((224, 224, 6), (224, 112, 3), (336, 224, 1))
STYLES = {"bars": 4, "rows": 3, "line": 3, "pie": 2, "table": 2}
TYPE = {"bars": "bar chart", "rows": "bar chart", "line": "line chart", "pie": "pie chart", "table": "table"}
ITEM = {"bars": "bar", "rows": "bar", "line": "point", "pie": "slice", "table": "row"}
PALETTE = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "gray", "cyan")


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


def _value(rng: random.Random, plot: plots.Plot, i: int) -> QA:
    return QA(rng.choice(ASK["value"]).format(plot.labels[i]), plot.shown[i], "value")


def _whose(rng: random.Random, plot: plots.Plot, i: int, item: str) -> list[QA]:
    """Whose value it is, if only one part has it."""
    shown = plot.shown[i]
    if plot.shown.count(shown) > 1:
        return []
    return [QA(rng.choice(ASK["whose"]).format(item, shown), plot.labels[i], "whose")]


def _colour(rng: random.Random, plot: plots.Plot, i: int, item: str) -> QA:
    return QA(rng.choice(ASK["colour"]).format(item, plot.labels[i]), plot.colours[i], "colour")


def questions(rng: random.Random, plot: plots.Plot, style: str) -> list[QA]:
    """Questions that the pixels answer: exact values only where they are printed, comparisons only where visible."""
    item, whole = ITEM[style], "table" if style == "table" else "chart"
    values, labels, indices = plot.values, plot.labels, range(len(plot.values))
    order = sorted(indices, key=lambda i: values[i])
    (lowest, low), (high, highest) = order[:2], order[-2:]
    extent = max(values) - (0 if style in ("bars", "rows") and min(values) >= 0 else min(values))
    visible = max(extent * 0.04, 1e-9)
    made = [
        QA(rng.choice(ASK["title"]).format(whole), plot.title, "title"),
        QA(rng.choice(ASK["kind"]), TYPE[style], "type"),
        QA(rng.choice(ASK["count"]).format(item, whole), str(len(values)), "count"),
    ]
    for task, extreme, nearest in (("highest", highest, high), ("lowest", lowest, low)):
        if abs(values[extreme] - values[nearest]) >= visible:
            made += [QA(rng.choice(ASK[task]).format(item), labels[extreme], task)] * 2
    first, second = rng.sample(indices, 2)
    if abs(values[first] - values[second]) >= visible:
        question = rng.choice(ASK["greater"]).format(labels[first], labels[second])
        made += [QA(question, "Yes" if values[first] > values[second] else "No", "compare")] * 2
    if len(set(plot.colours)) > 1:
        made += [_colour(rng, plot, i, item) for i in rng.sample(indices, 2)]
    if plot.printed:
        made += [_value(rng, plot, i) for i in rng.sample(indices, 3)]
        made += _whose(rng, plot, rng.choice(indices), item)
    return made


def draw_annotated(rng: random.Random, split: str) -> Annotated:
    """A chart near 224 x 112, 224 x 224 or 336 x 224 pixels with its questions, and what stands where in it."""
    while True:
        style = rng.choices([*STYLES], weights=[*STYLES.values()])[0]
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
    for i in range(len(plot.labels)):
        if plot.printed:
            made += [_value(rng, plot, i), *_whose(rng, plot, i, item)]
        if len(set(plot.colours)) > 1:
            made.append(_colour(rng, plot, i, item))
    return made


def listing(rng: random.Random, plot: plots.Plot) -> QA:
    """All labels in order, with their values where they are printed: much to learn from for one question."""
    parts = [f"{label}: {shown}" for label, shown in zip(plot.labels, plot.shown, strict=True)]
    wording, answer = ("values", parts) if plot.printed else ("labels", plot.labels)
    return QA(rng.choice(ASK[wording]), "; ".join(answer), "data", main=False)
