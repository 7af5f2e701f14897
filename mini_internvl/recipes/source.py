"""Where the samples of a stage come from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mini_internvl import plugins
from mini_internvl.recipes.fields import MAY_CHANGE, RecipeError


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One source of training samples."""

    kind: str
    """``rows`` (a file of rows, a folder of such files, or InternVL's meta JSON; ``jsonl`` means the same), ``synth``
    (drawn on the fly), ``domain`` (a folder of raw records), ``pictures`` (a folder of pictures, for a student alone),
    or the name or path of a row format."""
    name: str = ""
    """Synth kind, or domain name or path."""
    path: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """File or folder of rows, or folder of a domain's raw records."""
    format: str = ""
    """Name or path of the rows' format; left out, each row's keys tell it."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources of the stage."""
    seed: int = 0
    """Seed of a synth source."""
    split: str = "train"
    """Split of a synth or domain source."""
    independent: bool = False
    """Whether the questions of a sample stand alone with its images, as those of most question-answering sets do;
    drawn samples say so themselves."""

    def __post_init__(self) -> None:
        try:
            if self.kind not in ("rows", "jsonl", "synth", "domain", "pictures"):
                plugins.find("data.formats", self.kind)
            if self.format:
                plugins.find("data.formats", self.format)
        except ValueError as error:
            raise RecipeError(
                f"data.kind or format: {error}; a kind may also be rows, synth, domain or pictures"
            ) from None
        if self.weight <= 0:
            raise RecipeError(
                f"data.weight of {self.kind} {self.name or self.path} is {self.weight}; it must be above 0"
            )
        if self.kind in ("synth", "pictures") and (self.independent or self.format):
            raise RecipeError("data.independent and data.format are of rows; drawn samples say so themselves")
        needed = "name" if self.kind in ("synth", "domain") else "path"
        if not getattr(self, needed):
            raise RecipeError(f"data: a {self.kind} source needs a {needed}")
