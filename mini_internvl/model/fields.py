"""Fields of a JSON configuration, checked by kind and range where they are read: config.json and adapter_config.json.

null means absent: a stated default, which is written down for whoever wants to tell it, or an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn


class ConfigError(ValueError):
    """A config.json that is not of this family, or is wrong in one field."""


NEEDED: Any = object()  # stands for "no default": the field must be there


class Fields:
    """A dictionary of a configuration, of unknown content.

    ``where`` is its place in the file, such as "llm_config", or "" for the whole file. Defaults that were taken are
    added to ``taken`` as "llm_config.rope_theta 10000.0". ``error`` makes what is raised.
    """

    def __init__(
        self,
        raw: object,
        where: str = "",
        taken: list[str] | None = None,
        error: Callable[[str], ValueError] = ConfigError,
    ) -> None:
        self.where, self.error = where, error
        self.taken: list[str] = [] if taken is None else taken
        if not isinstance(raw, Mapping):
            raise error(f"{where or 'the configuration'} is {short_repr(raw)}; it must be an object with fields")
        self.raw: Mapping[str, Any] = raw

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def refuse(self, name: str, expected: str) -> NoReturn:
        raise self.error(f"{self.path(name)} is {short_repr(self.raw.get(name))}; {expected}")

    def has(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def integer(self, name: str, default: Any = NEEDED, *, low: int = 1, high: int, quiet: bool = False) -> Any:
        """A whole number; ``quiet`` leaves a taken default unmentioned, for it changes no answer."""
        value = self._value(name, default, quiet)
        if self.has(name) and not (is_integer(value) and low <= value <= high):
            self.refuse(name, f"it must be a whole number from {low:,} to {high:,}")
        return value

    def number(
        self,
        name: str,
        default: Any = NEEDED,
        *,
        low: float = 0.0,
        high: float,
        above_low: bool = False,
        quiet: bool = False,
    ) -> Any:
        """A finite number; ``above_low`` leaves ``low`` itself out."""
        value = self._value(name, default, quiet)
        if not self.has(name):
            return value
        if not (is_number(value) and low <= value <= high) or (above_low and value == low):
            self.refuse(name, f"it must be a number {'above' if above_low else 'from'} {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool, *, quiet: bool = False) -> bool:
        value = self._value(name, default, quiet)
        if not (isinstance(value, int) and value in (0, 1)):
            self.refuse(name, "it must be true or false")
        return bool(value)

    def text(self, name: str, default: Any = NEEDED, *, known: Sequence[str] = (), quiet: bool = False) -> Any:
        """A text, one of ``known`` when they are given."""
        value = self._value(name, default, quiet)
        if self.has(name) and not isinstance(value, str):
            self.refuse(name, "it must be a text")
        if known and value not in known:
            raise self.error(f'{self.path(name)} is "{value}"; known: {", ".join(known)}')
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """``count`` finite numbers above zero."""
        values = self._value(name, NEEDED, False)
        if not isinstance(values, list | tuple) or len(values) != count:
            held = f"holds {len(values)} numbers" if isinstance(values, list | tuple) else f"is {short_repr(values)}"
            raise self.error(f"{self.path(name)} {held}, not {count}")
        if not all(is_number(value) and value > 0 for value in values):
            self.refuse(name, "all its numbers must be above zero")
        return tuple(map(float, values))

    def table(self, name: str) -> Fields | None:
        return Fields(self.raw[name], self.path(name), self.taken, self.error) if self.has(name) else None

    def needed_table(self, name: str) -> Fields:
        return Fields(self._value(name, NEEDED, False), self.path(name), self.taken, self.error)

    def _value(self, name: str, default: Any, quiet: bool) -> Any:
        if self.has(name):
            return self.raw[name]
        if default is NEEDED:
            raise self.error(f'{f"{self.where}: " if self.where else ""}the field "{name}" is missing')
        if not quiet:
            self.taken.append(f"{self.path(name)} {default}")
        return default


def agreed(kind: str, places: Iterable[Fields], names: Sequence[str], read: Callable[[Fields, str], Any]) -> Any:
    """The one value of a field that may stand at several places under several names; ``None`` where it stands nowhere.

    ConfigError names two places with different values.
    """
    found = [(where.path(name), read(where, name)) for where in places for name in names if where.has(name)]
    for path, value in found[1:]:
        if value != found[0][1]:
            raise ConfigError(f"{found[0][0]} is {found[0][1]} but {path} is {value}; keep the right {kind} alone")
    return found[0][1] if found else None


def is_integer(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def listed(names: Sequence[str]) -> str:
    """ "a, b, c, d and 3 more" """
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def short_repr(value: object) -> str:
    """A value of unknown kind, short enough for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:  # longer than Python writes
        return "a huge number"
    return f"{value!r:.60}"
