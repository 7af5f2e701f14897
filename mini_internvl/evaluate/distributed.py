"""The processes that share an evaluation, as ``torchrun`` starts them; one process is alone.

Each answers its own batches and writes them into the same cache; the first also gets the others' answers by message, so
that machines without a common disk work too. Only the first prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
GROUP_TIMEOUT = timedelta(days=7)  # how long the first to finish waits for the last


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    size: int = 1
    local: int = 0  # its number on its machine, which is that of its GPU

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def exchange(self, mine: T) -> list[T]:
        """Everybody's object, in order of rank; all processes call it together."""
        if self.size == 1:
            return [mine]
        from torch import distributed

        everyone: list[T] = [mine] * self.size
        distributed.all_gather_object(everyone, mine)
        return everyone


ALONE = Ranks()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process as ``torchrun`` describes it in the environment, joined with the others until the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=GROUP_TIMEOUT)
    try:
        rank = distributed.get_rank()
        yield Ranks(rank=rank, size=size, local=int(os.environ.get("LOCAL_RANK", rank)))
    finally:
        distributed.destroy_process_group()
