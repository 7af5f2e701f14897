"""The next token of every answer as a recorded CUDA graph: one launch for a whole slab instead of some hundred.

A graph repeats the same kernels on the same memory, so a step covers all rows of a slab, over their whole capacity, and
reads which of them are meant from one small buffer. A slab is recorded once it has given some tokens; until then, and
where parts of prompts are read beside answers, the ordinary forward computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mini_internvl.engine.backends import Piece
from mini_internvl.model.cache import Slab, SlabForward, SlotCache
from mini_internvl.model.vlm import InternVL

FIRST_STEPS = 8  # of a slab before it is recorded: recording costs some of them
WARM_UP = 2  # runs before a recording, in which kernels are chosen and libraries take their memory

Compute = Callable[[], Tensor]
Recorder = Callable[[Compute], tuple[Callable[[], object], Tensor]]
"""Gives what repeats a computation, and the tensor that holds its result then."""


def record(compute: Compute) -> tuple[Callable[[], object], Tensor]:
    """Record on the current CUDA device."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may encode images meanwhile
        result = compute()
    return graph.replay, result


class RecordedSteps:
    """The recorded steps of a model's slabs; like what the slots hold, they are of the weights that the model had."""

    def __init__(self, model: InternVL, slots: SlotCache, recorder: Recorder) -> None:
        self._model, self._slots, self.recorder = model, slots, recorder
        self._given: dict[Slab, int] = {}  # steps of each slab so far
        self._steps: dict[Slab, _Step] = {}

    def forward(self, pieces: Sequence[Piece]) -> Tensor | None:
        """(B, V) logits as of :meth:`Backend.forward`; ``None`` where the ordinary forward has to compute."""
        if any(len(piece.ids) > 1 or piece.visual is not None for piece in pieces):
            return None
        groups: dict[Slab, list[int]] = {}
        for number, piece in enumerate(pieces):
            groups.setdefault(self._slots.place_of(piece.slot)[0], []).append(number)
        for slab in groups:
            self._given[slab] = self._given.get(slab, 0) + 1
        if any(self._given[slab] <= FIRST_STEPS for slab in groups):
            return None
        found: list[Tensor | None] = [None] * len(pieces)
        for slab, numbers in groups.items():
            if slab not in self._steps:
                self._steps[slab] = _Step(self._model, slab, self.recorder)
            own = [pieces[number] for number in numbers]
            rows = [self._slots.place_of(piece.slot)[1] for piece in own]
            for number, logits in zip(numbers, self._steps[slab].run(own, rows), strict=True):
                found[number] = logits
        for piece in pieces:
            slab, row = self._slots.place_of(piece.slot)
            slab.lengths[row] += 1
        return torch.stack([logits for logits in found if logits is not None])

    def drop_gone(self) -> None:
        """Give the memory of slabs back that have no slots any longer."""
        live = self._slots.slabs()
        self._given = {slab: count for slab, count in self._given.items() if slab in live}
        self._steps = {slab: step for slab, step in self._steps.items() if slab in live}


class _Step:
    """The next token of all rows of a slab."""

    def __init__(self, model: InternVL, slab: Slab, recorder: Recorder) -> None:
        self._llm, device = model.language_model, model.device
        self._cache = SlabForward(slab, model.config.llm.sliding_window, device)
        self._host = torch.zeros(self._cache.told.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        try:
            with _current(device):
                self._replay, self._logits = recorder(self._compute)
        except RuntimeError as error:
            raise RuntimeError(f"a step of answers cannot be recorded ({error}); load without cuda_graphs") from error

    def _compute(self) -> Tensor:
        self._cache.begin()
        hidden = self._llm(self._llm.embed_tokens(self._cache.ids), cache=self._cache)[0]
        return self._llm.lm_head(hidden).float()

    def run(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Tensor:
        """(B, V) logits of the pieces, each a token for a row."""
        slab = self._cache.slab
        self._host.zero_()
        for piece, row in zip(pieces, rows, strict=True):
            place = slab.lengths[row]
            assert place < slab.capacity, f"a slot of {slab.capacity} tokens is full"
            self._host[:, row] = torch.tensor([piece.ids[0], place, max(piece.prompt_length, place + 1), 1])
        self._cache.told.copy_(self._host, non_blocking=True)  # the last step's logits were read, so its copy is done
        with _current(self._logits.device):
            self._replay()
        return self._logits[torch.tensor(rows).to(self._logits.device)]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Streams and graphs are those of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
