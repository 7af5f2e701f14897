"""The report of an adaptation: ``adapt.json`` and ``metrics.jsonl`` of a run folder -> one HTML file.

Everything is inside the file: style, charts and pictures. It names no domain: columns, groups and clips come from
``adapt.json``, so a new domain needs nothing here.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.report import svg

NEEDED = ("title", "model", "benchmarks", "columns", "general", "clips", "recipe", "data")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the score table."""

    group: str
    """For instance "Description" or "Speed"."""
    label: str
    """For instance "CIDEr"."""
    base: float
    """Before."""
    adapted: float
    """After."""
    higher_is_better: bool
    """Direction."""

    @property
    def better(self) -> bool | None:
        """Whether the adapted value is better; ``None`` when both are equal."""
        if self.base == self.adapted:
            return None
        return (self.adapted > self.base) == self.higher_is_better


def rows(data: Mapping[str, Any]) -> list[Row]:
    """The score table in the order of ``columns``; figures that a model has no value for are left out."""
    table = []
    for column in data["columns"]:
        sides = data["benchmarks"][column["benchmark"]]
        values = [sides[side]["values"].get(column["key"]) for side in ("base", "adapted")]
        if None not in values:
            table.append(
                Row(
                    group=column["group"],
                    label=column["label"],
                    base=float(values[0]),
                    adapted=float(values[1]),
                    higher_is_better=column["higher_is_better"],
                )
            )
    return table


def verdict(data: Mapping[str, Any]) -> str:
    """The result in two plain sentences."""
    table = rows(data)
    better = sum(row.better is True for row in table)
    worse = [f"{row.group} {row.label}" for row in table if row.better is False]
    text = f"The adapted model is better than the base on {better} of {len(table)} figures"
    text += f"; worse on {', '.join(worse)}. " if worse else ". "
    before, after = data["general"]["mean"]["base"], data["general"]["mean"]["adapted"]
    change = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
    return text + f"General ability went from {before:.1f} to {after:.1f} % right{change}."


def build(run: str | Path) -> Path:
    """Write ``report.html`` into the run folder.

    Raises:
        ValueError: ``adapt.json`` is missing, broken or lacks a key (named).
    """
    run = Path(run)
    data = _read(run / "adapt.json")
    page = _environment().get_template("adaptation.html").render(
        data=data,
        verdict=verdict(data),
        groups=_grouped(rows(data)),
        charts=_charts(run),
        clips=[_clip(clip, run) for clip in data["clips"]],
        recipe=json.dumps(data["recipe"], indent=1, ensure_ascii=False),
        seconds=data.get("seconds", {}),
    )
    path = run / "report.html"
    temporary = path.with_name("report.html.new")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError:
        raise ValueError('the report needs jinja2: pip install "mini-internvl[report]"') from None
    return Environment(
        loader=PackageLoader("mini_internvl.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a finished adaptation?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); run the adaptation again") from None
    missing = [key for key in NEEDED if key not in data]
    if missing:
        raise ValueError(f'{path} has no "{missing[0]}"; run the adaptation again')
    return data


def _grouped(table: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(row.group, []).append(row)
    return list(groups.items())


def _charts(run: Path) -> list[dict[str, str]]:
    """Loss, the measurements made while training, and the learning rate."""
    path = next((p for p in (run / "train" / "metrics.jsonl", run / "metrics.jsonl") if p.exists()), None)
    if path is None:
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]

    known = {"stage", "step", "loss", "lr", "grad_norm", "tokens_per_s", "held_out_loss", "score"}
    measured = sorted({key for line in lines for key in line} - known)
    wanted = [
        ("Loss", [("training", points("loss")), ("held out", points("held_out_loss"))]),
        *((f"Validation: {key.replace('_', ' ')}", [(key, points(key))]) for key in measured),
        ("Learning rate", [("learning rate", points("lr"))]),
    ]
    charts = []
    for title, series in wanted:
        drawn = svg.line_chart(title, "step", series)
        if drawn:
            charts.append({"title": title, "svg": drawn, "names": [n for n, p in series if p] if len(series) > 1 else []})
    return charts  # type: ignore[return-value]


def _clip(clip: Mapping[str, Any], run: Path) -> dict[str, Any]:
    frames = [_picture(run / frame) for frame in clip["frames"]]
    return {"id": clip["id"], "frames": frames, "questions": clip["questions"]}


def _picture(path: Path) -> str:
    """A picture as a data URL, small enough for a page."""
    from PIL import Image

    try:
        image = Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"the frame {path} cannot be read ({error})") from None
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
