"""Adapter folders in PEFT's format, as ``peft`` reads and writes them for the Hugging Face native model.

``adapter_config.json`` and ``adapter_model.safetensors`` name the native modules. Modules that were trained in full,
such as the projector or the output matrix, and biases go along whole, as PEFT's ``modules_to_save``. The hash of the
base's weights stands in ``auto_mapping``, the one free-form field of PEFT's config: any other makes ``peft`` warn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mini_internvl.files import new_folder, recover_folder, write_json
from mini_internvl.model import lora
from mini_internvl.model.adapter_config import HASH, Adapter, layers, read_adapter
from mini_internvl.model.checkpoint import load_model, read_state
from mini_internvl.model.files import ADAPTER, CheckpointError, pickle_error, read_file, write_file
from mini_internvl.model.layouts import native
from mini_internvl.model.native_lora import LoraFactors, from_native, pairs, to_native
from mini_internvl.model.vlm import InternVL

WEIGHTS = "adapter_model.safetensors"
PROJECTOR = "multi_modal_projector"
WHOLE = {"vision_model.": ("vision_tower",), "language_model.": ("language_model", "lm_head")}
"""Begin of our names of a part with blocks -> its native modules, where it was trained in full."""
_log = logging.getLogger(__name__)
_PREFIX = "base_model.model."
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.")
"""What peft puts into the names of tensors that it saves whole."""
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")


def is_adapter(folder: str | Path) -> bool:
    recover_folder(Path(folder))
    return (Path(folder) / ADAPTER).exists()


def find_base(folder: str | Path, base: str | None = None) -> str:
    """The base of an adapter: ``base`` when given, else what it names.

    A relative path is looked for from the adapter folder first, then from the working directory. What is no folder at
    either place is returned as written: a hub id. CheckpointError when the adapter names no base.
    """
    name = base or read_adapter(folder).base
    if not name:
        raise CheckpointError(f"{Path(folder) / ADAPTER} names no base model; give its folder, to merge with --base")
    if base is None and (Path(folder) / name).is_dir():
        return str((Path(folder) / name).resolve())
    return name


def tensors_hash(folder: str | Path) -> str:
    """SHA-256 over our names, types, shapes and bytes of a folder's tensors in the order of their names.

    The layout does not matter, nor how the tensors are spread over files.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(read_state(Path(folder)), key=lambda pair: pair[0]):
        head = [key, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(
    model: InternVL,
    folder: str | Path,
    *,
    base: str,
    base_hash: str,
    full: Sequence[str] = (),
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """Write the adapter of a model as a PEFT folder, which replaces an older one only when it is complete.

    ``base`` is the folder or hub id of the base, ``base_hash`` its :func:`tensors_hash`; ``full`` are native names of
    modules to save whole, for they were trained in full: "lm_head", :data:`PROJECTOR`, those of :data:`WHOLE`.
    ``beside`` holds contents of further files by name, such as those of heads.
    ValueError without adapters, or without a module of that name.
    """
    factors = to_native(model)
    if not factors:
        raise ValueError("the model has no adapters to save")
    tensors: dict[str, Tensor] = {}
    for name, product in factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = product.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = product.b
    tensors |= {f"{_PREFIX}{name}": value for name, value in _whole_modules(model, full).items()}
    raw = _config(model, factors) | {
        "auto_mapping": {
            "base_model_class": "InternVLForConditionalGeneration",
            "parent_library": "transformers.models.internvl.modeling_internvl",
            HASH: base_hash,
        },
        "base_model_name_or_path": base,
        "modules_to_save": list(full) or None,
    }
    folder = Path(folder)
    with new_folder(folder) as temporary:
        for name, content in beside.items():
            (temporary / name).write_bytes(content)
        write_json(temporary / ADAPTER, raw)
        write_file(tensors, temporary / WEIGHTS, {"format": "pt"})
    return folder


def load_adapter(model: InternVL, folder: str | Path, *, base_hash: str | None = None) -> Adapter:
    """Put the adapters of a folder, ours or one of ``peft``, on a plain model, in place.

    ``base_hash`` is the :func:`tensors_hash` of the base's folder; ``None`` leaves it unchecked. CheckpointError where
    it is another base, or a tensor is missing, misshapen or has no place in this model.
    """
    folder = Path(folder)
    info = read_adapter(folder)
    if lora.lora_layers(model):
        raise ValueError("the model has adapters already; merge them first")
    check_base(folder, info, base_hash)
    factors, whole, unused = read_weights(info)
    for line in unused:
        _log.warning("%s: %s", folder, line)
    found = from_native(model, factors, str(folder / WEIGHTS), info.rank)
    if whole:
        _put_whole(model, whole, folder / WEIGHTS)
    model.requires_grad_(False)
    for name, product in found.items():
        layer = lora.wrap(model, name, len(product.a), product.scale, info.dropout)
        with torch.no_grad():
            layer.lora_A.copy_(product.a)
            layer.lora_B.copy_(product.b)
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

    CheckpointError when the base is no folder, or another one than the adapter was trained on.
    """
    home = Path(find_base(folder, str(base) if base else None))
    recover_folder(home)
    if not home.is_dir():
        raise CheckpointError(f"{home}, the base of {folder}, is not a folder; fetch it or name another place for it")
    model = load_model(home, dtype=dtype, device=device, strict=strict)
    needs_hash = read_adapter(folder).base_hash and not allow_other_base
    load_adapter(model, folder, base_hash=tensors_hash(home) if needs_hash else None)
    return model.eval()


def _config(model: InternVL, factors: Mapping[str, LoraFactors]) -> dict[str, Any]:
    ranks = {name: len(product.a) for name, product in factors.items()}
    scaled = {name: product.scale * len(product.a) for name, product in factors.items()}
    alphas = {name: int(alpha) if alpha == int(alpha) else alpha for name, alpha in scaled.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    all_native = [name for _, names in pairs(model) for name in names]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(layer.dropout for layer in lora.lora_layers(model).values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "target_modules": sorted(_short(dict.fromkeys(factors, True), all_native)),
        "rank_pattern": {k: v for k, v in _short(ranks, all_native).items() if v != rank},
        "alpha_pattern": {k: v for k, v in _short(alphas, all_native).items() if v != alpha},
    }


def _short(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Name -> value, shortened to the last two words where that means the same layers with one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        end = ".".join(name.split(".")[-2:])
        alike = [other for other in names if other == end or other.endswith(f".{end}")]
        found[end if all(values.get(other) == value for other in alike) else name] = value
    return found


def read_weights(info: Adapter) -> tuple[dict[str, LoraFactors], dict[str, Tensor], list[str]]:
    """An adapter's products and its tensors that are saved whole, by native name; what of its config has no effect."""
    folder = info.folder
    path = folder / WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise pickle_error(folder / "adapter_model.bin")
    halves: dict[str, dict[str, Tensor]] = {}
    spellings: dict[str, list[str]] = {}
    whole: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in read_file(path):
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinity; go back to an earlier save")
        name = present_name(key)
        match, written = _FACTOR.fullmatch(name), _FACTOR.fullmatch(key.removeprefix(_PREFIX))
        if match and tensor.ndim == 2:
            module = match["module"]
            halves.setdefault(module, {})[match["which"]] = tensor.float()
            spellings[module] = [written["module"] if written else module, module]
        elif lora.LORA_INFIX in name or not key.startswith(_PREFIX):
            unknown.append(key)
        else:
            whole[name] = tensor
    unknown += [name for name, pair in halves.items() if len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]]
    if unknown or not halves:
        raise CheckpointError(f"{path}: not readable as LoRA: {', '.join(sorted(unknown)[:4]) or 'it has no adapters'}")
    settings, unused = layers(info, spellings)
    factors = {}
    for name, layer in settings.items():
        a, b = halves[name]["A"], halves[name]["B"]
        if len(a) != layer.rank:
            raise CheckpointError(
                f"{path}: {name} has rank {len(a)}, {ADAPTER} says {layer.rank}; save the adapter again"
            )
        if not layer.targeted:
            raise CheckpointError(
                f"{path}: {ADAPTER} does not mean {name}, so peft would leave it out; mend the config"
            )
        factors[name] = LoraFactors(a, b, info.scale(layer.alpha, layer.rank))
    for module in info.full:
        if not any(_is_of(module, name) for name in whole):
            raise CheckpointError(f"{path} lacks {module}, which modules_to_save names; save the adapter again")
    return factors, whole, unused


def _is_of(module: str, name: str) -> bool:
    return f".{module}." in f".{name}"


def present_name(name: str) -> str:
    """A tensor's name in a file -> its name in the present native model: no prefix, no wrappers, the new order."""
    name = _WRAPPED.sub(".", name.removeprefix(_PREFIX)).replace(".default.", ".")
    name = re.sub(r"^language_model\.lm_head\b", "lm_head", name)
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^(language_model|vision_tower|multi_modal_projector)\.", r"model.\1.", name)


def _whole_modules(model: InternVL, modules: Sequence[str]) -> dict[str, Tensor]:
    """Native name -> tensor of the modules that end in one of these names: outside the blocks, or whole parts."""
    whole = tuple(prefix for prefix, native_names in WHOLE.items() if native_names[0] in modules)
    outside = {n: value for n, value in model.state_dict().items() if ".layers." not in n or n.startswith(whole)}
    tensors = {present_name(name): value for name, value in native.write(outside, model.config)} if modules else {}
    for module in modules:
        if not any(_is_of(module, name) for name in tensors):
            raise ValueError(f'the model has no module "{module}" outside its blocks')
    return {name: value for name, value in tensors.items() if any(_is_of(module, name) for module in modules)}


def _put_whole(model: InternVL, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Replace tensors of the base, given under native names, by an adapter's."""
    left = dict(tensors)

    def replaced() -> Iterator[tuple[str, Tensor]]:
        for name, value in native.write(model.state_dict(), model.config):
            new = left.pop(present_name(name), value)
            if new.shape != value.shape:
                raise CheckpointError(
                    f"{path}: {present_name(name)} has shape {tuple(new.shape)}, the base's is {tuple(value.shape)}"
                )
            yield name, new.to(value)

    made = list(native.read(replaced(), model.config))
    if left:
        raise CheckpointError(f"{path}: this model has no tensor {', '.join(sorted(left)[:4])}; is it another base?")
    state = model.state_dict()
    with torch.no_grad():
        for name, value in made:
            if value.data_ptr() != state[name].data_ptr() or value.is_meta:
                state[name].copy_(value)
