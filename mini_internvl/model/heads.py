"""Heads on hidden states: numbers and classes read from the decoder without writing them as text.

A head is one linear layer, in float32, on the hidden state of a chosen place: the last token of the prompt, where an
answer would begin, or the mean over the visual tokens. Where only the first n decoder blocks are used the final norm
follows them at once, as when the later blocks are cut off. Numbers are learnt and given out scaled: a head's output
times ``std`` plus ``mean``. Beside a saved model they are two files, ``heads.json`` (what is read, how and where) and
``heads.safetensors`` (the layers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mini_internvl.files import read_bytes
from mini_internvl.model.files import CheckpointError

SETTINGS, WEIGHTS = "heads.json", "heads.safetensors"
KINDS = ("regression", "classification")
PLACES = ("last", "visual")
Value = float | list[float] | str
"""What a head says: a number, several, or the name of a class."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One quantity."""

    kind: str
    """``regression`` or ``classification``."""
    size: int = 1
    """Numbers of a regression."""
    classes: tuple[str, ...] = ()
    """Names of a classification's classes."""
    mean: tuple[float, ...] = ()
    """Of each number, over training data."""
    std: tuple[float, ...] = ()
    """Standard deviation of each number."""

    @property
    def outputs(self) -> int:
        return self.size if self.kind == "regression" else len(self.classes)


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """All heads of a model, and the hidden state that they read."""

    heads: Mapping[str, HeadConfig]
    layers: int
    """Decoder blocks before it."""
    at: str
    """``last`` or ``visual``."""


