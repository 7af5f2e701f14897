"""PyTorch: any checkpoint, any device. Keys and values lie in the slots of ``model/cache.py``.

Chunks of prompts and single tokens of answers are one packed row without padding: weights are read once for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mini_internvl.engine import hub
from mini_internvl.engine.backends import Piece
from mini_internvl.engine.backends._recorded import RecordedSteps, Recorder, record
from mini_internvl.engine.device import INT8, resolve_device, resolve_dtype
from mini_internvl.model import checkpoint
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.cache import NewTokens, SlotCache
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import read_tensors
from mini_internvl.model.int8 import quantise_decoder
from mini_internvl.model.lora import merge_lora
from mini_internvl.model.vlm import InternVL, TokenCountError

KV_BYTES = 4 * 10**9
"""Bytes that keys and values may take; a request that needs more alone gets it."""


def missing() -> str:
    """Empty: torch is always there."""
    return ""


def load(folder: Path, *, dtype: str = "auto", device: str = "auto") -> TorchBackend:
    """A checkpoint or adapter folder; ValueError says why it cannot be used."""
    place, files = resolve_device(device), hub.base_folder(folder)
    kind = resolve_dtype("auto" if dtype == INT8 else dtype, place, files)
    if dtype == INT8:
        return TorchBackend(_int8(folder, files).to(place, checkpoint.as_dtype(kind)))
    if is_adapter(folder):
        return TorchBackend(load_adapted(folder, base=files, dtype=kind, device=str(place)))
    return TorchBackend(checkpoint.load_model(folder, dtype=kind, device=str(place)))


def _int8(folder: Path, files: Path) -> InternVL:
    """A model on the CPU, its adapter merged, whose decoder's weights became int8 one after the other."""
    if is_adapter(folder):
        model = merge_lora(load_adapted(folder, base=files, dtype="float32"))
    else:  # in the type of its files, if they have one, so that they are read as they are needed
        kinds = {tensor.dtype for _, tensor in read_tensors(files, shapes_only=True)}
        model = checkpoint.load_model(folder, dtype=kinds.pop() if len(kinds) == 1 else torch.float32)
    try:
        quantise_decoder(model.language_model)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return model


class TorchBackend:
    """A model as the scheduler uses it; ``kv_bytes`` bound its keys and values."""

    def __init__(self, model: InternVL, *, kv_bytes: int = KV_BYTES) -> None:
        self.model, self.kv_bytes, llm = model, kv_bytes, model.config.llm
        token_bytes = 2 * llm.layers * llm.kv_heads * llm.head_dim * model.dtype.itemsize
        self.slots = SlotCache(llm, most_tokens=kv_bytes // token_bytes, dtype=model.dtype, device=model.device)
        self._recorded: RecordedSteps | None = None

    def record_steps(self, recorder: Recorder = record) -> None:
        """From now on repeat recorded steps where single tokens of answers are all that is computed.

        ValueError where the model, or its device, cannot be recorded.
        """
        if recorder is record and self.model.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device; the model is on {self.model.device.type}")
        if self.config.llm.rope.kind == "longrope":
            raise ValueError(
                "a model with LongRoPE, such as the 4B, cannot be recorded: its factors are copied each step"
            )
        self._recorded = RecordedSteps(self.model, self.slots, recorder)

    def renewed(self) -> TorchBackend:
        """The same with nothing held or recorded yet, for a model whose weights were changed or replaced."""
        new = TorchBackend(self.model, kv_bytes=self.kv_bytes)
        if self._recorded is not None:
            new.record_steps(self._recorded.recorder)
        return new

    @property
    def config(self) -> VLMConfig:
        return replace(self.model.config, image_token_id=self.model.image_token_id)

    @property
    def arithmetic(self) -> str:
        return f"torch {self.model.device.type} {' '.join(self.model.types)}"

    @torch.inference_mode()
    def encode(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_images(pixel_values.to(self.model.device))

    @torch.inference_mode()
    def open(self, most_tokens: int) -> int:
        return self.slots.open(most_tokens)

    @torch.inference_mode()
    def fork(self, slot: int, count: int, most_tokens: int) -> int:
        return self.slots.fork(slot, count, most_tokens)

    def close(self, slot: int) -> None:
        self.slots.close(slot)
        if self._recorded is not None:
            self._recorded.drop_gone()

    def free_tokens(self) -> int:
        return self.slots.free_tokens

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        if self._recorded is not None and (found := self._recorded.forward(pieces)) is not None:
            return found
        new = [NewTokens(slot=piece.slot, count=len(piece.ids), prompt_length=piece.prompt_length) for piece in pieces]
        order = self.slots.order(new)
        placed = self.slots.place([new[place] for place in order])
        hidden = self.model.language_model(self._embed([pieces[place] for place in order]), cache=placed)[0]
        logits = self.model.language_model.lm_head(hidden[placed.last]).float()
        back = sorted(range(len(order)), key=order.__getitem__)
        return logits if order == sorted(order) else logits[torch.tensor(back, device=logits.device)]

    def _embed(self, pieces: Sequence[Piece]) -> Tensor:
        """(1, T, hidden) of the tokens of all pieces; TokenCountError as :meth:`InternVL.embed`."""
        ids = list(itertools.chain.from_iterable(piece.ids for piece in pieces))
        x = self.model.language_model.embed_tokens(torch.tensor([ids], device=self.model.device))
        image, begin, places, visual = self.model.image_token_id, 0, list[int](), list[Tensor]()
        for piece in pieces:
            if piece.visual is not None:
                own = [begin + place for place, token in enumerate(piece.ids) if token == image]
                if len(own) != len(piece.visual):
                    raise TokenCountError(
                        f"the prompt holds {len(own)} <IMG_CONTEXT> tokens but the images give "
                        f"{len(piece.visual)} visual tokens"
                    )
                places += own
                visual.append(piece.visual)
            begin += len(piece.ids)
        if places:
            x[0, torch.tensor(places, device=x.device)] = torch.cat(visual).to(x.device, x.dtype)
        return x
