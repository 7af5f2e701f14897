"""Work on many items in worker processes or threads, results in order, few items in memory."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mini_internvl.data import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONTEXT: str | None = None  # how processes begin: ``None`` is the platform's way

_task: Callable[[Any], Any] | None = None  # of this worker process


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``work`` of every item, in order; in this process with fewer than two workers or items.

    Workers are forked where that is the platform's way; elsewhere ``work`` must pickle. They end with this process,
    and leave Ctrl-C to it. DataError where one was ended from outside.
    """
    items = iter(items)
    first = list(itertools.islice(items, 2))
    if workers < 2 or len(first) < 2:
        yield from map(work, itertools.chain(first, items))
        return
    context = multiprocessing.get_context(CONTEXT)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work, os.getpid()))
    try:
        yield from _in_order(pool, _do, itertools.chain(first, items), 4 * workers)
    except BrokenProcessPool:
        raise DataError("a worker process was ended, perhaps for want of memory; use fewer workers") from None


def threaded_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The same in threads, for work that waits or frees the interpreter: reading, decoding and writing images."""
    return _in_order(ThreadPoolExecutor(workers), work, items, 4 * workers)


def _in_order(pool: Executor, work: Callable[[Item], Any], items: Iterable[Item], ahead: int) -> Iterator[Any]:
    """Results in order, at most so many of them ahead; the pool ends with the iterator."""
    pending = collections.deque[Future[Any]]()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _task
    _task = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _do(item: Any) -> Any:
    assert _task is not None
    return _task(item)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
