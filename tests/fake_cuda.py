"""A CUDA device without a GPU: tensors there are torch's fake ones, which have a device, a shape and no values.

CPU tensors stay real. An operation on a fake tensor and one that was left on the CPU raises, and so does what would
have to wait for a GPU: reading a value, or a shape that depends on values. Gradients need real devices, so this is for
forwards under ``no_grad``.

A build of torch for the CPU refuses a few methods of such tensors before they are dispatched; those are called by their
dispatched names here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class WaitsForGPU(AssertionError):
    """A value of a CUDA tensor was read: a GPU would be waited for."""


class FakeCuda(TorchFunctionMode):
    """Inside, ``device="cuda"`` works and gives tensors without values; there are no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.direct: dict[Any, Any] = {
            Tensor.__getitem__: self._get,
            Tensor.__setitem__: self._set,
            Tensor.to: self._to,
            Tensor.cuda: lambda x, *_, **__: self._moved(x, CUDA),
            Tensor.cpu: self._refuse,
            Tensor.contiguous: lambda x: aten.clone(x, memory_format=torch.contiguous_format),
            Tensor.nonzero: self._refuse,
            Tensor.__int__: self._refuse,
            Tensor.__float__: self._refuse,
            Tensor.__bool__: self._refuse,
            Tensor.item: self._refuse,
            Tensor.tolist: self._refuse,
            Tensor.numpy: self._refuse,
            Tensor.copy_: lambda x, y, non_blocking=False: aten.copy_(x, y, non_blocking),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]  # host memory; a build for the CPU cannot pin it
        devices = [a for a in (*args, kwargs.get("device")) if isinstance(a, torch.device | str)]
        to_cuda = any(str(device).startswith("cuda") for device in devices)
        to_cuda = to_cuda or func is Tensor.cuda
        if not to_cuda and not tree_any(lambda x: isinstance(x, FakeTensor), (args, kwargs)):
            return func(*args, **kwargs)
        with self.fake, torch.no_grad():
            return self.direct.get(func, func)(*args, **kwargs)

    def _refuse(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise WaitsForGPU(f"a value of a CUDA tensor {tuple(x.shape)} is read; a GPU would be waited for")

    def _moved(self, x: Tensor, device: torch.device | None, dtype: torch.dtype | None = None) -> Tensor:
        if device is not None and device.type == "cpu" and x.device.type != "cpu":
            self._refuse(x)
        device = x.device if device is None else torch.device(device.type, 0) if device.type == "cuda" else device
        dtype = dtype or x.dtype
        if (device, dtype) == (x.device, x.dtype):
            return x
        given = x if isinstance(x, FakeTensor) else self.fake.from_tensor(x.detach())
        return aten._to_copy(given, dtype=dtype, device=device)

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for given in args:
            if isinstance(given, Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            elif isinstance(given, torch.device | str):
                device = given
        return self._moved(x, None if device is None else torch.device(device), dtype)

    def _get(self, x: Tensor, key: Any) -> Tensor:
        return _index(x, key)

    def _set(self, x: Tensor, key: Any, value: Any) -> None:
        place = _index(x, key)
        place.fill_(value) if not isinstance(value, Tensor) else aten.copy_(place, value)


def _index(x: Tensor, key: Any) -> Tensor:
    """``x[key]`` by dispatched views; a tensor as an index must be a lone one of whole numbers."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [k for k in keys if not isinstance(k, Tensor)]:
        at = next(n for n, k in enumerate(keys) if k is Ellipsis)
        missing = x.ndim - sum(k is not None and k is not Ellipsis for k in keys)
        keys[at : at + 1] = [slice(None)] * missing
    at = 0
    for k in keys:
        if k is None:
            x, at = aten.unsqueeze(x, at), at + 1
        elif isinstance(k, slice):
            x, at = aten.slice(x, at, k.start, k.stop, k.step or 1), at + 1
        elif isinstance(k, int):
            x = aten.select(x, at, k)
        elif isinstance(k, Tensor) and len(keys) == 1:
            if k.dtype == torch.bool:
                raise WaitsForGPU("a mask as an index gives a shape that a GPU would be waited for")
            x = aten.index(x, [k])
        else:
            raise NotImplementedError(f"an index {key!r}; add it to _index")
    return x


def on_cuda(module: nn.Module) -> nn.Module:
    """Move a module of ``meta`` tensors to the device, in place; call it inside the mode."""
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
                    tensors[name] = (
                        nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
                    )
    return module
