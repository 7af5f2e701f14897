"""Hundreds of damaged folders: each loads or is refused in plain words, and what is refused is never called healthy."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mini_internvl.commands.doctor import diagnose
from mini_internvl.engine import load
from mini_internvl.model.adapter import save_adapter, tensors_hash
from mini_internvl.model.checkpoint import load_model
from mini_internvl.model.lora import LoraConfig, add_lora

ODD: tuple[Any, ...] = (
    *(None, {}, [], [None], "", "x", "\ud83d", "<|im_end|>", True, False, {"a": 1}, [1, 2], [[[[]]]]),
    *(-1, 0, 1, 2, 3, 0.5, -0.0, 7, 97, 10**6, 10**9, 10**30, 10**400, 1e300, math.inf, math.nan, "9" * 50, ["a", 3]),
    {"content": None},
)
"""Values that are put in the place of others."""
JSONS = (
    *("config.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    "generation_config.json",
)
WEIGHTS = ("model.safetensors", "vocab.json", "merges.txt")


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *places(inner)]
    return found


def damage(path: Path, chance: random.Random) -> None:
    """Another value, a missing key, flipped bytes or a cut."""
    content = path.read_bytes()
    kind = chance.choice(("value", "value", "value", "key", "bytes", "cut")) if path.suffix == ".json" else "bytes"
    if kind in ("value", "key"):
        raw = json.loads(content)
        spots = places(raw)
        if not spots:
            return
        container, key = chance.choice(spots)
        if kind == "key":
            del container[key]
        else:
            container[key] = chance.choice(ODD)
        path.write_text(json.dumps(raw))
    elif kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content) + 1)])
    else:
        spoilt = bytearray(content)
        for _ in range(chance.choice((1, 3, 40))):
            spoilt[chance.randrange(min(len(spoilt), 3000))] = chance.randrange(256)
        path.write_bytes(spoilt)


def check(folder: Path) -> bool:
    """Whether it loads; anything but an error of ours, of one line or two, is a fault."""
    problem = None
    try:
        load(folder, device="cpu")
    except ValueError as error:
        problem = error
    healthy = diagnose(folder).healthy
    if problem is not None and "names no base model" not in str(problem) and "fetched from the hub" not in str(problem):
        assert type(problem).__module__.startswith("mini_internvl"), repr(problem)
        assert len(str(problem).splitlines()) <= 2, problem
        assert not healthy, f"doctor calls healthy what loading refuses: {problem}"
    return problem is None


def damaged(folder: Path, names: tuple[str, ...], seed: int, times: int) -> set[bool]:
    chance = random.Random(seed)
    whole = {name: (folder / name).read_bytes() for name in names}
    outcomes = set()
    for number in range(times):
        for name in chance.sample(names, chance.choice((1, 1, 2))):
            damage(folder / name, chance)
        try:
            outcomes.add(check(folder))
        except Exception as error:
            held = {name: (folder / name).read_bytes() for name in names}
            spoilt = {name: content[:3000] for name, content in held.items() if content != whole[name]}
            raise AssertionError(f"case {number} of seed {seed}: {spoilt}") from error
        for name, content in whole.items():
            (folder / name).write_bytes(content)
    return outcomes


@pytest.fixture
def base(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model = add_lora(load_model(base), LoraConfig(rank=2))
    return save_adapter(model, tmp_path / "adapter", base="../base", base_hash=tensors_hash(base), full=("lm_head",))


def test_a_few_damaged_folders(base, adapter):
    names = tuple(name for name in (*JSONS, *WEIGHTS) if (base / name).exists())
    assert damaged(base, names, 1, 16) == {True, False}
    assert False in damaged(adapter, ("adapter_config.json", "adapter_model.safetensors"), 1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_hundreds_of_damaged_folders(base, adapter, seed):
    names = tuple(name for name in (*JSONS, *WEIGHTS) if (base / name).exists())
    damaged(base, names, seed, 100)
    damaged(adapter, ("adapter_config.json", "adapter_model.safetensors"), seed, 40)
