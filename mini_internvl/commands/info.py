"""``minivl info``: sizes and settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, Model, echo_facts
from mini_internvl.engine.hub import base_folder, resolve
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import count_parameters, official_config

EXAMPLE = "minivl info --size 1B"


def command(
    size: Annotated[
        str | None, typer.Option(help="A released size: 1B, 2B, 4B, or of a later generation 2.5-1B, 3-2B, 3.5-4B...")
    ] = None,
    model: Model = None,
    json: AsJson = False,
) -> None:
    """Show the parameters and settings of a size or a checkpoint, without allocating its weights."""
    echo_facts(describe(size, model), as_json=json)


def describe(size: str | None, model: str | None) -> dict[str, Any]:
    """Counted on shapes alone: no weight is allocated or read."""
    if size and model:
        raise ValueError("give either --size or --model")
    if size:
        config, name = VLMConfig.from_official(official_config(size)), size
    else:
        folder = base_folder(resolve(model))
        config, name = read_config(folder), model or "nano"
    counts = count_parameters(config)
    return {
        "model": name,
        "vision encoder": counts["vision"],
        "projector": counts["projector"],
        "language model": counts["llm"],
        "total": counts["total"],
        "language model kind": config.llm.architecture,
        "template": config.template,
        "tile": f"{config.image_size} px, {config.tokens_per_tile} tokens",
        "tiles of an image": f"{config.min_tiles} to {config.max_tiles}"
        + (", then a thumbnail" if config.use_thumbnail else ""),
        "vocabulary": config.llm.vocab_size,
    }
