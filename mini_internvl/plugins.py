"""Plug-ins: a domain, a benchmark, a loss or a row format is a module found by its file name; there is no list to edit.

A package folder (``domains``, ``benchmarks``) holds one file per plug-in; what each must define is the folder's
``CONTRACT``, checked when one is found. Files whose name begins with an underscore are helpers of their neighbours and
no plug-ins. Listing imports nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType


def list_names(folder: str) -> list[str]:
    """Names of the plug-ins in a package folder such as ``"domains"``, sorted; ValueError without that folder."""
    place = Path(__file__).parent.joinpath(*folder.split("."))
    if not all(part.isidentifier() for part in folder.split(".")) or not (place / "__init__.py").is_file():
        raise ValueError(f'mini_internvl has no plug-in folder "{folder}"')
    return sorted(module.name for module in pkgutil.iter_modules([str(place)]) if not module.name.startswith("_"))


def short_name(name: str) -> str:
    """A plug-in's name as files and results have it: ``driving-sim`` and ``./x/driving-sim.py`` are ``driving_sim``."""
    return Path(name.strip()).stem.replace("-", "_") if name.endswith(".py") else name.strip().replace("-", "_")


def find(folder: str, name: str) -> ModuleType:
    """The plug-in ``name`` of a package folder; a hyphen stands for an underscore (``driving-sim``).

    A name that ends in ``.py`` is the path of a plug-in of your own (``./my_domain.py``), from the working folder.

    Raises:
        ValueError: unknown folder or name (the message gives the nearest names), a file of your own that is missing or
            fails to import, or a name of the folder's contract that the plug-in does not define.
    """
    known = list_names(folder)
    if name.endswith(".py"):
        module = _own_file(folder, Path(name))
    elif (wanted := short_name(name)) in known:
        module = importlib.import_module(f"mini_internvl.{folder}.{wanted}")
    else:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f'no {folder} plug-in is called "{name}"; {hint}')
    contract = getattr(importlib.import_module(f"mini_internvl.{folder}"), "CONTRACT", ())
    if missing := [wanted for wanted in contract if not hasattr(module, wanted)]:
        raise ValueError(f"{name} has no {', '.join(missing)}; a file for {folder} defines {', '.join(contract)}")
    return module


def own_path(plugin: ModuleType) -> str:
    """The path of a plug-in that is a file of your own; empty for one of the package."""
    return "" if plugin.__name__.startswith(f"{__package__}.") else str(getattr(plugin, "__file__", None) or "")


def _own_file(folder: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a file for {folder}, or a plug-in's name")
    place = str(path.resolve())
    name = f"{path.stem}_{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"{path} cannot be imported ({type(error).__name__}: {error})") from error
    return sys.modules[name]
