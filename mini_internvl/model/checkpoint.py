"""Checkpoint folders in the official layout: read, checked, written whole or not at all.

Weights are memory-mapped safetensors, one file or shards with an index. Pickle files are refused by name, since loading
one runs code. Missing, extra and misshapen tensors are listed and refuse to load.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mini_internvl.model import llms
from mini_internvl.model.config import ConfigError, VisionConfig, VLMConfig
from mini_internvl.model.vision import InternViT
from mini_internvl.model.vlm import InternVL

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
IMAGE_TOKEN = "<IMG_CONTEXT>"
_LLM = "language_model."


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be read; the message names the file and the remedy."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError names the file when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch the file again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, checked to be there.

    Raises:
        CheckpointError: none found, a shard of the index is missing, or the weights are pickled.
    """
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing or not names:
            raise CheckpointError(
                f"{folder / INDEX} names {missing or 'no files'}, not in the folder; fetch them again"
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for p in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder / pickled[0]} is a pickle file, which can run code when loaded; convert it to safetensors first"
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder under its own name, memory-mapped."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no dict
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch or save it again") from None


def load_model(folder: str | Path, *, dtype: str | torch.dtype = "float32", device: str = "cpu") -> InternVL:
    """Load a model from an official ``InternVLChatModel`` folder.

    Args:
        folder: holds config.json and safetensors weights; no code in it is run.
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        device: where the weights go.

    Raises:
        CheckpointError, ConfigError: a file is missing, damaged, of another model or pickled.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    config = read_config(folder)
    with torch.device("meta"):
        model = InternVL(config)
    _assign(model, _from_official(read_tensors(folder), config), folder, as_dtype(dtype), device)
    model.image_token_id = (
        config.image_token_id if config.image_token_id is not None else _image_token_id(folder, config)
    )
    return model.eval()


def load_vision(folder: str | Path, *, dtype: str | torch.dtype = "float32", device: str = "cpu") -> InternViT:
    """Load a bare InternViT folder (the 300M or the 6B teacher)."""
    folder = Path(folder)
    raw = read_json(folder / CONFIG)
    if "hidden_size" not in raw or "patch_size" not in raw:
        raise ConfigError(f"{folder / CONFIG}: this is no InternViT config")
    with torch.device("meta"):
        model = InternViT(VisionConfig.from_official(raw))
    _assign(model, read_tensors(folder), folder, as_dtype(dtype), device)
    return model.eval()


def read_config(folder: Path) -> VLMConfig:
    """config.json of an official folder; errors name the file."""
    raw = read_json(folder / CONFIG)
    try:
        return VLMConfig.from_official(raw)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """ "float32" -> torch.float32; ValueError lists the known names."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in known:
        raise ValueError(f'unknown dtype "{dtype}"; known: {", ".join(known)}')
    return known[dtype]


def _assign(
    model: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype, device: str
) -> None:
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for key, tensor in tensors:
        if key in wanted and wanted[key] != tensor.shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[key])}"
            )
        state[key] = tensor.to(device=device, dtype=dtype)
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"{folder}: {_listed('missing', missing)}{_listed('unexpected', extra)}the weights do not fit"
        )
    model.load_state_dict(state, assign=True)


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return f"{what} tensors {', '.join(keys[:4])}{more}; "


def _from_official(tensors: Iterable[tuple[str, Tensor]], config: VLMConfig) -> Iterator[tuple[str, Tensor]]:
    backbone = llms.find(config.llm.architecture)
    for key, tensor in tensors:
        if key.startswith(_LLM):
            for name, part in backbone.split(key.removeprefix(_LLM), tensor, config.llm):
                yield _LLM + name, part
        else:
            yield key, tensor


def to_official(model: InternVL) -> dict[str, Tensor]:
    """The model's tensors under their official names."""
    state = model.state_dict()
    llm = {key.removeprefix(_LLM): value for key, value in state.items() if key.startswith(_LLM)}
    official = {key: value for key, value in state.items() if not key.startswith(_LLM)}
    for name, tensor in llms.find(model.config.llm.architecture).join(llm, model.config.llm):
        official[_LLM + name] = tensor
    return official


def _image_token_id(folder: Path, config: VLMConfig) -> int:
    """Id of <IMG_CONTEXT>: from the folder's added tokens, else from the official order of the nine at the end."""
    if (folder / "added_tokens.json").exists():
        added = read_json(folder / "added_tokens.json")
        if IMAGE_TOKEN in added:
            return int(added[IMAGE_TOKEN])
    if (folder / "tokenizer.json").exists():
        for token in read_json(folder / "tokenizer.json").get("added_tokens", []):
            if token["content"] == IMAGE_TOKEN:
                return int(token["id"])
    return config.llm.vocab_size - 7


def save_model(
    model: InternVL,
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    extra_files: Iterable[Path] = (),
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an official folder: config.json, one safetensors file and ``extra_files`` (the tokenizer's).

    The folder appears complete or not at all: everything goes to a temporary folder beside it, is flushed to disk and
    renamed; an older folder of that name is replaced only then.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = as_dtype(dtype) if dtype is not None else model.dtype
    raw = dict(model.config.official) | {
        "torch_dtype": str(target).removeprefix("torch."),
        "img_context_token_id": model.image_token_id,
    }
    tensors = {key: value.detach().to("cpu", target).contiguous() for key, value in to_official(model).items()}
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for file in extra_files:
            shutil.copyfile(file, temporary / file.name)
        (temporary / CONFIG).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt", **(metadata or {})})
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished temporary folder in the place of ``folder``, flushed to disk first."""
    for path in temporary.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.chmod(0o755)
    recover_folder(folder)
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        recover_folder(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put the old folder back when a kill fell between the two renames of :func:`replace_folder`."""
    if not folder.exists() and _old(folder).exists():
        os.replace(_old(folder), folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
