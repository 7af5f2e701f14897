"""The two ends of ``minivl merge --alpha``: a base and what was trained from it, checked, and written in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mini_internvl.engine import hub
from mini_internvl.files import copy_file, new_folder, write_json
from mini_internvl.inputs.tokenizer_files import FILES, VOCABULARIES, load_tokenizer
from mini_internvl.model.adapter import check_base, is_adapter, load_adapter, tensors_hash
from mini_internvl.model.adapter_config import read_adapter
from mini_internvl.model.checkpoint import image_token_id, layout_of, load_model, read_config, read_state
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import CONFIG, CheckpointError, write_tensors
from mini_internvl.model.heads import stored_files
from mini_internvl.model.interpolation import State, check_alike, interpolate
from mini_internvl.model.lora import merge_lora


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Both ends of the line. What is written has layout, type, configuration and tokenizer of ``home``."""

    base: Path
    trained: Path
    home: Path  # the trained checkpoint's folder, for an adapter that of its base
    config: VLMConfig
    layout: ModuleType
    dtype: torch.dtype
    base_state: State
    trained_state: State

    def write(
        self, alpha: float, output: Path, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Any]:
        """Write the checkpoint at ``alpha``, complete or not at all; at most one shard is held.

        Heads on hidden states read those of the trained weights, so they go along at 1 alone.
        """
        dtype = str(self.dtype).removeprefix("torch.")
        token = image_token_id(self.home, self.config)
        raw = self.layout.from_official_config(self.config.official, token, dtype)
        heads = stored_files(self.trained)
        pairs = interpolate(
            self.base_state, self.trained_state, self.config, self.layout, alpha=alpha, dtype=self.dtype
        )

        def counted() -> Any:
            for number, pair in enumerate(pairs, 1):
                progress(number, len(self.base_state))
                yield pair

        with new_folder(output) as temporary:
            for name in FILES:
                if (self.home / name).exists():
                    copy_file(self.home / name, temporary / name)
            for name, content in heads.items() if alpha == 1 else ():
                (temporary / name).write_bytes(content)
            write_json(temporary / CONFIG, raw)
            write_tensors(counted(), temporary)
        return {
            "folder": str(output),
            "alpha": alpha,
            "base": str(self.base),
            "trained": str(self.trained),
            "dtype": dtype,
            "heads_left_out": bool(heads) and alpha != 1,
        }


def read_ends(trained: str | Path, base: str | None) -> Ends:
    """Both ends, checked: one family, equal shapes, equal tokenizers.

    ``trained`` is a full checkpoint or an adapter, which is merged in memory, in float32; the base of an adapter is its
    own unless ``base`` names another place of it.

    Raises:
        ValueError: a full checkpoint without a base, or two that do not belong together; the message says how.
    """
    folder = hub.resolve(trained)
    if is_adapter(folder):
        return _adapter_ends(folder, base)
    if base is None:
        raise CheckpointError(f"{folder} does not say what it was trained from; name that checkpoint with --base")
    first = hub.resolve(base)
    if is_adapter(first):
        raise CheckpointError(f"{first} is an adapter; merge it into its base first, or give another --base")
    mine, other = read_config(folder), read_config(first)
    for what, one, two in (
        ("the language model", mine.llm.architecture, other.llm.architecture),
        ("the chat template", mine.template, other.template),
    ):
        if one != two:
            raise CheckpointError(
                f"{what} is {one} in {folder}, {two} in {first}; give the checkpoint that the first was trained from"
            )
    _check_tokenizers(folder, first)
    states = [dict(read_state(place)) for place in (first, folder)]
    check_alike(states[0], states[1], first, folder)
    return _ends(first, folder, folder, states[0], states[1])


def _adapter_ends(folder: Path, base: str | None) -> Ends:
    home = hub.base_folder(folder, base)
    info = read_adapter(folder)
    if info.base_hash:
        check_base(folder, info, tensors_hash(home))
    model = load_model(home)
    load_adapter(model, folder)
    return _ends(home, folder, home, dict(read_state(home)), merge_lora(model).state_dict())


def _ends(base: Path, trained: Path, home: Path, first: State, second: State) -> Ends:
    dtype = next(tensor.dtype for _, tensor in read_state(home))
    config, layout = read_config(home), layout_of(home)
    paths: dict[str, Any] = {"base": base, "trained": trained, "home": home}
    return Ends(**paths, config=config, layout=layout, dtype=dtype, base_state=first, trained_state=second)


def _check_tokenizers(first: Path, second: Path) -> None:
    """CheckpointError unless both folders give every token the same number."""
    names = [name for name in (*VOCABULARIES, "tokenizer.json") if (first / name).exists()]
    if names and all((second / n).exists() and (first / n).read_bytes() == (second / n).read_bytes() for n in names):
        return
    one, two = load_tokenizer(first), load_tokenizer(second)
    why = f"{one.size:,} tokens and {two.size:,}" if one.size != two.size else ""
    for number in range(one.size if not why else 0):
        texts = [tokenizer.decode([number], skip_special=False) for tokenizer in (one, two)]
        if texts[0] != texts[1]:
            why = f"token {number} is {texts[0]!r} and {texts[1]!r}"
            break
    if why:
        raise CheckpointError(
            f"{first} and {second} have different tokenizers: {why}; weights between them mean nothing"
        )
