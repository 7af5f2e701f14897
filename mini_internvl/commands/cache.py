"""``minivl cache``: models that the hub's cache holds, with their size; any of them works with --offline."""

from __future__ import annotations

import typer

from mini_internvl.commands._options import AsJson, echo_json

EXAMPLE = "minivl cache"


def command(json: AsJson = False) -> None:
    """List the models in the hub's cache with their sizes; any of them works with --offline."""
    from mini_internvl.engine.hub import cached

    rows = cached()
    if json:
        echo_json([{"name": name, "folder": str(folder), "bytes": size} for name, folder, size in rows])
        return
    for name, folder, size in rows:
        typer.echo(f"{name}  {size / 1e9:.2f} GB  {folder}")
    if not rows:
        typer.echo("the cache is empty; any command with --model ORG/NAME fetches a model")
