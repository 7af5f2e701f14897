"""Averages over several benchmarks: the Mini-InternVL table's, and the OpenVLM leaderboard's.

Both are plain means of percentages in which OCRBench's points count a tenth, and a missing benchmark leaves the sum and
the count. No official code exists for either: the first reproduces the averages printed in the Mini-InternVL
README; the leaderboard's list of eight is from general knowledge, so take its value as advice.
"""

from __future__ import annotations

from collections.abc import Mapping

MINI_INTERNVL = ("MMMU", "MathVista", "AI2D", "ChartQA", "DocVQA", "InfoVQA", "OCRBench", "MMB-EN", "MMB-CN")
"""Columns of the paper's general table."""
LEADERBOARD = ("MMBench_V11", "MMStar", "MMMU_VAL", "MathVista", "OCRBench", "AI2D", "HallusionBench", "MMVet")
"""Columns of the OpenVLM leaderboard's average."""
INTERNVL2_76B: Mapping[str, float] = {
    "MMMU": 58.2,
    "MathVista": 65.5,
    "AI2D": 87.6,
    "ChartQA": 88.4,
    "DocVQA": 94.1,
    "InfoVQA": 82.0,
    "OCRBench": 839,
    "MMB-EN": 86.5,
    "MMB-CN": 86.3,
}
"""Printed row of InternVL2-Llama3-76B, to which the paper compares."""


def mini_internvl_average(values: Mapping[str, float | None]) -> float | None:
    """Mean of the nine columns of :data:`MINI_INTERNVL` that are there; ``None`` when none is."""
    return _average(values, MINI_INTERNVL)


def leaderboard_average(values: Mapping[str, float | None]) -> float | None:
    """Mean of the eight columns of :data:`LEADERBOARD` that are there; ``None`` when none is."""
    return _average(values, LEADERBOARD)


def share_of_76b(average: float) -> float:
    """The average in per cent of InternVL2-Llama3-76B's, not rounded before."""
    whole = mini_internvl_average(INTERNVL2_76B)
    assert whole is not None
    return average / whole * 100


def _average(values: Mapping[str, float | None], names: tuple[str, ...]) -> float | None:
    total, count = 0.0, 0
    for name in names:
        value = values.get(name)
        if value is not None:
            total += value / 10 if name == "OCRBench" else value
            count += 1
    return total / count if count else None
