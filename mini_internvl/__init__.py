"""mini-internvl: run, train, adapt and evaluate pocket vision-language models of the InternVL2 family.

``load_model`` gives a torch module, ``load`` an engine that answers messages. Both import torch when first used;
importing this package alone is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "GenerationConfig", "Reply", "__version__", "load", "load_model"]

if TYPE_CHECKING:
    from mini_internvl.engine import Engine, GenerationConfig, Reply, load, load_model


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("mini_internvl.engine"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
