"""Row formats: one file each, found by its name.

A format file says which rows it reads and turns them into messages. It has exactly::

    KEYS                 the keys it reads, and those that hold nothing for the model (``width``).
    reads(keys)          whether a row with these keys is of this format.
    messages(raw)        the row's conversation, image paths as they stand. ValueError says which field is wrong.
    EXAMPLE              (raw row, Sample): a worked example; the Sample's ``source`` is ``example``.

The keys in ``COMMON`` are read for every format (``data.rows``). A format of your own is a file of this shape anywhere:
name it by its path (``format: ./my_format.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mini_internvl import plugins
from mini_internvl.data.formats._turns import absent

FOLDER = "data.formats"
CONTRACT = ("KEYS", "reads", "messages", "EXAMPLE")
COMMON = frozenset({"id", "source", "max_tiles", "patch_annotations", "independent", "targets", "split"})
"""Keys that every format's rows may hold; ``split`` is read where own data are divided (``domains/_own.py``)."""


@functools.lru_cache(maxsize=1024)
def find(keys: tuple[str, ...], name: str = "") -> ModuleType:
    """The format called ``name``, or the one that reads rows with these keys; ValueError where there is none."""
    if name:
        return plugins.find(FOLDER, name)
    for module in _all():
        if module.reads(frozenset(keys)):
            return module
    shown = ", ".join(keys)
    row = f"a row with the keys {shown[:200]}" if shown else "an empty row"
    raise ValueError(
        f"no format reads {row}; a row holds conversations or messages, or columns such as image, question and answer; "
        "or name its format"
    )


def unread(raw: Mapping[str, Any], name: str = "") -> list[str]:
    """Keys of a row that hold something and that its format does not read."""
    return [key for key in _others(tuple(raw), name) if not absent(raw[key])]


@functools.lru_cache(maxsize=1024)
def _others(keys: tuple[str, ...], name: str) -> list[str]:
    known = find(keys, name).KEYS
    return [key for key in keys if key not in known and key not in COMMON]


@functools.cache
def _all() -> list[ModuleType]:
    return [plugins.find(FOLDER, name) for name in plugins.list_names(FOLDER)]
