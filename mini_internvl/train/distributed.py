"""Several processes that train one model: torch's DDP or FSDP2 around the learner, and a watchdog.

Gradients are those of the sum over all processes: both wrappers average, so each loss is multiplied by their number
before (see ``train.loop``). DDP exchanges gradients with the last micro batch of a step only. Every process runs the
same number of micro batches, and touches every trainable module in each (``Learner``), so that none waits for another.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mini_internvl.model.lora import lora_layers, wrap
from mini_internvl.model.vlm import InternVL
from mini_internvl.ranks import Ranks
from mini_internvl.train.learner import Learner


def parallel(learner: Learner, kind: str, ranks: Ranks) -> nn.Module:
    """The learner as all processes train it: a copy each (``ddp``), or a shard each (``fsdp``); alone, itself.

    FSDP2 shards in place; its groups are the blocks of encoder and decoder, and all the rest.
    """
    if ranks.size == 1:
        return learner
    if kind == "ddp":
        device = learner.model.device
        return DistributedDataParallel(
            learner,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(learner.model.device.type, (ranks.size,))
    for block in (*learner.model.vision_model.encoder.layers, *learner.model.language_model.layers):
        fully_shard(block, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    learner.sharded = True
    return learner


def share_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's buffers: what each has measured may differ by rounding."""
    if ranks.size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def last_only(wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Entered around a micro batch: gradients are exchanged with the ``last`` one of a step only."""
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return nullcontext()


def whole(model: InternVL, ranks: Ranks, *, everywhere: bool = False) -> InternVL | None:
    """The model with all its weights, on the first process; ``None`` on the others, which help to gather it.

    A sharded model is gathered tensor by tensor, on the CPU; ``everywhere`` makes all processes keep it.
    """
    keeps = ranks.first or everywhere
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model if keeps else None
    gathered: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keeps:
            gathered[name] = full.cpu()
    if not keeps:
        return None
    with torch.device("meta"):
        plain = type(model)(model.config)
        for name, layer in lora_layers(model).items():
            wrap(plain, name, layer.rank, layer.scale, layer.dropout)
    plain.load_state_dict(gathered, assign=True)
    plain.image_token_id = model.image_token_id
    return plain


class Watchdog:
    """Ends the process when a step makes no progress for ``limit`` seconds, and says where it stood.

    Under torchrun the end of one process is the end of all.
    """

    def __init__(self, ranks: Ranks, limit: float) -> None:
        self.ranks, self.limit = ranks, limit
        self.seen, self.doing = time.monotonic(), "starting"
        self.over = threading.Event()

    def beat(self, doing: str) -> None:
        """Something was done; ``doing`` is what comes next."""
        self.seen, self.doing = time.monotonic(), doing

    def __enter__(self) -> Watchdog:
        self.beat("starting")
        if self.limit:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(min(1.0, self.limit / 4)):
            idle = time.monotonic() - self.seen
            if idle > self.limit:
                process = f"process {self.ranks.rank} of {self.ranks.size}"
                sys.stderr.write(
                    f"{process} has made no progress for {idle:.0f} s: {self.doing}. "
                    "All processes end; the last saved state is intact. Where it stood:\n"
                )
                faulthandler.dump_traceback(all_threads=True)
                sys.stderr.flush()
                os._exit(1)
