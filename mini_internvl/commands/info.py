"""``minivl info``: sizes and settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mini_internvl.commands._options import AsJson, Model, echo_facts
from mini_internvl.engine.hub import base_folder, resolve
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.tiles import TileConfig, count_tiles, shares_shown
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import count_parameters, official_config

EXAMPLE = "minivl info --size 1B"


def command(
    size: Annotated[
        str | None, typer.Option(help="A released size: 1B, 2B, 4B, or of a later generation 2.5-1B, 3-2B, 3.5-4B...")
    ] = None,
    model: Model = None,
    image: Annotated[str | None, typer.Option(help="Image: its tiles, tokens, and what one tile would lose.")] = None,
    json: AsJson = False,
) -> None:
    """Show the parameters and settings of a size or a checkpoint, without allocating its weights."""
    echo_facts({**describe(size, model), **(describe_image(size, model, image) if image else {})}, as_json=json)


def describe(size: str | None, model: str | None) -> dict[str, Any]:
    """Counted on shapes alone: no weight is allocated or read."""
    config, name = _config(size, model)
    counts = count_parameters(config)
    return {
        "model": name,
        "vision encoder": counts["vision"],
        "projector": counts["projector"],
        **({"router": counts["router"]} if config.flash else {}),
        "language model": counts["llm"],
        "total": counts["total"],
        "language model kind": config.llm.architecture,
        "template": config.template,
        "tile": f"{config.image_size} px, {config.tokens_per_tile} tokens"
        + (f", or {config.short_tokens} by its router" if config.flash else ""),
        "tiles of an image": f"{config.min_tiles} to {config.max_tiles}"
        + (", then a thumbnail" if config.use_thumbnail else ""),
        "vocabulary": config.llm.vocab_size,
    }


def describe_image(size: str | None, model: str | None, image: str) -> dict[str, Any]:
    """How a model sees an image, from the image's header alone, and what it would see in one tile."""
    config, _ = _config(size, model)
    width, height = image_dimensions(image)
    tiles = TileConfig(
        image_size=config.image_size,
        min_tiles=config.min_tiles,
        max_tiles=config.max_tiles,
        use_thumbnail=config.use_thumbnail,
    )
    columns, rows = tiles.grid(width, height)
    count = count_tiles(width, height, tiles)
    shown, one = shares_shown(width, height, tiles)
    return {
        "image": f"{width} x {height}",
        "grid": f"{columns} x {rows}" + (", then a thumbnail" if count > columns * rows else ""),
        "visual tokens": count * config.tokens_per_tile,
        "pixels shown": f"{100 * shown:.0f} %",
        "in one fixed tile": f"{config.tokens_per_tile} tokens, {100 * one:.0f} % of the pixels: "
        + (f"{100 * (1 - one / shown):.0f} % of what the grid shows is lost" if one < shown else "nothing is lost"),
    }


def _config(size: str | None, model: str | None) -> tuple[VLMConfig, str]:
    """Configuration and name of a size, or of a folder or hub id."""
    if size and model:
        raise ValueError("give either --size or --model")
    if size:
        return VLMConfig.from_official(official_config(size)), size
    return read_config(base_folder(resolve(model))), model or "nano"
