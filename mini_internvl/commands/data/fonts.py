"""``minivl data fonts``: names of the Debian font packages that nano's training used."""

from __future__ import annotations

import typer

EXAMPLE = "sudo apt-get install $(minivl data fonts)"


def command() -> None:
    """Print the names of the Debian font packages that nano's training used."""
    from mini_internvl.synth.fonts import FONT_PACKAGES

    typer.echo(" ".join(FONT_PACKAGES))
