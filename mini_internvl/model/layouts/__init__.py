"""Checkpoint layouts, one file each, found by what config.json says.

A file holds::

    NAME                  what the user calls it: official, native or mini
    matches               config.json dictionary -> is it of this layout
    to_official_config    config.json dictionary -> the official one, which is the form that VLMConfig reads
    from_official_config  official dictionary, id of <IMG_CONTEXT>, dtype name -> config.json of this layout
    read                  (name, tensor) pairs of the files, VLMConfig -> pairs under names of ``InternVL.state_dict``
    write                 our tensors by name, VLMConfig -> pairs under this layout's names

``read`` and ``write`` only rename, cut and glue rows: going there and back is exact in every bit. A tensor that a
layout does not know passes through under its own name, so that the caller can list it as unexpected.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.model.config import ConfigError, of_another_model

CONTRACT = ("NAME", "matches", "to_official_config", "from_official_config", "read", "write")


@functools.cache
def layouts() -> dict[str, ModuleType]:
    modules = [plugins.find("model.layouts", name) for name in plugins.list_names("model.layouts")]
    return {module.NAME: module for module in modules}


def find(name: str) -> ModuleType:
    """A layout by its name; ConfigError lists the known ones."""
    if name not in layouts():
        raise ConfigError(f'unknown layout "{name}"; known: {", ".join(layouts())}')
    return layouts()[name]


def detect(raw: Mapping[str, Any]) -> ModuleType:
    """The layout of a config.json dictionary; ConfigError when it is of another model."""
    for module in layouts().values():
        if module.matches(raw):
            return module
    raise ConfigError(
        f"{of_another_model(raw)}; give a folder in the official InternVLChatModel layout, the Hugging Face native one "
        "or our own"
    )
