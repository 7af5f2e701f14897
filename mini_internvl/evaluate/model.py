"""The model that is evaluated, loaded or reached, with what names it in results and in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.engine import load
from mini_internvl.engine.device import INT8
from mini_internvl.engine.hub import base_folder, resolve
from mini_internvl.engine.remote import Address, RemoteEngine, is_remote
from mini_internvl.evaluate import keys
from mini_internvl.evaluate.run import ChatModel
from mini_internvl.model.flash import read_thresholds
from mini_internvl.model.reduction import Setting
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.ranks import ALONE, Ranks

PLAIN_NAMES = ("best", "last", "final", "checkpoint", "merged", "model")  # folder names that say too little alone


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """What is evaluated."""

    engine: ChatModel
    name: str
    facts: Mapping[str, Any]  # name, hash of the weights, parameters; for the score file
    key: str  # stands for weights and settings in the cache


def short_name(model: str | None) -> str:
    """A model's name, fit for a folder: the last part of a path or hub id, with more of it where that says little."""
    if model is None:
        return "nano"
    if is_remote(model):
        model = Address.read(model).model
    parts = [part for part in Path(model.partition("@")[0]).parts if part not in ("/", ".", "..")] or ["model"]
    wanted = 3 if parts[-1].lower() in PLAIN_NAMES else 1
    name = "-".join(parts[-wanted:])
    return "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in name)


def load_evaluated(
    model: str | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    heads: bool = True,
    flash: str | None = None,
    visual_tokens: Setting = None,
    ranks: Ranks = ALONE,
) -> EvaluatedModel:
    """Load a checkpoint (folder, hub id, ``None`` for nano) or name a server (``openai:URL#name``).

    Without ``heads`` a model answers everything in text, whatever heads it has. ``flash`` sets the thresholds of a
    Flash model (:func:`mini_internvl.model.flash.read_thresholds`). Device, dtype and ``visual_tokens`` are those of
    :func:`mini_internvl.load`; of several processes each takes its own GPU. ValueError: it cannot be used.
    """
    name = short_name(model)
    if is_remote(model):
        if visual_tokens is not None:
            raise ValueError("a server chooses its visual tokens itself; leave visual_tokens out")
        address = Address.read(str(model))
        if flash is not None:
            raise ValueError(f"{address.url} sets its own thresholds; leave --flash out")
        facts: dict[str, Any] = {"name": address.model, "url": address.url, "sha256": "", "parameters": 0}
        return EvaluatedModel(
            engine=RemoteEngine(address), name=name, facts=facts, key=f"{address.url}#{address.model}"
        )
    folder = resolve(model)
    engine = load(folder, "own", device=_own_device(device, ranks), dtype=dtype, visual_tokens=visual_tokens)
    weights = keys.weight_files_hash(folder)
    base = base_folder(folder)
    hashes = [weights, keys.settings_hash(folder)]
    if base != folder:  # an adapter says nothing without its base
        hashes += [keys.weight_files_hash(base), keys.settings_hash(base)]
    with shapes_only():  # a quantised model has no torch weights to count
        parameters = sum(p.numel() for p in InternVL(engine.config).parameters())
    facts = {"name": name, "path": str(model or "nano"), "sha256": weights, "parameters": parameters}
    if dtype == INT8:
        facts["weights"] = INT8
    if engine.visual_tokens:
        facts["visual_tokens"] = str(engine.visual_tokens)
    if not heads:
        engine.heads = None
    if flash is not None:
        engine.flash = read_thresholds(flash, engine.config)
        facts["flash"] = flash
    if engine.head_names:
        facts["heads"] = list(engine.head_names)
    return EvaluatedModel(engine=engine, name=name, facts=facts, key=keys.digest(hashes))


def _own_device(device: str, ranks: Ranks) -> str:
    import torch

    if ranks.size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{ranks.local % torch.cuda.device_count()}"
    return device
