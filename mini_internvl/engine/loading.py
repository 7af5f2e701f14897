"""From a folder or a hub id to an engine, or to the bare model."""

from __future__ import annotations

from pathlib import Path

import torch

from mini_internvl import plugins
from mini_internvl.engine import beside, hub
from mini_internvl.engine.backends import Backend
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.engine import Engine
from mini_internvl.model import checkpoint
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.heads import load_heads
from mini_internvl.model.reduction import Setting, read_reduction
from mini_internvl.model.vlm import InternVL

AUTO = "auto"


def load(
    path_or_hub_id: str | Path | None = None,
    backend: str = AUTO,
    *,
    dtype: str = AUTO,
    device: str = AUTO,
    fast_images: bool = False,
    visual_tokens: Setting = None,
    cuda_graphs: bool = False,
) -> Engine:
    """Load an engine.

    Args:
        path_or_hub_id: a checkpoint or adapter folder, a hub id such as ``"OpenGVLab/InternVL2-1B"``, or ``None`` for
            the nano model that ships with the package.
        backend: "auto", "own", or the name of a back end: a file of ``engine/backends`` such as "torch". "own" is
            "openvino" for what ``minivl quantize`` wrote, else "torch". "auto" is the same, but that a faster form
            which ``minivl quantize`` wrote beside a model answers for it on a CPU; ``Engine.note`` says so.
        dtype: "auto", "float32", "bfloat16" or "float16"; see :func:`mini_internvl.engine.device.resolve_dtype`. With
            "int8" the decoder's weights become int8 when they are loaded, and the rest is as with "auto".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        fast_images: see :class:`Engine`.
        visual_tokens: how many visual tokens an image keeps: a share such as 0.5 or "50%", or tokens a tile, such as
            64; ``None`` keeps all.
        cuda_graphs: repeat recorded steps while answers grow; torch on a CUDA device alone.

    ValueError says why the folder or hub id cannot be used.
    """
    known = [AUTO, beside.OWN, *plugins.list_names("engine.backends")]
    if backend not in known:
        raise ValueError(f'unknown backend "{backend}"; known: {", ".join(known)}')
    folder = hub.resolve(path_or_hub_id)
    chosen = beside.choose(folder, backend, dtype=dtype, device=device)
    reduction = read_reduction(visual_tokens)
    try:
        computing = _computing(chosen, dtype, device)
    except ValueError as error:
        if chosen.folder == folder:
            raise
        chosen = beside.left_out(beside.choose(folder, beside.OWN), error)
        computing = _computing(chosen, dtype, device)
    if cuda_graphs:
        if not isinstance(computing, TorchBackend):
            raise ValueError("cuda_graphs is of the torch back end; leave it out, or use torch")
        computing.record_steps()
    llm = computing.config.llm
    heads = load_heads(folder, hidden_size=llm.hidden_size, layers=llm.layers)
    engine = Engine(computing, hub.base_folder(chosen.folder), fast_images=fast_images)
    engine.visual_tokens, engine.note = reduction, chosen.note
    if heads is not None and isinstance(computing, TorchBackend):
        engine.heads = heads.to(computing.model.device)
    return engine


def _computing(chosen: beside.Answering, dtype: str, device: str) -> Backend:
    found = plugins.find("engine.backends", chosen.backend)
    if problem := found.missing():
        raise ValueError(problem)
    backend: Backend = found.load(chosen.folder, dtype=dtype, device=device)
    return backend


def load_model(
    path_or_hub_id: str | Path, dtype: str | torch.dtype = "float32", device: str = "cpu", *, strict: bool = True
) -> InternVL:
    """Load the bare model, a ``torch.nn.Module``, from a checkpoint folder of any layout, an adapter, or a hub id.

    No tokenizer is needed. See :func:`mini_internvl.model.checkpoint.load_model` for the options. CheckpointError or
    ConfigError says why the folder or hub id cannot be used.
    """
    folder = hub.resolve(path_or_hub_id)
    if is_adapter(folder):
        return load_adapted(folder, base=hub.base_folder(folder), dtype=dtype, device=device, strict=strict)
    return checkpoint.load_model(folder, dtype=dtype, device=device, strict=strict)
