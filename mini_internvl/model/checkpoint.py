"""Checkpoints: from a folder in any known layout to a model, and back.

Weights are memory-mapped and go straight to the wanted type and device. Missing, extra and misshapen tensors are listed
and refuse to load unless asked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor

from mini_internvl.files import copy_file, new_folder, recover_folder, write_json
from mini_internvl.model import clip, layouts, llms
from mini_internvl.model.config import ConfigError, VisionConfig, VLMConfig
from mini_internvl.model.fields import is_integer, listed, short_repr
from mini_internvl.model.files import (
    ADAPTER,
    CONFIG,
    SHARD_BYTES,
    CheckpointError,
    read_header,
    read_json,
    read_tensors,
    weight_files,
    write_tensors,
)
from mini_internvl.model.layouts import official
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vision import InternViT
from mini_internvl.model.vlm import InternVL

IMAGE_TOKEN = "<IMG_CONTEXT>"
_VISION = "vision_model."
_BARE = "intern_vit"  # how the model type of an encoder alone begins
_log = logging.getLogger(__name__)


def load_model(
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    strict: bool = True,
    float32: Sequence[str] = (),
) -> InternVL:
    """Load a model; CheckpointError or ConfigError names a file that is missing, damaged, of another model or pickled.

    Args:
        folder: holds config.json and safetensors weights in any known layout, or an adapter, which loads on its base.
            No code in it is run.
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        device: where the weights go; "meta" checks names, shapes and types by the headers and reads no weight.
        strict: False makes missing tensors fresh, leaves extra ones out, and logs their names.
        float32: begins of names that stay float32 whatever ``dtype`` says, such as "mlp1." where the projector trains.
    """
    folder = Path(folder)
    recover_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if (folder / ADAPTER).exists():
        from mini_internvl.model.adapter import load_adapted

        return load_adapted(folder, dtype=dtype, device=device, strict=strict)
    config = read_config(folder)
    if strict:
        _check_depth(folder, config)
    if config.defaults:
        _log.warning("%s says nothing of %s: defaults were taken", folder / CONFIG, ", ".join(config.defaults))
    with shapes_only():
        model = InternVL(config)
    tensors = read_state(folder, shapes_only=device == "meta")
    _assign(model, tensors, folder, as_dtype(dtype), device, strict, float32)
    model.image_token_id = image_token_id(folder, config)
    return model.eval()


def load_vision(folder: str | Path, *, dtype: str | torch.dtype = "float32", device: str = "cpu") -> InternViT:
    """Load an InternViT (the 300M or the 6B teacher): a bare folder, the encoder of a whole model's folder, or CLIP's
    as an InternViT."""
    folder = Path(folder)
    config = VisionConfig.from_official(read_vision_config(folder))
    with shapes_only():
        model = InternViT(config)
    _assign(model, vision_tensors(folder, shapes_only=device == "meta"), folder, as_dtype(dtype), device)
    return model.eval()


def read_vision_config(folder: Path) -> dict[str, Any]:
    """The official fields of an encoder: bare, of a whole model, or of the InternViT that a CLIP encoder becomes.

    ConfigError where it is none of these, or a field is missing or wrong.
    """
    raw = read_json(folder / CONFIG)
    if clip.is_clip(raw):
        with _naming(folder):
            return clip.internvit_config(raw)
    if _is_bare(raw):
        with _naming(folder):
            VisionConfig.from_official(raw)
        return raw
    if not any(layout.matches(raw) for layout in layouts.layouts().values()):
        kind = f'of "{raw["model_type"]}"' if "model_type" in raw else "without a model_type"
        raise ConfigError(
            f"{folder / CONFIG}: this is no InternViT config, but one {kind}; give a bare InternViT, a whole model of "
            "this family or a CLIP model"
        )
    return dict(read_config(folder).official["vision_config"])


def _is_bare(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an InternViT alone."""
    return {"hidden_size", "patch_size"} <= raw.keys() and str(raw.get("model_type", _BARE)).startswith(_BARE)


