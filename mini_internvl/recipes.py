"""Recipes: a whole run as data. YAML in, dotted overrides on top, every field checked before any work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mini_internvl import plugins

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARTS = ("vision", "projector", "llm")
BLOCKS = ("vision", "llm")  # parts that are made of blocks
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
WEIGHTS = ("fp32", "bf16")
PARALLEL = ("ddp", "fsdp")
PACKING = ("fit", "buffer")
LORA_PARTS = ("llm", "vision")
MAY_CHANGE: dict[str, Any] = {"free": True}
"""Metadata of a field that may change while a run goes on: it changes the result by rounding at most, or is guarded by
a hash in the run's state."""
T = TypeVar("T", bound="DataclassInstance")


class RecipeError(ValueError):
    """A recipe that cannot run; the message names the field and the fix."""


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One source of training samples."""

    kind: str
    """``rows`` (a file of rows, a folder of such files, or InternVL's meta JSON; ``jsonl`` means the same), ``synth``
    (drawn on the fly), ``domain`` (a folder of raw records), or the name or path of a row format."""
    name: str = ""
    """Synth kind, or domain name or path."""
    path: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """File or folder of rows, or folder of a domain's raw records."""
    format: str = ""
    """Name or path of the rows' format; left out, each row's keys tell it."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources of the stage."""
    seed: int = 0
    """Seed of a synth source."""
    split: str = "train"
    """Split of a synth or domain source."""
    independent: bool = False
    """Whether the questions of a sample stand alone with its images, as those of most question-answering sets do;
    drawn samples say so themselves."""

    def __post_init__(self) -> None:
        try:
            if self.kind not in ("rows", "jsonl", "synth", "domain"):
                plugins.find("data.formats", self.kind)
            if self.format:
                plugins.find("data.formats", self.format)
        except ValueError as error:
            raise RecipeError(f"data.kind or format: {error}; a kind may also be rows, synth or domain") from None
        if self.weight <= 0:
            raise RecipeError(
                f"data.weight of {self.kind} {self.name or self.path} is {self.weight}; it must be above 0"
            )
        if self.kind == "synth" and (self.independent or self.format):
            raise RecipeError("data.independent and data.format are of rows; drawn samples say so themselves")
        needed = "name" if self.kind in ("synth", "domain") else "path"
        if not getattr(self, needed):
            raise RecipeError(f"data: a {self.kind} source needs a {needed}")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What every loss can be given under its name; its file in ``train/losses`` adds its own."""

    weight: float = 1.0
    """Factor of the loss beside the first one of the stage."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise RecipeError(f"weight is {self.weight}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class PackRecipe:
    """Samples packed into rows up to two budgets: nothing is padded, and every pack is about as much work."""

    tokens: int = 16384
    """Most decoder tokens of a pack."""
    tiles: int = 48
    """Most tiles of a pack, thumbnails counted."""
    method: str = "fit"
    """``fit`` fills best; ``buffer`` is the greedy buffer of the official code."""

    def __post_init__(self) -> None:
        for field in ("tokens", "tiles"):
            if getattr(self, field) < 1:
                raise RecipeError(f"pack.{field} is {getattr(self, field)}; it must be at least 1")
        if self.method not in PACKING:
            raise RecipeError(f'pack.method is "{self.method}"; known: {", ".join(PACKING)}')


@dataclass(frozen=True, kw_only=True)
class PartRecipe:
    """How one part of the model trains in a stage."""

    lr: float | None = None
    """Peak learning rate of the part; the stage's when left out."""
    layers: int | None = None
    """Only the last so many blocks train: of the encoder those that run, of the language model with the final norm and
    the output matrix after them. Embeddings, and all else before these blocks, are frozen. All when left out."""
    lora: bool | None = None
    """True: the part's adapters train; False: its weights, beside adapters of another part. Left out: the adapters
    where the model has any."""

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise RecipeError(f"lr is {self.lr}; it must be above 0")
        if self.layers is not None and self.layers < 1:
            raise RecipeError(f"layers is {self.layers}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage of training, named in logs and checkpoints: so many optimiser steps over a mix of sources."""

    name: str
    data: tuple[SourceRecipe, ...]
    steps: int
    train: tuple[str, ...] | Mapping[str, Any] = PARTS
    """Parts that learn: any of vision, projector, llm; the others are frozen. A list, or names with settings of each
    (:class:`PartRecipe`): ``{vision: {lr: 4e-6, layers: 4}, projector: {}, llm: {lora: true}}``."""
    loss: str | Mapping[str, Mapping[str, Any]] = "answers"
    """Name of a loss, or names with their settings: ``{answers: {reduction: square}, patches: {weight: 0.04}}``. The
    first one counts, the others are added to it. Each is a file in ``train/losses``."""
    optimizer: str = "adamw"
    """``adamw``, or ``muon`` for the matrices of a model that trains from nothing (AdamW for the rest)."""
    lr: float = 4e-5
    """Peak learning rate."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end over the peak."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and scales are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    batch_size: int = 32
    """Samples per step over all processes; packs, where the stage packs."""
    pack: PackRecipe | None = None
    """Budgets of a pack, one of which is a micro batch; left out, samples are padded."""
    micro_batch: int = dataclasses.field(default=16, metadata=MAY_CHANGE)
    """Samples per forward pass; gradients are accumulated over a batch."""
    max_tiles: int = 12
    """Most tiles of a sample, shared by its images, thumbnails not counted."""
    max_length: int = 8192
    """Longest sample in tokens. A longer one gets fewer tiles an image, then loses turns from its end; no picture and
    no answer is cut in the middle, and one whose first answer is too long even so cannot be used."""
    drop_path: float = 0.0
    """Stochastic depth of the encoder's last block."""
    checkpointing: tuple[str, ...] = dataclasses.field(default=(), metadata=MAY_CHANGE)
    """Parts (vision, llm) whose blocks keep their inputs alone for the backward pass and compute the rest again: much
    less memory for about a third more work."""
    cache: bool = False
    """Keep the features of a frozen encoder on disk and read them in later epochs and runs (``train.features``). They
    are rounded to bfloat16."""

    def __post_init__(self) -> None:
        where = f"stage {self.name}"
        unknown = [part for part in self.train if part not in PARTS]
        if unknown or not self.train:
            raise RecipeError(f"{where}: train holds {unknown or 'nothing'}; known parts: {', '.join(PARTS)}")
        if isinstance(self.train, Mapping):
            filled = {name: dataclasses.asdict(part) for name, part in self.parts().items()}
            object.__setattr__(self, "train", filled)  # with every default
        unknown = [part for part in self.checkpointing if part not in BLOCKS]
        if unknown:
            raise RecipeError(f"{where}: checkpointing holds {unknown}; parts with blocks: {', '.join(BLOCKS)}")
        if self.cache and ("vision" in self.train or self.drop_path):
            raise RecipeError(f"{where}: cache needs an encoder that rests: no vision in train, and drop_path 0")
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f'{where}: optimizer is "{self.optimizer}"; known: {", ".join(OPTIMIZERS)}')
        for field in ("steps", "batch_size", "micro_batch", "max_tiles", "max_length"):
            if getattr(self, field) < 1:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be at least 1")
        if not self.data:
            raise RecipeError(f"{where}: data is empty")
        if self.pack and self.pack.tokens < self.max_length:
            raise RecipeError(
                f"{where}: pack.tokens is {self.pack.tokens}, less than max_length {self.max_length}; lower max_length"
            )
        if self.lr <= 0:
            raise RecipeError(f"{where}: lr is {self.lr}; it must be above 0")
        for field in ("warmup_ratio", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be in [0, 1)")
        for field in ("min_lr_ratio", "weight_decay"):
            if getattr(self, field) < 0:
                raise RecipeError(f"{where}: {field} is {getattr(self, field)}; it must be 0 or above")
        if self.clip <= 0:
            raise RecipeError(f"{where}: clip is {self.clip}; it must be above 0")
        try:
            losses = self.loss_settings()
            reached = {part for name in losses for part in plugins.find("train.losses", name).REACHES}
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from None
        if idle := [part for part in self.train if part not in reached]:
            names, reach = " and ".join(losses), ", ".join(part for part in PARTS if part in reached)
            raise RecipeError(f"{where}: loss {names} does not reach {', '.join(idle)}; write train: [{reach}]")
        for name in losses if self.cache else ():
            if "vision" in (reach := plugins.find("train.losses", name).REACHES) and len(reach) == 1:
                raise RecipeError(f"{where}: loss {name} reads the encoder alone, whose features cache keeps; drop one")
        filled = {name: dataclasses.asdict(settings) for name, settings in losses.items()}
        object.__setattr__(self, "loss", filled)  # with every default

    def parts(self) -> dict[str, PartRecipe]:
        """Name of each part that learns -> how it does, checked."""
        if not isinstance(self.train, Mapping):
            return {name: PartRecipe() for name in self.train}
        found = {}
        for name, raw in self.train.items():
            try:
                found[name] = from_dict(PartRecipe, raw or {})
            except RecipeError as error:
                raise RecipeError(f"stage {self.name}: train.{name}: {error}") from None
            if name not in BLOCKS and (found[name].layers, found[name].lora) != (None, None):
                raise RecipeError(f"stage {self.name}: train.{name} has neither blocks nor adapters; leave it lr alone")
        return found

    def loss_settings(self) -> dict[str, Any]:
        """Name of each loss -> its settings, checked."""
        given = {self.loss: {}} if isinstance(self.loss, str) else self.loss
        if not given:
            raise RecipeError("loss is empty; name one, for instance answers")
        if len({plugins.short_name(name) for name in given}) < len(given):
            raise RecipeError(f"two losses share a name: {', '.join(given)}; rename the file of one")
        return {
            name: from_dict(plugins.find("train.losses", name).Settings, raw or {}, f"loss.{name}.")
            for name, raw in given.items()
        }


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """Which linear layers get adapters, by the ends of their names: all linear ones of every block when left out."""

    llm: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Of any language model: fused matrices are named by their parts."""
    vision: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters: the base is frozen, two thin matrices beside each layer learn."""

    rank: int = 16
    """Inner size of the two matrices."""
    alpha: float | None = None
    """The product is scaled by alpha / rank; twice the rank when left out."""
    dropout: float = 0.05
    """On the adapters' inputs while training."""
    parts: tuple[str, ...] = LORA_PARTS
    """Parts of the model that get adapters."""
    targets: LoraTargets = LoraTargets()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecipeError(f"lora.rank is {self.rank}; it must be at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise RecipeError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")
        unknown = [part for part in self.parts if part not in LORA_PARTS]
        if unknown or not self.parts:
            raise RecipeError(f"lora.parts holds {unknown or 'nothing'}; known parts: {', '.join(LORA_PARTS)}")
        for part in self.parts:
            known, given = getattr(LoraTargets, part), getattr(self.targets, part)
            unknown = [name for name in given if name not in known]
            if unknown or not given:
                raise RecipeError(f"lora.targets.{part} holds {unknown or 'nothing'}; known: {', '.join(known)}")

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: stages, one after the other. Its name is that of its default folder."""

    name: str = dataclasses.field(metadata=MAY_CHANGE)
    stages: tuple[StageRecipe, ...]
    model: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """Folder of the starting checkpoint or adapter; empty with ``build`` for a fresh model."""
    build: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """Folder of a config.json with tokenizer files from which a fresh model is made."""
    precision: str = "fp32"
    """Arithmetic: ``fp32``, ``bf16``, ``fp16`` (for cards without bf16; the loss is scaled), or ``auto``: bf16 where
    the processor is fast at it."""
    weights: str = "fp32"
    """What trains is held in: ``fp32``, or ``bf16``, which halves its memory and rounds small updates away."""
    device: str = dataclasses.field(default="auto", metadata=MAY_CHANGE)
    """Where the model trains: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:1``."""
    parallel: str = dataclasses.field(default="ddp", metadata=MAY_CHANGE)
    """How several processes share a model: ``ddp`` (each has a copy) or ``fsdp`` (each has a shard)."""
    stall_seconds: float = dataclasses.field(default=1800.0, metadata=MAY_CHANGE)
    """Seconds without progress after which all processes end, naming step and samples; 0: never."""
    max_faults: float = dataclasses.field(default=0.001, metadata=MAY_CHANGE)
    """Share of the rows that may be unusable, at least one row; they are set aside in quarantine.jsonl. 0: none."""
    seed: int = 0
    """Seed of mixing, fresh weights and drop path."""
    held_out: tuple[SourceRecipe, ...] = ()
    """Sources of the held-out loss, which is measured on ``held_out_samples``."""
    held_out_samples: int = 64
    eval_every: int = dataclasses.field(default=200, metadata=MAY_CHANGE)
    """Steps between held-out measurements."""
    patience: int = dataclasses.field(default=0, metadata=MAY_CHANGE)
    """Held-out measurements in a row without a better score after which a stage ends; 0: it never ends early."""
    save_every: int = dataclasses.field(default=200, metadata=MAY_CHANGE)
    """Steps between checkpoints from which a stopped run goes on."""
    cache_gb: float = dataclasses.field(default=50.0, metadata=MAY_CHANGE)
    """Most gigabytes of kept features on disk, those of other runs included; beyond it nothing more is kept."""
    lora: LoraRecipe | None = None
    """Adapters that train instead of the weights; left out, the weights themselves train."""

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.build):
            raise RecipeError("give either model (a checkpoint to start from) or build (a config for a fresh model)")
        if self.lora and self.build:
            raise RecipeError("lora adapts a checkpoint: give model instead of build")
        if self.precision not in PRECISIONS:
            raise RecipeError(f'precision is "{self.precision}"; known: {", ".join(PRECISIONS)}')
        for field, known in (("weights", WEIGHTS), ("parallel", PARALLEL)):
            if getattr(self, field) not in known:
                raise RecipeError(f'{field} is "{getattr(self, field)}"; known: {", ".join(known)}')
        if not 0 <= self.max_faults <= 1:
            raise RecipeError(f"max_faults is {self.max_faults}; it must be from 0 to 1")
        if self.stall_seconds < 0:
            raise RecipeError(f"stall_seconds is {self.stall_seconds}; it must be 0 or above")
        if self.patience < 0:
            raise RecipeError(f"patience is {self.patience}; it must be 0 or above")
        if self.patience and not self.held_out:
            raise RecipeError(f"patience is {self.patience}, but nothing is measured; give held_out, or leave it out")
        if self.cache_gb < 0:
            raise RecipeError(f"cache_gb is {self.cache_gb}; it must be 0 or above")
        if self.parallel == "fsdp" and any(stage.cache for stage in self.stages):
            raise RecipeError("cache needs an encoder that is whole in every process; write parallel: ddp")
        if not self.stages:
            raise RecipeError("stages is empty")
        for field in ("held_out_samples", "eval_every", "save_every"):
            if getattr(self, field) < 1:
                raise RecipeError(f"{field} is {getattr(self, field)}; it must be at least 1")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise RecipeError(f"two stages share a name: {', '.join(names)}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply ``a.b=c`` overrides (a number after the dot indexes a list: ``stages.0.lr=1e-4``).

    RecipeError: the file is missing or no YAML, or a field is unknown, missing or wrong.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields")
    for override in overrides:
        _override(raw, override)
    try:
        return from_dict(Recipe, raw)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def to_dict(value: Any) -> Any:
    """A recipe as plain lists and dictionaries, for the run's records; fields that are None are left out."""
    return dataclasses.asdict(value, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


def differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of what would change the result of a run that goes on with another recipe.

    Fields marked :data:`MAY_CHANGE` may, and the last stage may get longer: from where it is, the learning rate then
    follows the schedule of the new length.
    """
    if dataclasses.is_dataclass(before) and type(before) is type(now):
        for field in dataclasses.fields(before):
            if not field.metadata.get("free"):
                pair = getattr(before, field.name), getattr(now, field.name)
                for name, old, new in differences(*pair, f"{where}.{field.name}".lstrip(".")):
                    longer = isinstance(before, Recipe) and name == f"stages.{len(before.stages) - 1}.steps"
                    if not longer or new < old:
                        yield name, old, new
    elif isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{where}.{i}")
    elif before != now:
        yield where, before, now


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f'override "{text}" has no "="; write a.b=value')
    *parents, last = key.split(".")
    try:
        new = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f'override "{text}": the value is not valid YAML') from None
    target: Any = raw
    try:
        for name in parents:
            if isinstance(target, dict) and target.get(name) is None:
                target[name] = {}  # of a field that the file leaves out; from_dict refuses unknown ones
            target = target[int(name)] if isinstance(target, list) else target[name]
        name = last
        target[int(last) if isinstance(target, list) else last] = new
    except (KeyError, IndexError, ValueError, TypeError):
        raise RecipeError(f'override "{text}": the recipe has no "{name}" there') from None


def from_dict(cls: type[T], raw: Mapping[str, Any], where: str = "") -> T:
    """Build a frozen dataclass from plain data, checking names and types; RecipeError names the field by its path."""
    if not isinstance(raw, Mapping):
        raise RecipeError(f"{where or cls.__name__} must be a mapping of fields, not {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise RecipeError(f'unknown field "{where}{key}"' + (f'; did you mean "{near[0]}"?' if near else ""))
    for name, field in fields.items():
        if name not in raw and field.default is field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"missing field {where}{name}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, f"{where}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {value!r}")
        kinds = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        if len(kinds) != len(value):
            raise RecipeError(f"{where} must hold {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, value[i], f"{where}.{i}") for i, kind in enumerate(kinds))
    if origin is types.UnionType:
        return _convert_union(args, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a mapping, not {value!r}")
        return dict(value)
    if hint is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} must be {'a number' if hint is float else hint.__name__}, not {value!r}")


def _convert_union(members: Sequence[Any], value: Any, where: str) -> Any:
    """The member that the value is of as it stands, else the first that it can be read as."""
    if value is None and type(None) in members:
        return None
    members = sorted((m for m in members if m is not type(None)), key=lambda m: type(value) is not m)
    for member in members:
        with contextlib.suppress(RecipeError):
            return _convert(member, value, where)
    lists = [member for member in members if typing.get_origin(member) is tuple and isinstance(value, list)]
    if lists or len(members) == 1 or isinstance(value, Mapping):
        return _convert((lists or members)[-1], value, where)  # its error says most
    spoken = {tuple: "a list", Mapping: "a mapping"}
    names = " or ".join(
        spoken.get(typing.get_origin(member) or member, getattr(member, "__name__", str(member))) for member in members
    )
    raise RecipeError(f"{where} must be {names}, not {value!r}")
