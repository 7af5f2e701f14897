"""Write a checkpoint of a released size with random weights, in the official layout, bfloat16 and the released shards.

For proving that loading, converting, saving and verifying work at full size without the released weights:

    python scripts/full_size.py 1B /tmp/full/1B [--tokenizer FOLDER]
    minivl convert /tmp/full/1B /tmp/full/1B-native --to native

Tensors are made and written one at a time; the whole model never is in memory.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mini_internvl.files import copy_file, new_folder, write_json
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.checkpoint import to_official
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import CONFIG, write_tensors
from mini_internvl.model.sizes import official_config, shapes_only, size_names
from mini_internvl.model.vlm import InternVL

FACTORS = {"type": "su", "short_factor": [1.05] * 48, "long_factor": [1.0 + i for i in range(48)]}
"""Made-up LongRoPE factors for the 4B: the released ones come with its config.json."""


def tensors(config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    """Official names with random bfloat16 values, small enough for finite logits; the same for the same name."""
    with shapes_only():
        shapes = {name: value.shape for name, value in to_official(InternVL(config)).items()}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        value = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        yield name, value + 1 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else value


def write(size: str, folder: Path, tokenizer: Path | None) -> list[Path]:
    """Write the folder; returns its weight files."""
    raw = official_config(size)
    if size == "4B":
        raw["llm_config"]["rope_scaling"] = FACTORS
    with new_folder(folder) as temporary:
        for name in FILES if tokenizer else ():
            if (tokenizer / name).exists():
                copy_file(tokenizer / name, temporary / name)
        write_json(temporary / CONFIG, raw)
        files = write_tensors(tensors(VLMConfig.from_official(raw)), temporary)
    return [folder / file.name for file in files]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=size_names())
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files go along")
    given = parser.parse_args()
    for file in write(given.size, given.folder, given.tokenizer):
        print(f"{file}  {file.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
