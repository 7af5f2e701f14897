"""Lists that tables hold as the text of a Python list, such as ``['12', "don't"]``."""

from __future__ import annotations

import ast
import warnings
from typing import Any


def read_list(text: str) -> list[Any] | None:
    """The list that a text spells; ``None`` where it spells none. Nothing is computed."""
    if "[" not in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of odd escapes such as "\d"
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None
