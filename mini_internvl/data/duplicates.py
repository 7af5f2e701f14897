"""Rows that say again what an earlier row says, found from hashes of eight bytes; no row is compared with all others.

Images count as one where they look the same (``inputs/hashes.py``). An image with other questions is no duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mini_internvl.inputs.hashes import Look, Looks


class Appearances:
    """Numbers of images, one for all that look the same."""

    def __init__(self) -> None:
        self._looks, self._of_look = Looks(), list[int]()
        self._known, self._count = dict[str, int](), 0

    def number(self, digest: str, look: Look | None) -> int:
        """The number of an image by its SHA-256 and its look; without a look it is equal to its own bytes alone."""
        if digest in self._known:
            return self._known[digest]
        met = None if look is None else self._looks.similar(look)
        if met is not None:
            found = self._of_look[met]
        else:
            found, self._count = self._count, self._count + 1
            if look is not None:
                self._looks.add(look)
                self._of_look.append(found)
        self._known[digest] = found
        return found


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """(rows,) the first row with each row's hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse]


class Pairs:
    """Questions with their answers, of rows in order."""

    def __init__(self) -> None:
        self._rows, self._hashes = list[int](), list[int]()

    def add(self, row: int, images: Iterable[int], said: Iterable[int]) -> None:
        """Add the hashes of a row's pairs, about images by their numbers."""
        about = hash(tuple(images)) & (1 << 64) - 1
        for one in said:
            self._rows.append(row)
            self._hashes.append(one ^ about)

    def repeated(self, count: int) -> np.ndarray:
        """(count,) for each row the earlier one that has its first pair, where earlier ones have all of its pairs; else
        the row itself."""
        found = np.arange(count)
        if not self._rows:
            return found
        rows = np.array(self._rows)
        earlier = rows[first_equal(np.array(self._hashes, np.uint64))]
        own, first = np.unique(rows, return_index=True)
        again = np.logical_and.reduceat(earlier < rows, first)
        found[own[again]] = earlier[first[again]]
        return found
