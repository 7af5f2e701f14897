"""adapter_config.json as ``peft`` understands it: every field takes effect, is refused by name, or gives a warning.

Patterns are regular expressions, matched as peft does. One that is more than a plain name runs in a process of its own,
which is stopped after :data:`SECONDS`: a hostile or careless one can take for ever.
Source: ``get_pattern_key`` and ``check_target_module_exists`` of peft 0.21.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mini_internvl.model.fields import Fields, short_repr
from mini_internvl.model.files import ADAPTER, CheckpointError, read_json

HASH = "base_sha256"
"""Where the hash of the base's weights stands: in ``auto_mapping``, the one free-form field of peft's config."""
SECONDS = 5.0  # how long the patterns of one adapter may take
MAX_RANK = 100_000
HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva", "true", "false")
"""Values of init_lora_weights that leave the base as it was."""
REFUSED = (
    *("use_dora", "lora_bias", "alora_invocation_tokens", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config"),
    "monteclora_config",
)
"""Fields of variants whose product is not that of plain LoRA."""
KNOWN = (
    *("peft_type", "base_model_name_or_path", "auto_mapping", "r", "lora_alpha", "use_rslora", "lora_dropout"),
    *("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save", "bias"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    # these speak of the training or of other programs and change nothing:
    *("task_type", "inference_mode", "revision", "peft_version", "megatron_config", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
)
"""Fields that are read, or rightly left alone; others are reported."""
PLAIN = re.compile(r"[\w.\-|\\^$]{0,1000}")  # patterns without repetition, groups and sets: matched at once
_MATCHER = """
import json, re, sys
rows, names = json.load(sys.stdin)
json.dump([[bool(re.fullmatch(row, name)) for name in names] for row in rows], sys.stdout)
"""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter folder says of itself."""

    folder: Path
    base: str  # folder or hub id of the model it was trained on, as written; empty when it names none
    base_hash: str | None  # :func:`tensors_hash` of that model; ``None`` in adapters that others wrote
    rank: int  # of the layers that no pattern names, like alpha
    alpha: float
    dropout: float
    rslora: bool  # whether the product is scaled by alpha over the root of the rank
    full: tuple[str, ...]  # modules that it brings whole, such as lm_head (peft's modules_to_save)
    fields: Fields = field(repr=False, compare=False)  # the whole adapter_config.json; errors of it name the file

    @property
    def projector(self) -> bool:
        return "multi_modal_projector" in self.full

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the config says of one adapted layer."""

    rank: int
    alpha: float
    targeted: bool  # whether peft would put an adapter there at all


def read_adapter(folder: str | Path) -> Adapter:
    """Read adapter_config.json; CheckpointError where a field is wrong or the product is not that of plain LoRA."""
    path = Path(folder) / ADAPTER
    raw = read_json(path)
    fields = Fields(raw, error=lambda text: CheckpointError(f"{path}: {text}"))
    if raw.get("peft_type") != "LORA":
        fields.refuse("peft_type", "only LoRA adapters can be read")
    for key in REFUSED:
        if raw.get(key):
            raise fields.error(f"{key} is set; only plain LoRA can be read")
    start = raw.get("init_lora_weights")
    if start is not None and start not in HARMLESS_STARTS:
        raise fields.error(
            f"init_lora_weights is {short_repr(start)}, which changed the base when training began; save the "
            "adapter again with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    fields.text("bias", "none", known=("none", "all", "lora_only"), quiet=True)
    for name in ("rank_pattern", "alpha_pattern"):
        if table := fields.table(name):
            for key in table.raw:
                table.number(key, above_low=True, high=1e9)
    auto = fields.table("auto_mapping")
    return Adapter(
        folder=Path(folder),
        base=fields.text("base_model_name_or_path", "", quiet=True),
        base_hash=auto.text(HASH, None, quiet=True) if auto else None,
        rank=fields.integer("r", high=MAX_RANK),
        alpha=fields.number("lora_alpha", 8.0, low=-1e9, high=1e9),
        dropout=fields.number("lora_dropout", 0.0, high=0.999, quiet=True),
        rslora=fields.flag("use_rslora", False, quiet=True),
        full=tuple(_texts(fields, "modules_to_save")),
        fields=fields,
    )


def layers(info: Adapter, names: Mapping[str, Sequence[str]]) -> tuple[dict[str, Layer], list[str]]:
    """Layer -> what the config says of it; and a line for each field or pattern that changes nothing.

    ``names`` are each layer's in the file and in the model: a pattern may mean either. CheckpointError where one is no
    regular expression or takes for ever.
    """
    fields, raw = info.fields, info.fields.raw
    every = list(dict.fromkeys(name for spellings in names.values() for name in spellings))
    unused = [
        f"{key} of {ADAPTER} is not known here and changes nothing"
        for key, value in raw.items()
        if value and key not in (*KNOWN, *REFUSED)
    ]
    if raw.get("lora_alpha") is None:
        unused.append(f"{ADAPTER} does not give lora_alpha: peft's default 8 was taken")
    if raw.get("fan_in_fan_out"):
        unused.append(f"fan_in_fan_out of {ADAPTER} changes nothing: no layer of this family is stored that way")
    targets, excluded = (_fitting(fields, key, every) for key in ("target_modules", "exclude_modules"))
    ranks, alphas = (_by_pattern(fields, key, every, unused) for key in ("rank_pattern", "alpha_pattern"))
    settings = {}
    for layer, spellings in names.items():
        rank = next((ranks[name] for name in spellings if name in ranks), info.rank)
        alpha = next((alphas[name] for name in spellings if name in alphas), info.alpha)
        wanted = targets is None or not targets.isdisjoint(spellings)
        wanted = wanted and (excluded or set()).isdisjoint(spellings) and _in_chosen_blocks(fields, spellings)
        settings[layer] = Layer(rank=int(rank), alpha=float(alpha), targeted=wanted)
    return settings, unused


def _by_pattern(fields: Fields, name: str, every: Sequence[str], unused: list[str]) -> dict[str, float]:
    """Name -> value of the first pattern that fits it; patterns that fit none are added to ``unused``."""
    table = fields.raw.get(name) or {}
    found: dict[str, float] = {}
    for (key, value), fits in zip(table.items(), _matching(fields, list(table), False, every), strict=True):
        if not any(fits):
            unused.append(f'{name} of {ADAPTER} names "{key}", which no adapted layer is called: it changes nothing')
        for layer in itertools.compress(every, fits):
            found.setdefault(layer, value)
    return found


def _fitting(fields: Fields, name: str, every: Sequence[str]) -> set[str] | None:
    """Names that a field means, by one pattern for whole names or by ends of names; ``None`` when it says nothing."""
    value = fields.raw.get(name)
    if value in (None, [], "", "all-linear"):
        return None
    whole = isinstance(value, str)
    keys = [value] if whole else [re.escape(end) for end in _texts(fields, name)]
    return {name for fits in _matching(fields, keys, whole, every) for name in itertools.compress(every, fits)}


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.raw.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        fields.refuse(name, "it must be a list of names")
    return value or []


def _in_chosen_blocks(fields: Fields, spellings: Iterable[str]) -> bool:
    """layers_to_transform: whether the layer lies in one of the blocks that were trained."""
    chosen = fields.raw.get("layers_to_transform")
    if chosen in (None, []) or isinstance(fields.raw.get("target_modules"), str):
        return True
    numbers = chosen if isinstance(chosen, list) else [chosen]
    if not all(isinstance(number, int) for number in numbers):
        fields.refuse("layers_to_transform", "it must be a list of block numbers")
    lists = fields.raw.get("layers_pattern")
    ends = [lists] if isinstance(lists, str) else _texts(fields, "layers_pattern")
    for name in spellings:
        blocks = re.findall(r"([^.]*)\.(\d+)(?=\.)", name)  # the first number is the block's
        block = next((int(number) for end, number in blocks if not ends or end in ends), None)
        if block in numbers:
            return True
    return False


def _matching(fields: Fields, keys: Sequence[str], whole: bool, names: Sequence[str]) -> list[list[bool]]:
    """For each key, which names it fits: as a whole, or at their end."""
    patterns = list(keys) if whole else [rf"(.*\.)?({key})" for key in keys]
    if all(map(PLAIN.fullmatch, keys)):
        try:
            return [[bool(re.fullmatch(pattern, name)) for name in names] for pattern in patterns]
        except re.error as error:
            raise fields.error(f"{error.pattern!r:.80} is no regular expression ({error.msg})") from None
    command = [sys.executable, "-I", "-c", _MATCHER]
    try:
        done = subprocess.run(
            command, input=json.dumps([patterns, names]), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise fields.error(
            f"its patterns take more than {SECONDS:g} s to match; write the names of the layers instead"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise fields.error(f"a pattern is no regular expression ({last:.120}); save the adapter again")
    matched: list[list[bool]] = json.loads(done.stdout)
    return matched