class Heads(nn.Module):
    """The heads of a model."""

    def __init__(self, config: HeadsConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.ModuleDict({_key(name): nn.Linear(hidden_size, h.outputs) for name, h in config.heads.items()})
        for parameter in self.linear.parameters():
            nn.init.normal_(parameter, 0.0, 0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        for name, head in config.heads.items():
            for kind, values, default in (("mean", head.mean, 0.0), ("std", head.std, 1.0)):
                scale = torch.tensor(values or [default] * head.size, dtype=torch.float64).float()
                self.register_buffer(f"{kind}_{name}", scale)

    def output(self, name: str, state: Tensor) -> Tensor:
        """(N, hidden) -> (N, outputs) float32: scaled numbers, or logits of the classes."""
        exact = nullcontext() if state.is_meta else torch.autocast(state.device.type, enabled=False)
        with exact:
            found: Tensor = self.linear[_key(name)](state.float())
        return found

    def scaled(self, name: str, numbers: Tensor) -> Tensor:
        """(N, size) of true numbers as the head learns them."""
        return (numbers - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"std_{name}")

    def take(self, other: Heads) -> bool:
        """Take over weights and scales of other heads, if those read the same from the same state; whether they do."""
        same = _unscaled(self.config) == _unscaled(other.config)
        if same:
            self.load_state_dict(other.state_dict())
        return same

    def set_scale(self, name: str, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation (size,) of a regression."""
        self.get_buffer(f"mean_{name}").copy_(mean)
        self.get_buffer(f"std_{name}").copy_(std)

    def values(self, state: Tensor) -> list[dict[str, Value]]:
        """What the heads say of each of (N, hidden) states."""
        rows: list[dict[str, Value]] = [{} for _ in state]
        for name, head in self.config.heads.items():
            output = self.output(name, state)
            if head.kind == "regression":
                numbers = output * self.get_buffer(f"std_{name}") + self.get_buffer(f"mean_{name}")
                for row, found in zip(rows, numbers.tolist(), strict=True):
                    row[name] = found[0] if head.size == 1 else found
            else:
                for row, best in zip(rows, output.argmax(-1).tolist(), strict=True):
                    row[name] = head.classes[best]
        return rows

    def files(self) -> dict[str, bytes]:
        """The two files of the heads, by name. Where the weights are sharded all processes must call it."""
        tensors: dict[str, Tensor] = {}
        heads: dict[str, Any] = {}
        for name, head in self.config.heads.items():
            for kind, tensor in self.linear[_key(name)].state_dict().items():
                full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                tensors[f"{name}.{kind}"] = full.detach().float().cpu().contiguous()
            if head.kind == "regression":
                scale = {kind: self.get_buffer(f"{kind}_{name}").tolist() for kind in ("mean", "std")}
                heads[name] = {"kind": head.kind, "size": head.size, **scale}
            else:
                heads[name] = {"kind": head.kind, "classes": list(head.classes)}
        settings = {**asdict(replace(self.config, heads={})), "heads": heads}
        return {
            SETTINGS: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
            WEIGHTS: save(tensors),
        }


def _unscaled(config: HeadsConfig) -> HeadsConfig:
    return replace(config, heads={name: replace(head, mean=(), std=()) for name, head in config.heads.items()})


def _key(name: str) -> str:
    return f"head_{name}"  # a module's own attributes, such as "type", are no keys of a ModuleDict


def stored_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder's heads as they are, by name; none where it has no heads."""
    if not (folder / SETTINGS).exists():
        return {}
    return {name: read_bytes(folder / name, error=CheckpointError) for name in (SETTINGS, WEIGHTS)}


def load_heads(folder: Path, *, hidden_size: int, layers: int) -> Heads | None:
    """The heads of a folder, for a decoder of that width and number of blocks; ``None`` where it has none.

    CheckpointError names the file that is missing or damaged, or of another model.
    """
    files = stored_files(folder)
    return read_heads(files, hidden_size=hidden_size, layers=layers, where=f"{folder}/") if files else None


def read_heads(files: Mapping[str, bytes], *, hidden_size: int, layers: int, where: str = "") -> Heads:
    """The heads of the two files; see :func:`load_heads`. ``where`` names their folder in errors."""
    try:
        config = _config(json.loads(files[SETTINGS]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where}{SETTINGS} is damaged ({what}); save the heads again") from None
    if config.layers > layers:
        raise CheckpointError(f"{where}{SETTINGS}: layers is {config.layers}, but the decoder has {layers} blocks")
    try:
        found = load(files[WEIGHTS])
    except SafetensorError as error:
        raise CheckpointError(f"{where}{WEIGHTS} is damaged ({error}); save the heads again") from None
    heads = Heads(config, hidden_size)
    wanted = {
        f"{name}.{kind}": parameter
        for name in config.heads
        for kind, parameter in heads.linear[_key(name)].named_parameters()
    }
    wrong = [name for name in wanted.keys() | found.keys() if not _fits(wanted.get(name), found.get(name))]
    if wrong:
        raise CheckpointError(
            f"{where}{WEIGHTS} does not fit {SETTINGS} and the model: {', '.join(sorted(wrong)[:4])}; copy both files "
            "from one and the same checkpoint"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
    return heads.eval()


def _fits(wanted: Tensor | None, found: Tensor | None) -> bool:
    return wanted is not None and found is not None and wanted.shape == found.shape


def _config(raw: Mapping[str, Any]) -> HeadsConfig:
    heads: dict[str, HeadConfig] = {}
    for name, one in raw["heads"].items():
        size = one.get("size", 1)
        scale = {key: tuple(map(float, one.get(key, ()))) for key in ("mean", "std")}
        heads[name] = HeadConfig(kind=one["kind"], size=size, classes=tuple(one.get("classes", ())), **scale)
        regression = heads[name].kind == "regression" and size >= 1 and all(len(s) == size for s in scale.values())
        if not regression and not (heads[name].kind == "classification" and heads[name].classes):
            raise ValueError(f"the head {name} is neither a regression nor a classification")
    if type(raw["layers"]) is not int or raw["layers"] < 1 or raw["at"] not in PLACES:
        raise ValueError(f"layers is {raw['layers']!r}, at is {raw['at']!r}")
    return HeadsConfig(heads=heads, layers=raw["layers"], at=raw["at"])


def mean_states(hidden: Tensor, owners: Tensor, count: int) -> Tensor:
    """Means of (B, T, hidden) over the tokens of each owner, (count, hidden) float32; 0 for one without tokens.

    ``owners``, (B, T), are numbers below ``count``, or -1 for tokens that belong to none.
    """
    flat, places = hidden.flatten(0, 1).float(), owners.flatten()
    held = (places >= 0)[:, None]
    places = places.clamp(min=0)
    sums = flat.new_zeros(count, flat.shape[1]).index_add(0, places, flat * held)
    counts = flat.new_zeros(count, 1).index_add(0, places, held.float())
    return sums / counts.clamp(min=1)


def last_states(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, hidden): the state of each row's last token, of so many."""
    ends = torch.tensor(lengths, device=hidden.device) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), ends]
