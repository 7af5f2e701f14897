"""Adapter folders in PEFT's format, as ``peft`` reads and writes them for the Hugging Face native model.

``adapter_config.json`` and ``adapter_model.safetensors`` name the native modules (``native_lora.py`` converts).
A projector that was trained in full goes along as PEFT's ``modules_to_save``. The hash of the base's weights stands in
``auto_mapping``, the one free-form field of PEFT's config: any other extra field makes ``peft`` warn.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini_internvl.files import new_folder, recover_folder, write_json
from mini_internvl.model import lora
from mini_internvl.model.checkpoint import layout_of, load_model, read_config
from mini_internvl.model.files import CheckpointError, read_json, read_tensors
from mini_internvl.model.native_lora import PROJECTOR, Low, from_native, pairs, to_native
from mini_internvl.model.vlm import InternVL

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HASH = "base_sha256"
_PREFIX = "base_model.model."
_PROJECTOR_NAMES = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter folder says of itself."""

    base: str
    """Folder or hub id of the model it was trained on, as written; empty when it names none."""
    base_hash: str | None
    """:func:`weights_hash` of that model; ``None`` in adapters that others wrote."""
    rank: int
    """Rank of the layers that no pattern names."""
    dropout: float
    """Dropout it was trained with."""
    projector: bool
    """Whether it brings a projector that was trained in full."""
    raw: Mapping[str, Any]
    """The whole adapter_config.json."""


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter instead of a whole model."""
    recover_folder(Path(folder))
    return (Path(folder) / CONFIG).exists()


def read_adapter(folder: str | Path) -> Adapter:
    """Read and check adapter_config.json.

    Raises:
        CheckpointError: it is missing or broken, or the adapter is no plain LoRA.
    """
    path = Path(folder) / CONFIG
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {raw.get('peft_type')!r}; only LORA can be read")
    for key in ("use_dora", "lora_bias", "alora_invocation_tokens", "target_parameters", "trainable_token_indices"):
        if raw.get(key):
            raise CheckpointError(f"{path}: {key} is set; only plain LoRA can be read")
    try:
        return Adapter(
            base=str(raw.get("base_model_name_or_path") or ""),
            base_hash=(raw.get("auto_mapping") or {}).get(HASH),
            rank=int(raw["r"]),
            dropout=float(raw.get("lora_dropout") or 0.0),
            projector="multi_modal_projector" in (raw.get("modules_to_save") or ()),
            raw=raw,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: a field is missing or malformed ({error!r}); save the adapter again") from None


def find_base(folder: str | Path, base: str | None = None) -> str:
    """The base of an adapter: ``base`` when given, else what it names.

    A relative path is looked for from the adapter folder first, then from the working directory. What is no folder at
    either place is returned as written: a hub id.

    Raises:
        CheckpointError: the adapter names no base.
    """
    name = base or read_adapter(folder).base
    if not name:
        raise CheckpointError(f"{Path(folder) / CONFIG} names no base model; give its folder")
    if base is None and (Path(folder) / name).is_dir():
        return str((Path(folder) / name).resolve())
    return name


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over our names, types, shapes and bytes of a folder's tensors in the order of their names.

    The layout does not matter, nor how the tensors are spread over files.

    Raises:
        CheckpointError: the folder has no readable safetensors weights.
    """
    folder = Path(folder)
    tensors = dict(layout_of(folder).read(read_tensors(folder), read_config(folder)))
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        head = [key, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def save_adapter(model: InternVL, folder: str | Path, *, base: str, base_hash: str, projector: bool = False) -> Path:
    """Write the adapter of a model as a PEFT folder, complete or not at all.

    Args:
        model: with adapters.
        folder: appears whole; an older one of that name is replaced only then.
        base: folder or hub id of the base, written as given.
        base_hash: its :func:`weights_hash`.
        projector: save the projector too, for it was trained in full.

    Raises:
        ValueError: the model has no adapters.
    """
    native = to_native(model)
    if not native:
        raise ValueError("the model has no adapters to save")
    tensors: dict[str, Tensor] = {}
    for name, low in native.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = low.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = low.b
    if projector:
        for theirs, ours in _PROJECTOR_NAMES.items():
            for leaf, value in model.get_submodule(ours).state_dict().items():
                tensors[f"{_PREFIX}{PROJECTOR}{theirs}.{leaf}"] = value
    # Each tensor gets storage of its own: safetensors refuses the shared A of queries, keys and values.
    tensors = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    dropout = max(layer.dropout for layer in lora.lora_layers(model).values())
    raw = _config(model, native, dropout) | {
        "auto_mapping": {
            "base_model_class": "InternVLForConditionalGeneration",
            "parent_library": "transformers.models.internvl.modeling_internvl",
            HASH: base_hash,
        },
        "base_model_name_or_path": base,
        "modules_to_save": ["multi_modal_projector"] if projector else None,
    }
    folder = Path(folder)
    with new_folder(folder) as temporary:
        write_json(temporary / CONFIG, raw)
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
    return folder


def load_adapter(
    model: InternVL, folder: str | Path, *, base_hash: str | None = None, allow_other_base: bool = False
) -> Adapter:
    """Put an adapter folder's adapters on a plain model, in place; every tensor of the folder finds its place.

    Args:
        model: the base.
        folder: written by :func:`save_adapter` or by ``peft`` on the native model.
        base_hash: :func:`weights_hash` of the base's folder; ``None`` leaves the base unchecked.
        allow_other_base: load although the adapter was trained on other weights.

    Raises:
        CheckpointError: the base is another one (both hashes are named), or a tensor is missing, misshapen or has no
            place in this model.
        ValueError: the model has adapters already.
    """
    folder = Path(folder)
    info = read_adapter(folder)
    if lora.adapted(model):
        raise ValueError("the model has adapters already; merge them first")
    if not allow_other_base:
        check_base(folder, info, base_hash)
    factors, projector = _read_factors(folder, info)
    found = from_native(model, factors, str(folder / WEIGHTS), info.rank)
    if info.projector:
        _put_projector(model, projector, folder)
    model.requires_grad_(False)
    for name, low in found.items():
        layer = lora.wrap(model, name, len(low.a), low.scale, info.dropout)
        with torch.no_grad():
            layer.lora_A.copy_(low.a)
            layer.lora_B.copy_(low.b)
    return info


def check_base(folder: str | Path, info: Adapter, base_hash: str | None) -> None:
    """CheckpointError with both hashes when the adapter was trained on other weights; unknown hashes pass."""
    if base_hash and info.base_hash and base_hash != info.base_hash:
        raise CheckpointError(
            f"{folder} was trained on weights with sha256 {info.base_hash}, this base has {base_hash}; "
            "give the base it was trained on"
        )


def load_adapted(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    allow_other_base: bool = False,
    strict: bool = True,
) -> InternVL:
    """Load an adapter folder with its base: a model whose adapters are in place, not merged.

    Raises:
        CheckpointError: the base is no folder or another one than the adapter was trained on.
    """
    home = _base_folder(folder, str(base) if base else None)
    model = load_model(home, dtype=dtype, device=device, strict=strict)
    needs_hash = read_adapter(folder).base_hash and not allow_other_base
    load_adapter(model, folder, base_hash=weights_hash(home) if needs_hash else None, allow_other_base=allow_other_base)
    return model.eval()


def _base_folder(folder: str | Path, base: str | None = None) -> Path:
    name = find_base(folder, base)
    recover_folder(Path(name))
    if not Path(name).is_dir():
        raise CheckpointError(f"{name}, the base of {folder}, is not a folder; fetch it or name another place for it")
    return Path(name)


def _config(model: InternVL, native: Mapping[str, Low], dropout: float) -> dict[str, Any]:
    ranks = {name: len(low.a) for name, low in native.items()}
    alphas = {name: low.scale * len(low.a) for name, low in native.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    all_native = [name for _, names in pairs(model) for name in names]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "target_modules": sorted(_short({name: 1 for name in native}, all_native)),
        "rank_pattern": {k: v for k, v in _short(ranks, all_native).items() if v != rank},
        "alpha_pattern": {k: _number(v) for k, v in _short(alphas, all_native).items() if v != alpha},
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _short(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Name -> value, shortened to the last two words where that means the same layers with one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        end = ".".join(name.split(".")[-2:])
        alike = [other for other in names if other == end or other.endswith(f".{end}")]
        found[end if all(values.get(other) == value for other in alike) else name] = value
    return found


def _read_factors(folder: Path, info: Adapter) -> tuple[dict[str, Low], dict[str, Tensor]]:
    """Native name -> product, and the projector's tensors, of adapter_model.safetensors."""
    path = folder / WEIGHTS
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise CheckpointError(
                f"{folder / 'adapter_model.bin'} is a pickle file, which can run code when loaded; "
                "convert it to safetensors first"
            )
        raise CheckpointError(f"{path} is missing; save the adapter again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); save the adapter again") from None
    factors: dict[str, dict[str, Tensor]] = {}
    projector: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        name = _present_name(key.removeprefix(_PREFIX))
        match = _FACTOR.fullmatch(name)
        if match and tensor.ndim == 2:
            factors.setdefault(match["module"], {})[match["which"]] = tensor.float()
        elif name.startswith(PROJECTOR) and not match and info.projector:
            projector[name.removeprefix(PROJECTOR)] = tensor
        else:
            unknown.append(key)
    unknown += [name for name, pair in factors.items() if len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]]
    if unknown or not factors:
        raise CheckpointError(f"{path}: not readable as LoRA: {', '.join(sorted(unknown)[:4]) or 'it has no adapters'}")
    return {
        name: Low(pair["A"], pair["B"], _scale(info.raw, name, len(pair["A"]))) for name, pair in factors.items()
    }, projector


def _present_name(name: str) -> str:
    """Names of the older native layout -> those of the present one."""
    name = re.sub(r"^language_model\.lm_head\b", "lm_head", name)
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^(language_model|vision_tower|multi_modal_projector)\.", r"model.\1.", name)


def _scale(raw: Mapping[str, Any], name: str, rank: int) -> float:
    """As peft finds it: the first pattern that matches the end of the name, else the general alpha."""
    patterns = raw.get("alpha_pattern") or {}
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    alpha = float(next(matching, raw.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _put_projector(model: InternVL, tensors: Mapping[str, Tensor], folder: Path) -> None:
    wanted = {
        f"{theirs}.{leaf}": value
        for theirs, ours in _PROJECTOR_NAMES.items()
        for leaf, value in model.get_submodule(ours).named_parameters()
    }
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in tensors.items()}:
        raise CheckpointError(f"{folder / WEIGHTS}: the projector's tensors do not fit this base")
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(tensors[key])
