"""Where an encoder that trains alone begins: random weights, an InternViT, or blocks that are picked from one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_internvl.engine import hub
from mini_internvl.model import clip
from mini_internvl.model.checkpoint import CheckpointError, read_vision_config, vision_tensors
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.encoder import EncoderAlone, encoder_config
from mini_internvl.model.sizes import ENCODERS, fresh_encoder, shapes_only
from mini_internvl.model.vision import resized_positions
from mini_internvl.recipes import RecipeError, StudentRecipe

RELEASED = re.compile(r"InternViT-(300M|6B)-448px(-V1-5|-V2_5)?$")
BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")
CLIP_L = "clip-vit-large-patch14-336"
CLIP_L_CONFIG = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip
POSITIONS = "embeddings.position_embedding"


def encoder_folder(name: str) -> Path:
    """The folder of an encoder, or of a model that has one: local, of the hub, or ``nano`` for the package's own."""
    return hub.resolve(None if name == "nano" else name)


def known_config(name: str) -> dict[str, Any]:
    """config.json of an encoder by its folder or hub id; that of a released one is known without its files.

    CheckpointError, ConfigError: it is not there, or no InternViT.
    """
    if not Path(name).exists():
        if released := RELEASED.search(name):
            return dict(ENCODERS[released[1]])
        if name.endswith(CLIP_L):
            return clip.internvit_config(CLIP_L_CONFIG)
    return read_vision_config(encoder_folder(name))


def student_config(student: StudentRecipe) -> VLMConfig:
    """What a student is; RecipeError where the blocks that it asks for are not there."""
    raw = known_config(student.start) if student.start else {**ENCODERS[student.size], **student.config}
    if student.layers is not None:
        raw = {**raw, "num_hidden_layers": len(picked(student, int(raw["num_hidden_layers"])))}
    if student.image_size is not None:
        if student.image_size % (side := int(raw["patch_size"])):
            raise RecipeError(f"student.image_size is {student.image_size}; it must be a multiple of {side}, one patch")
        raw = {**raw, "image_size": student.image_size}
    return encoder_config(raw)


def picked(student: StudentRecipe, blocks: int) -> list[int]:
    """Numbers of the blocks of ``start`` that a student takes: all, those listed, or so many, the last among them."""
    asked = student.layers
    if asked is None:
        return list(range(blocks))
    if isinstance(asked, tuple):
        chosen = list(asked)
    else:
        chosen = [round((number + 1) * blocks / asked) - 1 for number in range(asked)]
    if max(chosen) >= blocks or len(set(chosen)) < len(chosen):
        raise RecipeError(f"student.layers is {asked}; {student.start} has {blocks} blocks, each of them taken once")
    return chosen


def shaped_student(student: StudentRecipe) -> EncoderAlone:
    """A student without memory, on ``meta``."""
    with shapes_only():
        return EncoderAlone(student_config(student))


def open_student(student: StudentRecipe, seed: int, device: str, dtype: torch.dtype) -> tuple[EncoderAlone, str]:
    """A student as it begins, and the hash of its weights.

    CheckpointError where ``start`` is missing, damaged or does not fit its config.json.
    """
    model, digest = shaped_student(student), hashlib.sha256()
    config = model.config.vision
    digest.update(json.dumps(model.config.official, sort_keys=True).encode())
    if not student.start:
        model.vision_model = fresh_encoder(config, seed)
        return _placed(model, device, dtype), digest.hexdigest()
    folder = encoder_folder(student.start)
    state = {}
    for name, tensor in _picked_tensors(student, folder):
        if name == POSITIONS:
            tensor = _resized(tensor, config.image_size // config.patch_size)
        state[name] = tensor.to(dtype)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(state[name].contiguous().view(torch.uint8).numpy().data)
    wanted = {name: tensor.shape for name, tensor in model.vision_model.state_dict().items()}
    if odd := sorted(wanted.items() ^ {name: tensor.shape for name, tensor in state.items()}.items()):
        raise CheckpointError(f"{folder}: {odd[0][0]} does not fit config.json; minivl doctor {folder} says more")
    model.vision_model.load_state_dict(state, assign=True)
    return _placed(model, device, dtype), digest.hexdigest()


def _placed(model: EncoderAlone, device: str, dtype: torch.dtype) -> EncoderAlone:
    model.vision_model.to(device=device, dtype=dtype).requires_grad_(True)
    return model.eval()


def _picked_tensors(student: StudentRecipe, folder: Path) -> Iterator[tuple[str, Tensor]]:
    blocks = int(read_vision_config(folder)["num_hidden_layers"])
    places = {old: new for new, old in enumerate(picked(student, blocks))}
    for name, tensor in vision_tensors(folder):
        block = BLOCK.match(name)
        if block is None:
            yield name, tensor
        elif int(block[1]) in places:
            yield f"encoder.layers.{places[int(block[1])]}.{name[block.end() :]}", tensor


def _resized(table: Tensor, grid: int) -> Tensor:
    return table if table.shape[1] == 1 + grid**2 else resized_positions(table, grid, grid)