def vision_tensors(folder: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an encoder of :func:`read_vision_config` under its bare name; see :func:`read_tensors`."""
    raw = read_json(folder / CONFIG)
    if clip.is_clip(raw):
        try:
            yield from clip.internvit_tensors(raw, read_tensors(folder, shapes_only=shapes_only))
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        return
    if _is_bare(raw):
        yield from read_tensors(folder, shapes_only=shapes_only)
        return
    whole = read_state(folder, shapes_only=shapes_only)
    yield from ((key.removeprefix(_VISION), value) for key, value in whole if key.startswith(_VISION))


def layout_of(folder: Path) -> ModuleType:
    """The layout of a folder (a module of ``model/layouts``); errors name the file."""
    with _naming(folder):
        return layouts.detect(read_json(folder / CONFIG))


def read_config(folder: Path) -> VLMConfig:
    """config.json of a folder in any layout; errors name the file.

    Where it says that one table is both embedding and output matrix, but the weights hold an output matrix, they count.
    """
    layout = layout_of(folder)
    with _naming(folder):
        config = VLMConfig.from_official(layout.to_official_config(read_json(folder / CONFIG)))
    apart = layout is official and official.is_tied(config) and _has_head(folder, config)
    return official.untied(config) if apart else config


def _has_head(folder: Path, config: VLMConfig) -> bool:
    """Whether the weights hold an output matrix; weights that cannot be read are the loader's to tell."""
    name = f"{official.LLM}{llms.find(config.llm.architecture).NAMES.head}.weight"
    with suppress(CheckpointError):
        return any(name in read_header(path) for path in weight_files(folder))
    return False


def read_state(folder: Path, *, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder in any layout under our name, memory-mapped; see :func:`read_tensors`."""
    return layout_of(folder).read(read_tensors(folder, shapes_only=shapes_only), read_config(folder))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Names the file in errors about its fields."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None


def _check_depth(folder: Path, config: VLMConfig) -> None:
    """CheckpointError when config.json asks for other numbers of blocks than the files hold, before any is made."""
    depths = {"vision": -1, "language_model": -1}
    for name, _ in read_tensors(folder, shapes_only=True):
        block = re.search(r"(vision|language_model).*?\.layers?\.(\d{1,9})\.", name)
        if block:
            depths[block[1]] = max(depths[block[1]], int(block[2]))
    for (part, last), wanted in zip(depths.items(), (config.vision.layers, config.llm.layers), strict=True):
        if last >= 0 and last + 1 != wanted:
            raise CheckpointError(
                f"{folder}: config.json asks for {wanted:,} {part} blocks, the weights have {last + 1:,}; "
                "take both from one and the same checkpoint"
            )


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """ "float32" -> torch.float32; ValueError lists the known names."""
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f'unknown dtype "{dtype}"; known: {", ".join(known)}')
    return known[dtype]


def _assign(
    model: torch.nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype: torch.dtype,
    device: str,
    strict: bool = True,
    float32: Sequence[str] = (),
) -> None:
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for key, tensor in tensors:
        if key in wanted and wanted[key] != tensor.shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[key])}"
            )
        state[key] = tensor.to(device=device, dtype=torch.float32 if key.startswith(tuple(float32)) else dtype)
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        lists = (("missing", missing), ("unexpected", extra))
        what = "".join(f"{kind} tensors {listed(names)}; " for kind, names in lists if names)
        if strict:
            raise CheckpointError(f"{folder}: {what}the weights do not fit; minivl doctor {folder} says more")
        _log.warning("%s: %sloaded all the same", folder, what)
    generator = torch.Generator().manual_seed(0)
    for key in missing:
        state[key] = _fresh(key, wanted[key], generator).to(device, dtype)
    model.load_state_dict({key: state[key] for key in wanted}, assign=True)


def _fresh(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """The start of a tensor that no file holds: norms and scales one, biases zero, the rest normal."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def check_state(state: Mapping[str, Tensor], config: VLMConfig, folder: Path) -> None:
    """CheckpointError when names or shapes of tensors are not the model's own, before anything is done with them."""
    with shapes_only():
        wanted = {name: tuple(value.shape) for name, value in InternVL(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        what = ", ".join(f"{n} (is {found.get(n, 'missing')}, must be {wanted.get(n, 'absent')})" for n in wrong[:4])
        raise CheckpointError(f"{folder}: {len(wrong)} tensors do not fit config.json: {what}; see minivl doctor")


def to_official(model: InternVL) -> dict[str, Tensor]:
    return dict(official.write(model.state_dict(), model.config))


def image_token_id(folder: Path, config: VLMConfig) -> int:
    """Id of <IMG_CONTEXT>: from config.json or the added tokens, else the released one, which counts from the end."""
    if config.image_token_id is not None:
        return config.image_token_id
    file, number = folder / "added_tokens.json", None
    if file.exists():
        number = read_json(file).get(IMAGE_TOKEN)
    if number is None and (folder / "tokenizer.json").exists():
        file = folder / "tokenizer.json"
        rows = read_json(file).get("added_tokens")
        tokens = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        number = next((token.get("id") for token in tokens if token.get("content") == IMAGE_TOKEN), None)
    if number is None:
        return released_image_token(config)
    if not is_integer(number) or not 0 <= number < config.llm.vocab_size:
        raise CheckpointError(
            f"{file}: {IMAGE_TOKEN} has the id {short_repr(number)}, beyond the {config.llm.vocab_size} rows of the "
            "vocabulary; copy the tokenizer files of the same checkpoint"
        )
    return int(number)


def released_image_token(config: VLMConfig) -> int:
    """Id of <IMG_CONTEXT> where no file tells it: the released one, or by the official order of the nine at the end."""
    released: int | None = config.image_token_id or llms.find(config.llm.architecture).IMAGE_TOKEN
    return released if released and released < config.llm.vocab_size else config.llm.vocab_size - 7


def save_model(
    model: InternVL,
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    layout: str = "official",
    extra_files: Iterable[Path] = (),
    beside: Mapping[str, bytes] = MappingProxyType({}),
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint: config.json, safetensors in files of at most ``shard_bytes``, copies of ``extra_files``.

    ``beside`` holds contents of further files by name, such as those of heads.

    The folder appears complete or not at all; an older folder of that name is replaced only then.
    """
    if any(".lora_" in name for name in model.state_dict()):
        raise ValueError("the model has adapters; merge them first (minivl merge), or save them with save_adapter")
    folder = Path(folder)
    form = layouts.find(layout)
    target = as_dtype(dtype) if dtype is not None else model.dtype
    name = str(target).removeprefix("torch.")
    config, llm = model.config, model.language_model
    if official.is_tied(config) and not official.are_equal(llm.lm_head.weight, llm.embed_tokens.weight):
        config = official.untied(config)
    raw = form.from_official_config(config.official, model.image_token_id, name)
    with new_folder(folder) as temporary:
        for file in extra_files:
            copy_file(file, temporary / file.name)
        for file_name, content in beside.items():
            (temporary / file_name).write_bytes(content)
        write_json(temporary / CONFIG, raw)
        pairs = form.write(model.state_dict(), config)
        converted = ((name, tensor.detach().to("cpu", target)) for name, tensor in pairs)
        write_tensors(converted, temporary, shard_bytes=shard_bytes, metadata=metadata)
    return folder
