"""Rows divided into training, validation and test, by the pictures that they show.

Rows that share a picture stay together, wherever its files lie: pictures are told apart by their content. The order of
groups follows from the seed and the pictures alone, not from the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from mini_internvl.data import DataError

SPLITS = ("train", "validation", "test")
SHARE = 0.1  # of the pictures, for each split that is taken out of the training data


def divide(rows: Sequence[tuple[Sequence[str], str]], *, seed: int) -> tuple[list[str], int]:
    """The split of each row, from its (keys of pictures, split that the data name or ""), and groups in several splits.

    Splits that the data name hold, and a row without one is trained on; those that are missing are taken out of the
    training data. Where all rows are of one split so, it counts as none.

    Raises:
        DataError: too few pictures, or the data name splits but none to train on.
    """
    groups = _groups([keys for keys, _ in rows])
    given = [split or "train" for _, split in rows]
    if not are_named(given):
        given = ["train"] * len(rows)
    elif "train" not in given:
        raise DataError(f"the data name the splits {' and '.join(sorted(set(given)))}; name one train")
    lacking = [split for split in ("test", "validation") if split not in given]
    of_group: dict[str, set[str]] = {}
    for group, split in zip(groups, given, strict=True):
        of_group.setdefault(group, set()).add(split)
    free = [group for group, splits in of_group.items() if splits == {"train"}]
    if len(free) <= len(lacking):
        raise DataError(
            f"the data show {len(free)} different pictures to train on; {len(lacking) + 1} are the least, to train, to "
            "validate and to test on, and some hundreds are better"
        )
    free.sort(key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    size = max(1, round(SHARE * len(free))) if len(free) > 2 * len(lacking) else 1
    moved = {group: split for place, split in enumerate(lacking) for group in free[place * size : (place + 1) * size]}
    found = [moved.get(group, split) for group, split in zip(groups, given, strict=True)]
    return found, sum(len(splits) > 1 for splits in of_group.values())


def are_named(splits: Iterable[str]) -> bool:
    """Whether the data tell splits apart, from what they name for each row, or ""."""
    return len({split or "train" for split in splits}) > 1


def _groups(rows: Sequence[Sequence[str]]) -> list[str]:
    """The group of each row: rows that share a key, or share one with others of the group."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for keys in rows:
        first = root(keys[0])
        for other in keys[1:]:
            one, two = sorted((first, root(other)))
            parent[two] = first = one
    return [root(keys[0]) for keys in rows]
