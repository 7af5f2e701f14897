"""The processes that share one piece of work, as ``torchrun`` starts them; one process is alone.

Messages between them go by the CPU (gloo), whatever the work runs on. Only the first prints and writes.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
GROUP_TIMEOUT = timedelta(days=7)  # how long the first to finish waits for the last

_joined = False  # whether this process has been one of several


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

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sums of everybody's numbers, each over the processes in order of rank; all call it together."""
        if self.size == 1:
            return list(numbers)
        import torch
        from torch import distributed

        mine = torch.tensor(numbers, dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        return [float(value) for value in torch.stack(everyone).sum(0)]

    def by_first(self, work: Callable[[], T]) -> T:
        """What the first process makes of ``work``; the others wait for it, and raise what it raised."""
        if self.size == 1:
            return work()
        from torch import distributed

        made: list[tuple[Any, Exception | None]] = [(None, None)]
        if self.first:
            try:
                made = [(work(), None)]
            except Exception as error:
                made = [(None, error)]
        distributed.broadcast_object_list(made, src=0)
        result: T
        result, failure = made[0]
        if failure is not None:
            raise failure
        return result


ALONE = Ranks()


@contextmanager
def ranks(backend: str = "gloo") -> Iterator[Ranks]:
    """This process as ``torchrun`` describes it in the environment, joined with the others until the end.

    ``backend`` is torch's: ``cpu:gloo,cuda:nccl`` where tensors on GPUs are exchanged too.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    from torch import distributed

    global _joined
    _joined = True
    distributed.init_process_group(backend, timeout=GROUP_TIMEOUT)
    try:
        rank = distributed.get_rank()
        yield Ranks(rank=rank, size=size, local=int(os.environ.get("LOCAL_RANK", rank)))
    finally:
        distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process is alone, or the first of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def end(code: int) -> None:
    """End the process now where it has been one of several, and do nothing otherwise.

    Torch never ends the threads of a group that DDP or FSDP2 have used, and a usual end of the process sometimes aborts
    in them, after all is done and written.
    """
    if not _joined:
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
