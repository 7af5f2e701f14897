"""Options that say how an answer is drawn, for the commands that answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mini_internvl import GenerationConfig

TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")]
TopK = Annotated[int, typer.Option(help="Sample among this many likeliest tokens; 0 for all.")]
MinP = Annotated[float, typer.Option(help="Sample among tokens at least this likely, as a share of the likeliest.")]
Beams = Annotated[int, typer.Option(help="Answers followed side by side, of which the likeliest is printed.")]
LengthPenalty = Annotated[
    float, typer.Option(help="With --beams: the higher, the longer the answers; 0 compares whole probabilities.")
]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1, tokens that were there become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Seed of sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text at which the answer ends; may be given several times.")]
Choice = Annotated[list[str] | None, typer.Option(help="An answer that is allowed; give the option for each.")]
Regex = Annotated[str | None, typer.Option(help="Regular expression that the whole answer matches.")]
JsonSchema = Annotated[Path | None, typer.Option(metavar="FILE", help="JSON schema that the answer follows.")]


def sampling(
    *, stop: list[str] | None, choice: list[str] | None, regex: str | None, json_schema: Path | None, **settings: Any
) -> GenerationConfig:
    """The settings as the engine takes them; ``settings`` are named as its own. ValueError says what is impossible."""
    from mini_internvl import GenerationConfig
    from mini_internvl.engine import constraints

    forms = {"--choice": choice, "--regex": regex, "--json-schema": json_schema}
    given = [name for name, value in forms.items() if value]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other; give one")
    constraint = None
    if choice:
        constraint = constraints.choice(choice)
    elif regex:
        constraint = constraints.regex(regex)
    elif json_schema:
        try:
            constraint = constraints.json_schema(json_schema.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{json_schema}: {error}") from None
    return GenerationConfig(stop=tuple(stop or ()), constraint=constraint, **settings)
