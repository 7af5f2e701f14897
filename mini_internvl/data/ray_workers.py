"""Work on many items on the machines of a Ray cluster, results in order, as ``workers`` does it on one (extra ``ray``).

The cluster is the one that ``RAY_ADDRESS`` names; without it, a local one is started and ended with the work. Its
machines need this package, what the work needs, and the same paths.
"""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, TypeVar

from mini_internvl.data import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 512  # items that are handed to the cluster at a time
BLOCK = 4  # least items that a worker takes at a time


def require() -> None:
    """ValueError with the line that installs Ray where it is missing; to be called before long work."""
    if find_spec("ray") is None:
        raise ValueError('spreading work over machines needs ray: pip install "mini-internvl[ray]"')


def ray_map(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``work`` of every item, in order, by so many Ray workers of one CPU each; 0 takes all CPUs of the cluster.

    ``work``, items and results must pickle. DataError where Ray fails, such as for a machine that was lost for good.
    """
    require()
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield from _in_chunks(ray, work, iter(items), min(workers or cpus, cpus))
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray stopped the work: {str(error).strip().splitlines()[-1]}") from None
    finally:
        if own:
            ray.shutdown()


def _in_chunks(ray: Any, work: Callable[[Any], Any], items: Iterator[Any], workers: int) -> Iterator[Any]:
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    pool = ray.data.ActorPoolStrategy(size=workers)
    try:
        while chunk := list(itertools.islice(items, CHUNK)):
            blocks = max(1, min(len(chunk) // BLOCK, 8 * workers))
            rows = ray.data.from_items([{"item": pickle.dumps(item)} for item in chunk], override_num_blocks=blocks)
            done = rows.map(_Worker, fn_constructor_args=(work,), compute=pool, num_cpus=1)
            for row in done.iter_rows():
                yield pickle.loads(row["result"])  # of our own workers
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before


class _Worker:
    """Works in a process of its own, which keeps what it has loaded."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        return {"result": pickle.dumps(self.work(pickle.loads(row["item"])))}
