"""``minivl build``: a starting point for training from an InternViT and a plain language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_internvl.commands._options import AsJson, echo_facts
from mini_internvl.engine import hub
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.sizes import count_parameters
from mini_internvl.train.build import join_parts

EXAMPLE = "minivl build --vision InternViT-300M-448px --llm Qwen2-0.5B-Instruct checkpoints/start"


def command(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    vision: Annotated[
        str, typer.Option(help="InternViT, a whole model (its encoder is taken) or CLIP: folder or hub id.")
    ],
    llm: Annotated[str, typer.Option(help="Qwen2, Qwen3, InternLM2 or Phi-3 in its plain form: folder or hub id.")],
    template: Annotated[str | None, typer.Option(help="Chat template; the language model's own when left out.")] = None,
    max_tiles: Annotated[int, typer.Option(help="Most tiles of an image, thumbnail not counted.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the projector and the new embedding rows.")] = 0,
    json: AsJson = False,
) -> None:
    """Assemble a starting checkpoint for training: an InternViT, a plain language model and a fresh projector."""
    folder = join_parts(
        hub.resolve(vision), hub.resolve(llm), output, template=template, seed=seed, max_tiles=max_tiles
    )
    config = read_config(folder)
    facts = {
        "checkpoint": str(folder),
        "language model kind": config.llm.architecture,
        "template": config.template,
        "vocabulary": config.llm.vocab_size,
        "id of <IMG_CONTEXT>": config.image_token_id,
        "total": count_parameters(config)["total"],
    }
    echo_facts(facts, as_json=json)
