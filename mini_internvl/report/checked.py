"""Reading JSON objects that others wrote: what is missing or of the wrong kind is named by its key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_NAMES: dict[type, str] = {
    str: "a text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
}


class Malformed(ValueError):
    """What is wrong and under which key; the file's name is added outside."""


def read_object(path: Path, *, missing: str, fix: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: there is no such file (``missing`` is added as a hint), or no JSON object in it (``fix`` is added).
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist; {missing}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {fix}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: the file must hold a JSON object; {fix}")
    return raw


def get(holder: Any, key: str, kind: type, where: str = "", *, default: Any = None) -> Any:
    """``holder[key]``, checked; null and absent give the default, and are refused without one."""
    if not isinstance(holder, dict):
        raise Malformed(f'"{where.rstrip(".")}" must be an object')
    value = holder.get(key)
    if value is None:
        if default is None:
            raise Malformed(f'the key "{where}{key}" is missing')
        return default
    if not isinstance(value, kind):
        raise Malformed(f'"{where}{key}" must be {_NAMES[kind]}')
    return value


def is_number(value: Any) -> bool:
    """Whether it is a number, NaN included: a metric that could not be computed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)
