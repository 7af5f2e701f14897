"""Parquet as a kind of file that holds rows: they are found by number, and read a row group at a time."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError
from mini_internvl.data.containers import Container, Span


class Parquet(Container):
    """A Parquet file, one row group in memory at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise DataError(f"{path} needs pyarrow: pip install 'mini-internvl[data]'") from None
        try:
            metadata = pyarrow.parquet.read_metadata(path)
            self.classes = _class_names((metadata.metadata or {}).get(b"huggingface", b"{}"))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Parquet file, or it is cut off ({error}); fetch it again") from None
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.groups = [0, *itertools.accumulate(rows)]  # the first row of each, and the number of rows
        self._held: tuple[int, Any] = (-1, None)

    def spans(self) -> Iterator[Span]:
        for number in range(self.groups[-1]):
            yield Span(number, 0, number + 1, self.read(number, 0))

    def places(self) -> Iterator[tuple[int, int, int]]:
        yield from ((number, 0, number + 1) for number in range(self.groups[-1]))

    def batches(self, rows: int, size: int) -> Iterator[list[tuple[int, int, int]]]:
        """Rows of one group, so that a group is read by few processes."""
        for first, end in itertools.pairwise(self.groups):
            for start in range(first, end, rows):
                yield [(number, 0, number + 1) for number in range(start, min(start + rows, end))]

    def contents(self, places: Sequence[tuple[int, int, int]]) -> Iterator[Any]:
        yield from (self.read(start, size) for start, size, _ in places)

    def read(self, start: int, size: int) -> Any:
        """The row as an object."""
        import pyarrow.parquet

        group = bisect.bisect_right(self.groups, start) - 1
        if self._held[0] != group:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                self._held = (group, file.read_row_group(group, use_threads=False))
        return self._held[1].slice(start - self.groups[group], 1).to_pylist()[0]

    def decode(self, data: dict[str, Any]) -> dict[str, Any]:
        """Without what is null: every row has the keys of all. Numbers of classes become their names."""
        known = {key: value for key, value in data.items() if value is not None}
        for key, names in self.classes.items():
            if type(number := known.get(key)) is int and 0 <= number < len(names):
                known[key] = names[number]
        return known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (-1, None)}


def _class_names(description: bytes) -> dict[str, list[str]]:
    """Column -> names of its classes, from what ``datasets`` writes into a file's schema."""
    try:
        features = json.loads(description)["info"]["features"]
        return {column: list(one["names"]) for column, one in features.items() if one.get("_type") == "ClassLabel"}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
