"""Finds the tensors that paused frames and other values hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from inspect import CO_OPTIMIZED
from types import CellType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_NESTING = 3


def variables_of(frame: FrameType) -> dict[str, Any]:
    """Return the variables of a frame without letting it keep them alive: up to Python 3.12, a
    function's frame remembers the `f_locals` it was asked for, even after it lets a tensor go.
    """
    remembered = frame.f_locals
    variables = dict(remembered)
    if isinstance(remembered, dict) and frame.f_code.co_flags & CO_OPTIMIZED:
        remembered.clear()
    return variables


def tensors_in(
    value: Any, parts_of: Callable[[Any], Iterable[Any]], depth: int = _NESTING
) -> Iterator[Tensor]:
    """Yield the plain tensors in a variable: itself, or in its parts."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided and type(value) in (Tensor, nn.Parameter):
            yield value
    elif depth:
        for part in parts_of(value):
            yield from tensors_in(part, parts_of, depth - 1)


def items_in(value: Any) -> Iterable[Any]:
    """Return the items of lists and tuples; mappings hold options, which chunks may share."""
    return value if isinstance(value, list | tuple) else ()


def within_reach(value: Any) -> Iterable[Any]:
    """Return what code with this variable may use: in containers and closures."""
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, FunctionType):
        return [c.cell_contents for c in value.__closure__ or () if c != CellType()]
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    return vars(value).values() if is_dataclass(value) else ()


def held_by(value: Any) -> Iterable[Any]:
    """Return what a value holds: items, values and attributes."""
    if isinstance(value, Mapping):
        return value.values()
    return items_in(value) or getattr(value, "__dict__", {}).values()


def storage_key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
