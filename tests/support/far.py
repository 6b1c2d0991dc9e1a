"""A device that a Mac's GPU is like: without float64, and apart from the CPU. The CPU computes."""

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"


class Far(Tensor):
    """A tensor that is there."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Far":
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Far({self.inner!r})"


class _Factories(TorchDispatchMode):
    """Makes tensors there that are asked for there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """Makes tensors there of Python's numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = dict(kwargs or {})
        if func is torch.tensor and torch.device(named.get("device") or "cpu") == DEVICE:
            return Far(func(*args, **{**named, "device": "cpu"}))
        return func(*args, **named)


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation as the device would, or refuse it as that does.

    Raises:
        TypeError: A number in float64.
        RuntimeError: Tensors of both devices.
    """
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    asked = kwargs.get("device")
    to = None if asked is None else torch.device(asked).type
    _check(func, kwargs.get("dtype"), given, to)
    inner = {id(t): t.inner if isinstance(t, Far) else t for t in given}
    here = kwargs if asked is None else {**kwargs, "device": torch.device("cpu")}
    plain = lambda value: inner[id(value)] if isinstance(value, Tensor) else value  # noqa: E731
    made = func(*tree_map(plain, args), **tree_map(plain, here))
    outer = {id(inner[id(t)]): t for t in given}
    is_there = any(isinstance(t, Far) for t in given) if to is None else to == DEVICE.type

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in outer or not is_there:
            return outer.get(id(value), value)
        if value.dtype == torch.float64:
            raise TypeError(f"{func}: {_NO_FLOAT64}")
        return Far(value)

    return tree_map(wrapped, made)


def _check(func: Any, dtype: torch.dtype | None, given: list[Tensor], to: str | None) -> None:
    if not any(isinstance(t, Far) for t in given):
        return
    is_copy = func in (_aten.copy_.default, _aten._to_copy.default)
    if is_copy and torch.float64 in (dtype, *(t.dtype for t in given)):
        raise TypeError(_NO_FLOAT64)
    name = func._schema.name
    if is_copy or func is _aten._local_scalar_dense.default:
        return
    if name.endswith("_like") or "::new_" in name:  # these read no numbers
        return
    if to == "cpu" or any(t.dim() and not isinstance(t, Far) for t in given):
        raise RuntimeError(f"{func}: expected all tensors to be on one device, found far and cpu")


@contextmanager
def device():
    """Have the device."""
    with _Factories(), _FromNumbers():
        yield DEVICE


def move(module: nn.Module) -> nn.Module:
    """Return a module there."""
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, value in own.items():
                if value is not None:
                    moved = Far(value.detach())
                    is_parameter = own is part._parameters
                    own[name] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved
    return module
