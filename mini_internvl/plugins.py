"""Plug-ins: a domain or a benchmark is a module found by its file name; there is no list to edit.

A package folder (``domains``, ``benchmarks``) holds one file per plug-in. Files whose name begins with an underscore
are helpers of their neighbours and no plug-ins. Listing imports nothing.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def list_names(folder: str) -> list[str]:
    """Names of the plug-ins in a package folder such as ``"domains"``, sorted.

    Raises:
        ValueError: the package has no such folder.
    """
    place = Path(__file__).parent.joinpath(*folder.split("."))
    if not all(part.isidentifier() for part in folder.split(".")) or not (place / "__init__.py").is_file():
        raise ValueError(f'mini_internvl has no plug-in folder "{folder}"')
    return sorted(module.name for module in pkgutil.iter_modules([str(place)]) if not module.name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The plug-in ``name`` of a package folder; a hyphen stands for an underscore (``driving-sim``).

    Raises:
        ValueError: unknown folder, or unknown name; the message gives the nearest names.
    """
    known = list_names(folder)
    wanted = name.strip().replace("-", "_")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f'no {folder} plug-in is called "{name}"; {hint}')
    return importlib.import_module(f"mini_internvl.{folder}.{wanted}")
