"""Published scores: the tables of the Mini-InternVL 2.0 paper, as printed, each row with its source.

Values stand as the sources print them: DriveLM's final score and accuracy as shares, OCRBench of 1000, all else per
cent, except CIDEr (times 100) and RMSE (m/s, degrees). Averages that follow from other columns are not stored;
:mod:`mini_internvl.evaluate.tables` computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mini_internvl.metrics.average import INTERNVL2_76B, MINI_INTERNVL

PAPER = "arXiv 2410.16261"
README = "OpenGVLab/InternVL, internvl_chat/shell/mini_internvl/README.md"
BLOG = "internvl.github.io/blog/2024-10-21-Mini-InternVL-2.0"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed row."""

    model: str
    values: tuple[float | None, ...]  # in the order of the table's columns; ``None`` where the source prints a dash
    source: str


def _rows(source: str, rows: Mapping[str, Sequence[float | None]]) -> tuple[Published, ...]:
    return tuple(Published(model=model, values=tuple(values), source=source) for model, values in rows.items())


# MMMU, MathVista, AI2D, ChartQA, DocVQA, InfoVQA, OCRBench, MMB-EN, MMB-CN, OpenCompass' own average of eight.
GENERAL = _rows(
    f"{PAPER} Table 2; {README}; {BLOG}",
    {
        "Claude3.5-Sonnet": (65.9, 67.7, 94.7, 90.8, 95.2, None, 788, 79.7, 80.7, 67.9),
        "InternVL2-Llama3-76B": (*(INTERNVL2_76B[name] for name in MINI_INTERNVL), 71.0),
        "Mini-InternVL-1B": (36.7, 37.7, 64.1, 72.9, 81.7, 50.9, 754, 65.4, 60.7, 48.3),
        "Mini-InternVL-2B": (36.3, 46.3, 74.1, 76.2, 86.9, 58.9, 784, 73.2, 70.9, 54.0),
        "Mini-InternVL-4B": (48.3, 58.6, 78.9, 81.5, 89.2, 67.0, 788, 78.6, 73.9, 60.6),
    },
)

# RSVQA-LR rural/urban, presence, comparison, average; HR test 1 and test 2 presence, comparison, average; DIOR-RSVG.
REMOTE = _rows(
    f"{PAPER}, remote sensing tables",
    {
        "Mini-InternVL-4B": (66.00, 64.64, 73.26, 69.55, 62.42, 79.20, 71.72, 65.73, 79.70, 73.55, 16.89),
        "Mini-InternVL-DA-1B": (95.00, 81.39, 91.6, 87.37, 92.24, 91.76, 91.98, 89.38, 90.91, 90.24, 89.73),
        "Mini-InternVL-DA-2B": (93.00, 87.07, 91.85, 89.87, 92.33, 92.21, 92.27, 89.60, 90.86, 90.30, 89.24),
        "Mini-InternVL-DA-4B": (92.00, 85.69, 92.18, 89.46, 92.42, 92.12, 92.25, 89.25, 90.92, 90.18, 92.04),
    },
)

# Contour level, mask level, image level, box level, multi-answer accuracy and recall.
MEDICAL = _rows(
    f"{PAPER}, GMAI-MMBench table",
    {
        "Mini-InternVL-1B": (34.30, 34.55, 36.02, 24.08, 21.67, 8.57),
        "Mini-InternVL-2B": (35.33, 35.61, 38.08, 25.31, 43.52, 16.13),
        "Mini-InternVL-4B": (36.60, 36.99, 38.74, 26.01, 43.99, 16.25),
        "Mini-InternVL-DA-1B": (38.67, 39.44, 35.87, 23.09, 22.79, 8.99),
        "Mini-InternVL-DA-2B": (40.22, 39.46, 39.34, 25.59, 44.33, 16.20),
        "Mini-InternVL-DA-4B": (41.41, 40.45, 41.34, 24.84, 44.33, 16.59),
    },
)

# CIDEr, BLEU-4 and ROUGE-L of description, justification and full.
BDDX_TEXT = _rows(
    f"{PAPER}, BDD-X tables",
    {
        "Mini-InternVL-DA-1B": (223.85, 34.17, 62.11, 95.52, 9.70, 32.58, 83.72, 16.78, 44.29),
        "Mini-InternVL-DA-2B": (242.14, 35.77, 63.03, 105.06, 10.63, 32.46, 98.47, 18.05, 44.52),
        "Mini-InternVL-DA-4B": (237.41, 35.94, 63.67, 104.62, 9.51, 32.23, 97.42, 17.70, 44.98),
    },
)

# RMSE, A0.1, A0.5, A1.0, A5.0 of speed, then of the turning angle.
BDDX_SIGNALS = _rows(
    f"{PAPER}, BDD-X tables",
    {
        "Mini-InternVL-DA-1B": (1.28, 29.44, 60.38, 79.34, 98.67, 9.45, 59.34, 73.54, 80.28, 92.76),
        "Mini-InternVL-DA-2B": (1.26, 27.96, 59.23, 80.06, 98.78, 9.52, 57.40, 72.54, 80.06, 92.04),
        "Mini-InternVL-DA-4B": (1.31, 28.84, 60.94, 78.78, 98.61, 9.46, 59.12, 73.15, 80.17, 92.65),
    },
)

# Final score, accuracy, GPT score, match.
DRIVELM = _rows(
    f"{PAPER}, DriveLM table",
    {
        "Mini-InternVL-4B": (0.3051, None, None, None),
        "Mini-InternVL-DA-1B": (0.5686, 0.7007, 63.84, 39.76),
        "Mini-InternVL-DA-2B": (0.5958, 0.7628, 65.23, 43.24),
        "Mini-InternVL-DA-4B": (0.5821, 0.7296, 63.97, 42.16),
    },
)
