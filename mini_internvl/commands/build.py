"""``minivl build``: a starting point for training from an InternViT and a plain language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_internvl.engine import hub
from mini_internvl.model.checkpoint import read_config
from mini_internvl.model.sizes import count_parameters
from mini_internvl.train.build import join_parts


def run(
    vision: str, llm: str, output: Path, *, template: str | None = None, seed: int = 0, max_tiles: int = 12
) -> dict[str, Any]:
    """Join the parts (folders or hub ids) and sum the result up.

    Raises:
        ValueError: see :func:`mini_internvl.train.build.join_parts`.
    """
    folder = join_parts(hub.find(vision), hub.find(llm), output, template=template, seed=seed, max_tiles=max_tiles)
    config = read_config(folder)
    return {
        "checkpoint": str(folder),
        "language model kind": config.llm.architecture,
        "template": config.template,
        "vocabulary": config.llm.vocab_size,
        "id of <IMG_CONTEXT>": config.image_token_id,
        "total": count_parameters(config)["total"],
    }
