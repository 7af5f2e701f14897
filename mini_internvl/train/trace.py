"""A training step on shapes alone: which memory it needs, when and for what, before any of it is taken.

The learner, its losses and its optimiser are those that train, and run the same code; only their tensors are fake ones,
which have a type, a shape and a device but no memory. A dispatch mode sees every tensor that is made and when it goes,
and keeps the split of the highest sum. What kernels take inside themselves is not seen.

On a GPU other kernels run than on a CPU: attention never holds its weights there, and layer norms compute in float32
under autocast. Traced for a GPU, those two are put in their place.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mini_internvl.model import attention
from mini_internvl.recipes import StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.learner import Learner
from mini_internvl.train.optim import make_optimizer

WEIGHTS, COPIES, GRADIENTS, OPTIMISER, DATA = "weights", "weights in bf16", "gradients", "optimiser", "batch"
ENCODER, PROJECTOR, DECODER, LOSS = "encoder", "projector", "decoder", "head and loss"
TEACHER = "teacher"  # weights and activations of modules that losses hold and that never train
WORKSPACE = "workspace"  # what the backward pass makes and drops again
LITTLE = 32 << 20  # bytes above which glibc gives a block back at once
GAPS = 0.6  # of the activations in smaller blocks: freed memory between them, measured on nano (``bench/plan.py``)
LAYER_NORM = F.layer_norm
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MemoryTrace(TorchDispatchMode):
    """Bytes of all tensors that live, by what they are for; ``peak`` is the split of the highest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.label = WORKSPACE
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.highest = 0
        self.little: Counter[str] = Counter()  # like ``now``, of tensors below LITTLE
        self.gaps = 0.0  # at the peak: what glibc is taken to keep between small tensors
        self.moment = self.peak_moment = ""
        self.labels: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        label = self.label
        if func is torch.ops.aten._to_copy.default and self.labels.get(_key(args[0])) == WEIGHTS:
            label = COPIES
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor, label)
        return out

    def add(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's memory, once, or count what is there already under another name."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.labels:
            return
        self.labels[key] = label
        self.now[label] += size
        self.little[label] += size * (size < LITTLE)
        weakref.finalize(storage, self._free, key, size).atexit = False
        if (total := self.now.total()) > self.highest:
            self.highest, self.peak, self.peak_moment = total, self.now.copy(), self.moment
            self.gaps = GAPS * sum(
                self.little[part] for part in (ENCODER, PROJECTOR, DECODER, TEACHER, LOSS, WORKSPACE)
            )

    def rename(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's memory under another name from now on."""
        key, size = _key(tensor), tensor.untyped_storage().nbytes()
        self.add(tensor, label)
        little = size * (size < LITTLE)
        self.now[self.labels[key]] -= size
        self.now[label] += size
        self.little[self.labels[key]] -= little
        self.little[label] += little
        self.labels[key] = label

    def _free(self, key: int, size: int) -> None:
        label = self.labels.pop(key)
        self.now[label] -= size
        self.little[label] -= size * (size < LITTLE)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, enable_gqa: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (part.to(torch.get_autocast_dtype("cpu")) for part in (q, k, v))
    if attn_mask is None and q.dtype != torch.float32:
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
        return out
    groups = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in (k, v))
    bias = None if attn_mask is None else attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p, is_causal)[0]
    return found


def _norm_in_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return LAYER_NORM(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)


@contextmanager
def _kernels_of(device: str) -> Iterator[None]:
    """Calls answered as on a device type, also those that checkpointing makes again; see ``model.attention.attend``."""
    if device == "cpu":
        yield
        return
    with (
        patch.object(attention, "PLAIN_UP_TO", 0),
        patch.object(F, "scaled_dot_product_attention", _fused_attention),
        patch.object(F, "layer_norm", _norm_in_float32),
    ):
        yield


def trace_step(
    learner: Learner, stage: StageRecipe, batch: Batch, *, precision: str, device: str, accumulates: bool
) -> MemoryTrace:
    """The memory of a step of a learner on ``meta``, whose largest micro batch is ``batch``; its tensors become fake.

    The optimiser's state is there from the start, as in every step but the first; gradients of earlier micro batches
    are where the step ``accumulates``.
    """
    mode, trace = FakeTensorMode(allow_non_fake_inputs=True), MemoryTrace()
    frozen = list(learner.frozen())
    for module in (learner, *frozen):
        _make_fake(module, mode)
    for tensor in (*learner.parameters(), *learner.buffers()):
        trace.add(tensor, WEIGHTS)
    for tensor in (tensor for module in frozen for tensor in (*module.parameters(), *module.buffers())):
        trace.add(tensor, TEACHER)
    trainable = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    batch = _fake_batch(batch, mode)
    for tensor in (batch.input_ids, batch.labels, batch.attention_mask, batch.position_ids, batch.tiles):
        trace.add(tensor, DATA)
    learner.train()
    optimizer = make_optimizer(learner, stage)
    with ExitStack() as stack:
        stack.callback(_label_parts(learner, trace))
        stack.enter_context(_kernels_of(device))
        stack.enter_context(trace)
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
            trace.rename(parameter.grad, GRADIENTS)
        trace.moment, trace.label = "optimiser step", OPTIMISER
        optimizer.step()
        if not accumulates:
            optimizer.zero_grad(set_to_none=True)
        handles = [
            parameter.register_post_accumulate_grad_hook(lambda p: trace.rename(p.grad, GRADIENTS))
            for parameter in trainable
        ]
        stack.callback(_remove, handles)
        trace.moment, trace.label = "forward pass", LOSS
        with torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss = learner(batch)["loss"]
        trace.moment, trace.label = "backward pass", WORKSPACE
        loss.backward()
    return trace


def _make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors of the CPU in the places of those on ``meta``."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                new = nn.Parameter(_fake(parameter.data, mode), requires_grad=parameter.requires_grad)
                part._parameters[name] = made.setdefault(id(parameter), new)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _fake(buffer, mode)


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    return FakeTensor(mode, tensor.to("meta"), torch.device("cpu"))


def _fake_batch(batch: Batch, mode: FakeTensorMode) -> Batch:
    """The batch with fake tiles; what decides shapes keeps its values."""
    return replace(batch, tiles=_fake(batch.tiles, mode))


def _label_parts(learner: Learner, trace: MemoryTrace) -> Any:
    """Name what the parts of a model make while they run forward; returns what ends that."""
    model, before = learner.model, list[str]()
    vision, llm = model.vision_model, model.language_model
    parts: Sequence[tuple[nn.Module, str]] = (
        *((part, ENCODER) for part in (vision.embeddings, *vision.encoder.layers)),
        (model.mlp1, PROJECTOR),
        *(((model.mlp2, PROJECTOR),) if model.config.flash else ()),
        *((part, DECODER) for part in (llm.embed_tokens, *llm.layers, llm.norm)),
        *((part, TEACHER) for module in learner.frozen() for part in module.modules()),
    )

    def enter(label: str) -> None:
        before.append(trace.label)
        trace.label = label

    def leave() -> None:
        trace.label = before.pop()

    handles = []
    for part, label in parts:
        handles.append(part.register_forward_pre_hook(lambda *_, label=label: enter(label)))
        handles.append(part.register_forward_hook(lambda *_: leave()))
    return lambda: _remove(handles)


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()
