"""``minivl adapt --sweep``: one adaptation for each ratio of general to domain samples, what each learned and forgot.

The folder of a sweep::

    ratio-0.25/      the adaptation at that ratio, a run folder like any other
    answers.sqlite   the answers of all
    sweep.json  sweep.svg

The same command goes on where it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mini_internvl import report as reports
from mini_internvl.adapt import AdaptConfig
from mini_internvl.adapt.general import FOLDER, META
from mini_internvl.commands._trade_off import RULE, Point, best_of, mean, picture, print_table
from mini_internvl.files import write_json, write_text
from mini_internvl.report.folders import Result

RESULT, PICTURE, ANSWERS = "sweep.json", "sweep.svg", "answers.sqlite"
Adapt = Callable[[AdaptConfig], None]


def parse_ratios(text: str) -> list[float]:
    """ "0,0.25,1" or "r=0,0.25,1" -> numbers of six digits, ascending, each once; ValueError names what is none."""
    try:
        ratios = sorted({float(f"{float(part):g}") for part in text.removeprefix("r=").split(",")})
    except ValueError:
        raise ValueError(f'"{text}" is no list of numbers; give ratios such as 0,0.25,0.5,1') from None
    for ratio in ratios:
        if not 0 <= ratio < math.inf:
            raise ValueError(f"the ratio {ratio:g} is no number from 0; it is general to domain samples")
    return ratios


def sweep(config: AdaptConfig, ratios: Sequence[float], adapt: Adapt) -> dict[str, Any]:
    """Adapt at every ratio, write table and picture; returns the content of sweep.json.

    Records that the domain builds are built once, original files of general data are converted once, and answers of the
    base are asked for once. ``adapt`` runs one adaptation; its errors end the sweep.
    """
    folder = config.output
    data, general = config.data, config.general
    for ratio in ratios:
        output = folder / f"ratio-{ratio:g}"
        adapt(replace(config, output=output, ratio=ratio, data=data, general=general, answers=folder / ANSWERS))
        data = data or output / "data"
        if (meta := output / FOLDER / META).is_file():
            general = str(meta)
    parts = [reports.read_parts(folder / f"ratio-{ratio:g}") for ratio in ratios]
    probe = parts[0].facts["probe"]
    points = [_point(one.results, probe, setting=ratio) for ratio, one in zip(ratios, parts, strict=True)]
    best = best_of(points)
    every = [_point(parts[0].base or (), probe, name="base"), *points]
    content = {
        "domain": parts[0].facts["domain"],
        "title": parts[0].facts["title"],
        "metrics": {result.benchmark: result.primary_metric for result in parts[0].results},
        "probe": list(probe),
        "points": [point.facts("ratio") for point in every],
        "rule": RULE,
        "best": {"ratio": best.setting, "folder": str(folder / f"ratio-{best.setting:g}")},
        "picture": str(folder / PICTURE),
    }
    write_json(folder / RESULT, content)
    title = "General to domain samples, and the base"
    write_text(folder / PICTURE, picture(every, best, title=title, setting="ratio"))
    return content


def print_sweep(content: Mapping[str, Any]) -> None:
    """One table: a line for the base and each ratio, a column for each benchmark."""
    points = [
        Point(
            setting=one.get("ratio", 0.0),
            values=one["values"],
            domain=one["domain"],
            general=one["general"],
            name=one.get("name", ""),
        )
        for one in content["points"]
    ]
    print_table(content["title"], "ratio", points, best_of(points), content["metrics"])


def _point(results: Sequence[Result], probe: Sequence[str], *, setting: float = 0.0, name: str = "") -> Point:
    values = {result.benchmark: result.values.get(result.primary_metric, math.nan) for result in results}
    largest = {result.benchmark: result.largest for result in results}
    learned = mean(values, {benchmark: most for benchmark, most in largest.items() if benchmark not in probe})
    assert learned is not None, "an adaptation has a benchmark of its domain"
    kept = mean(values, {benchmark: most for benchmark, most in largest.items() if benchmark in probe})
    return Point(setting=setting, values=values, domain=learned, general=kept, name=name)
