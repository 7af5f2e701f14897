"""How far a CLIP encoder's features move when it becomes an InternViT, hidden state by hidden state, and by what.

    python bench/clip.py [--clip FOLDER] [--pictures 2] [--size 448] [--output FILE]

FOLDER is transformers' CLIPModel or CLIPVisionModel; without one an encoder of the shape of ViT-L/14-336 with random
weights is made, whose figures say that the way is right and little of a trained one. Each row compares two encoders
that differ in one thing, the last row in all: mean cosine of tokens, and |difference| / |original|.
Needs transformers (extra ``dev``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_internvl import terminal
from mini_internvl.files import write_text
from mini_internvl.model import clip
from mini_internvl.model.config import VisionConfig
from mini_internvl.model.vision import InternViT

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14}  # fmt: skip
States = Callable[[Tensor], Sequence[Tensor]]


def original(given: argparse.Namespace) -> Any:
    """The CLIP encoder."""
    import transformers

    if given.clip:
        return transformers.CLIPVisionModel.from_pretrained(given.clip, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sizes = {**LARGE, "num_hidden_layers": given.layers}
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes)).eval()


def states_of_clip(model: Any, activation: str) -> States:
    """Hidden states with an activation; pixels are those of InternViT."""
    from transformers.activations import ACT2FN

    mean, std, clip_mean, clip_std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (clip.MEAN, clip.STD, clip.CLIP_MEAN, clip.CLIP_STD)
    )

    def run(pixels: Tensor) -> Sequence[Tensor]:
        for layer in model.encoder.layers:
            layer.mlp.activation_fn = ACT2FN[activation]
        taken = (pixels * std + mean - clip_mean) / clip_std
        found: Sequence[Tensor] = model(taken, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        return found

    return run


def states_of_internvit(model: Any, size: int, pre_norm: clip.PreNorm) -> States:
    raw = model.config.to_dict()
    with torch.device("meta"):
        encoder = InternViT(VisionConfig.from_official(clip.internvit_config(raw, image_size=size)))
    state = dict(clip.internvit_tensors(raw, model.state_dict().items(), image_size=size, pre_norm=pre_norm))
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().hidden_states


def compare(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[dict[str, float]]:
    """By hidden state, of ``other`` beside ``one``."""
    return [
        {
            "cosine": F.cosine_similarity(a, b, dim=-1).mean().item(),
            "error": ((b - a).norm() / a.norm()).item(),
            "class_cosine": F.cosine_similarity(a[:, 0], b[:, 0], dim=-1).mean().item(),
        }
        for a, b in zip(one, other, strict=True)
    ]


@torch.inference_mode()
def measure(model: Any, size: int, pictures: int) -> Mapping[str, list[dict[str, float]]]:
    """Name of a change -> what it does to each hidden state."""
    pixels = clip.generated_pictures(size, pictures, seed=1)  # others than those that the norm is folded with
    quick, exact = (states_of_clip(model, name)(pixels) for name in ("quick_gelu", "gelu"))
    folded, omitted = (states_of_internvit(model, size, way)(pixels) for way in ("fold", "omit"))
    return {
        "exact GELU": compare(quick, exact),
        "norm folded": compare(exact, folded),
        "norm left out": compare(exact, omitted),
        "all, norm left out": compare(quick, omitted),
        "all, norm folded": compare(quick, folded),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="folder of a CLIP model")
    parser.add_argument("--layers", type=int, default=24, help="blocks of the random encoder")
    parser.add_argument("--pictures", type=int, default=2, help="generated pictures")
    parser.add_argument("--size", type=int, default=clip.IMAGE_SIZE, help="side in pixels")
    parser.add_argument("--output", type=Path, help="JSON file")
    given = parser.parse_args()
    found = measure(original(given), given.size, given.pictures)
    last = len(next(iter(found.values()))) - 1
    shown = sorted({0, 1, last // 4, last // 2, 3 * last // 4, last})
    for key, title in (("cosine", "mean cosine"), ("error", "relative error"), ("class_cosine", "cosine, class token")):
        rows = [[name, *(f"{states[at][key]:.4f}" for at in shown)] for name, states in found.items()]
        terminal.table(title, ["", *(f"state {at}" for at in shown)], rows)
    if given.output:
        write_text(given.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
