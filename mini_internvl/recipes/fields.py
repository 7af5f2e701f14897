"""Dataclasses from plain data: names and types are checked, and an error names the field by its path."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAY_CHANGE: dict[str, Any] = {"free": True}
"""Metadata of a field that may change while a run goes on: it changes the result by rounding at most, or is guarded by
a hash in the run's state."""
T = TypeVar("T", bound="DataclassInstance")


class RecipeError(ValueError):
    """A recipe that cannot run; the message names the field and the fix."""


def from_dict(cls: type[T], raw: Mapping[str, Any], where: str = "") -> T:
    """Build a frozen dataclass from plain data, checking names and types; RecipeError names the field by its path."""
    if not isinstance(raw, Mapping):
        raise RecipeError(f"{where or cls.__name__} must be a mapping of fields, not {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise RecipeError(f'unknown field "{where}{key}"' + (f'; did you mean "{near[0]}"?' if near else ""))
    for name, field in fields.items():
        if name not in raw and field.default is field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"missing field {where}{name}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, f"{where}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {value!r}")
        kinds = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        if len(kinds) != len(value):
            raise RecipeError(f"{where} must hold {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, value[i], f"{where}.{i}") for i, kind in enumerate(kinds))
    if origin is types.UnionType:
        return _convert_union(args, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a mapping, not {value!r}")
        return dict(value)
    if hint is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} must be {'a number' if hint is float else hint.__name__}, not {value!r}")


def _convert_union(members: Sequence[Any], value: Any, where: str) -> Any:
    """The member that the value is of as it stands, else the first that it can be read as."""
    if value is None and type(None) in members:
        return None
    members = sorted((m for m in members if m is not type(None)), key=lambda m: type(value) is not m)
    for member in members:
        with contextlib.suppress(RecipeError):
            return _convert(member, value, where)
    lists = [member for member in members if typing.get_origin(member) is tuple and isinstance(value, list)]
    if lists or len(members) == 1 or isinstance(value, Mapping):
        return _convert((lists or members)[-1], value, where)  # its error says most
    spoken = {tuple: "a list", Mapping: "a mapping"}
    names = " or ".join(
        spoken.get(typing.get_origin(member) or member, getattr(member, "__name__", str(member))) for member in members
    )
    raise RecipeError(f"{where} must be {names}, not {value!r}")
