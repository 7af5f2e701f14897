"""Plug-ins: a domain, a benchmark or a row format is a module found by its file name; there is no list to edit.

A package folder (``domains``, ``benchmarks``) holds one file per plug-in. Files whose name begins with an underscore
are helpers of their neighbours and no plug-ins. Listing imports nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
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


def find(folder: str, name: str, contract: Sequence[str] = ()) -> ModuleType:
    """The plug-in ``name`` of a package folder; a hyphen stands for an underscore (``driving-sim``).

    A name that ends in ``.py`` is the path of a plug-in of your own (``./my_domain.py``).

    Args:
        folder: for instance ``"domains"``.
        name: the plug-in's name, or a path.
        contract: names that the folder's plug-ins must have.

    Raises:
        ValueError: unknown folder or name (the message gives the nearest names), or a file of your own that is missing,
            fails to import or lacks one of ``contract``.
    """
    if name.endswith(".py"):
        return _own_file(folder, Path(name), tuple(contract))
    known = list_names(folder)
    wanted = name.strip().replace("-", "_")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f'no {folder} plug-in is called "{name}"; {hint}')
    return importlib.import_module(f"mini_internvl.{folder}.{wanted}")


def _own_file(folder: str, path: Path, contract: tuple[str, ...]) -> ModuleType:
    list_names(folder)
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
    module = sys.modules[name]
    if missing := [wanted for wanted in contract if not hasattr(module, wanted)]:
        raise ValueError(f"{path} has no {', '.join(missing)}; a file for {folder} defines {', '.join(contract)}")
    return module
