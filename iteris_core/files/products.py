"""The sizes of what is made of a layer's tensors, known from their shapes before it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import AdapterError
from .limits import PRODUCT_NUMBERS
from .roles import DORA_SCALE, DOWN, MID, RESHAPE_WEIGHT, UP

# Role of a Tucker form's core -> roles of its two factors.
_TUCKER = {
    "lokr_t2": ("lokr_w2_a", "lokr_w2_b"),
    "hada_t1": ("hada_w1_a", "hada_w1_b"),
    "hada_t2": ("hada_w2_a", "hada_w2_b"),
}
_PAIRS = (
    *_TUCKER.values(),
    ("glora_b1", "glora_b2"),
    ("glora_b2", "glora_b1"),
)


def check_core(tensors: Mapping[str, Tensor], shape: tuple[int, int] | None) -> None:
    """Refuse a LoCon whose core and factor make more numbers than the layer has room for.

    Args:
        tensors: Role -> tensor of one layer.
        shape: Shape of the layer's weight; None: there is no model.

    Raises:
        AdapterError: Begins with the predicate.
    """
    d_out, d_in = shape or (0, 0)
    if MID in tensors and DOWN in tensors:
        _check("a core and a factor", _core(tensors), d_out * d_in)


def check_products(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    """Refuse tensors of which more would be made than the layer has room for.

    Args:
        tensors: Role -> tensor of one layer, of a kind without exact factors.
        shape: Shape of the layer's weight.

    Raises:
        AdapterError: Begins with the predicate.
    """
    d_out, d_in = shape
    check_core(tensors, shape)
    for what, numbers in (*_of_factors(tensors), *_of_lokr(tensors), *_of_glora(tensors, d_out)):
        _check(what, numbers, d_out * d_in)
    if "oft_blocks" in tensors:
        sides = tensors["oft_blocks"].shape
        made = sides[:-2].numel() * max(sides[-2:], default=1) ** 2
        _check("oft_blocks", made, max(d_out, d_in) ** 2)
    if RESHAPE_WEIGHT in tensors:
        new = tensors[RESHAPE_WEIGHT].double().abs().clamp_min(1).prod().item()
        _check(RESHAPE_WEIGHT, new, d_out * d_in)


def check_scales(tensors: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    """Refuse factors of rows or columns that make a weight of another shape.

    Args:
        tensors: Role -> tensor of one layer.
        shape: Shape of the layer's weight as its tensor has it.

    Raises:
        AdapterError: Begins with the predicate.
    """
    for role in (DORA_SCALE, "rescale"):
        if role not in tensors:
            continue
        found = tuple(tensors[role].shape)
        try:
            fits = tuple(torch.broadcast_shapes(found, shape)) == tuple(shape)
        except RuntimeError:
            fits = False
        if not fits:
            raise AdapterError(
                f"has a {role} of {found}, which does not go with a weight of {tuple(shape)}; the "
                "file is damaged or for another model. Use another LoRA"
            )


def _check(what: str, numbers: float, room: int) -> None:
    if not numbers <= max(room, PRODUCT_NUMBERS):  # neither where it is NaN
        raise AdapterError(
            f"has {what} that make {numbers:g} numbers, where the weight has {room or 'unknown'} "
            f"and {PRODUCT_NUMBERS} are made at most; the file is damaged or for another model. "
            "Use another LoRA"
        )


def _of_factors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """Yield what pairs of factors and Tucker forms are called, and how many numbers they make."""
    for core, (first, second) in _TUCKER.items():
        if {core, first, second} <= set(tensors):
            inner = tensors[core].shape
            across = _columns(tensors[second]) * inner[2:].numel()
            yield f"{core} and {second}", inner[:1].numel() * across
            yield f"{core} and {first}", _columns(tensors[first]) * across
    for first, second in _PAIRS:
        if first in tensors and second in tensors:
            yield f"{first} and {second}", _product(tensors, first, second)
    if {UP, DOWN} <= set(tensors) and not {DORA_SCALE, RESHAPE_WEIGHT}.isdisjoint(tensors):
        kernel = tensors[MID].shape[2:].numel() if MID in tensors else 1
        yield "factors", _product(tensors, UP, DOWN) * kernel


def _of_lokr(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    made = 1
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            made *= tensors[name].numel()
        elif f"{name}_a" in tensors and f"{name}_b" in tensors:
            core = tensors.get("lokr_t2") if name == "lokr_w2" else None
            rows = _rows if core is None else _columns
            kernel = 1 if core is None else core.shape[2:].numel()
            made *= rows(tensors[f"{name}_a"]) * _columns(tensors[f"{name}_b"]) * kernel
    yield "LoKr factors", made


def _of_glora(tensors: Mapping[str, Tensor], d_out: int) -> Iterator[tuple[str, int]]:
    for role in ("glora_a1", "glora_a2"):
        if role in tensors:
            yield role, d_out * _columns(tensors[role])


def _core(tensors: Mapping[str, Tensor]) -> int:
    core = tensors[MID]
    return _rows(core) * _columns(tensors[DOWN]) * core.shape[2:].numel()


def _product(tensors: Mapping[str, Tensor], first: str, second: str) -> int:
    return _rows(tensors[first]) * _columns(tensors[second])


def _rows(tensor: Tensor) -> int:
    return tensor.shape[:1].numel()


def _columns(tensor: Tensor) -> int:
    return tensor.shape[1:].numel()
