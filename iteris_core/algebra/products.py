"""Products of many rows, added up from short products in the rows' own precision.

Products of numbers in half precision are exact in float32. So rows that a model in half precision
has made stay as they are where a device multiplies them with float32 sums, see
`devices.multiplies_halves`: that is two to fifteen times as fast as the same product of float32. A
factor in float32 next to them is split into two halves there, which hold its first 16 bits
(bfloat16) or 22 (float16); the product of the two lower halves is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import devices
from ..devices import has_slow_float64, is_half

# Tokens per product: short enough that float32 rounding stays near 1e-7 before the sum goes on in
# float64.
TOKENS_PER_PRODUCT = 2048
# Columns of a symmetric product that are computed together, on a CPU and elsewhere: wide enough for
# a fast product, narrow enough to skip much.
BLOCK = 256
_BLOCK_ON_GPU = 2048
# Entries of a product that a CPU makes at once: few enough that caches hold them until they are
# added.
_ENTRIES_AT_ONCE = 1 << 20
_UNIT = 2.0**-14  # of a matrix that is split, relative to its largest number
_TINY = 1e-30


def add_product(total: Tensor, a: Tensor, b: Tensor, *, half: torch.dtype = torch.float32) -> None:
    """Add ``a^T b`` to a total, from short products in the precision of a and b.

    Args:
        half: See `product`.
    """
    if not total.numel():
        return
    step = max(BLOCK, _ENTRIES_AT_ONCE // b.shape[1])
    if a.device.type != "cpu":
        step = max(1, a.shape[1])
    for start in range(0, a.shape[0], TOKENS_PER_PRODUCT):
        part = slice(start, start + TOKENS_PER_PRODUCT)
        for first in range(0, a.shape[1], step):
            some = slice(first, first + step)
            # not `+=`, after which Python copies the sum onto itself
            total[some].add_(product(a[part, some].T, b[part], half).to(total.device))


def add_square(total: Tensor, rows: Tensor, *, half: torch.dtype = torch.float32) -> None:
    """Add ``rows^T rows`` to the blocks on and above the diagonal of a total; `mirror` fills in
    the rest.

    With many blocks that is half the work of the whole product.

    Args:
        half: See `product`.
    """
    width = _block_on(rows.device)
    for start in range(0, rows.shape[1], width):
        block = rows[:, start : start + width]
        add_product(total[start : start + width, start:], block, rows[:, start:], half=half)


def mirror(total: Tensor) -> Tensor:
    """Complete, in place, a symmetric matrix that `add_square` has filled by half."""
    width = _block_on(total.device)
    for end in range(width, len(total), width):
        start = end - width
        total[end:, start:end] = total[start:end, end:].T
    return total


def _block_on(device: torch.device) -> int:
    return BLOCK if device.type == "cpu" else _BLOCK_ON_GPU


def product_of_rows(rows: Tensor) -> Tensor:
    """Return ``Z Z^T``, (rows, rows), float64 from short products of the rows' own precision."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    add_square(total, rows.T)
    return mirror(total)


def product(a: Tensor, b: Tensor, half: torch.dtype = torch.float32) -> Tensor:
    """Return ``a @ b`` of matrices, in float32 or better.

    Args:
        a: In float32 or better, or in a precision that the device multiplies, see
            `devices.multiplies_halves`.
        b: In the same precision, or in float32 where a is in half, or the other way round.
        half: Precision of the rows that factors in float32 follow from; they may be split into it
            where it is a half.
    """
    if is_half(a.dtype) and is_half(b.dtype):
        return devices.half_product(a, b)
    half = next((part.dtype for part in (a, b) if is_half(part.dtype)), half)
    # on cards for games half precision is only two to three times as fast as float32
    if not is_half(half) or has_slow_float64(a.device):
        exact = torch.promote_types(a.dtype, b.dtype)
        return a.to(exact) @ b.to(exact)
    left = _Halves.of(a, half)
    right = _Halves.of(b, half)
    pairs = [(left.upper, right.upper), (left.upper, right.lower), (left.lower, right.upper)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    # one after the other, so that the device adds them up
    beside = torch.cat([part for part, _ in both], dim=1)
    below = torch.cat([part for _, part in both])
    return devices.half_product(beside, below).mul_(left.unit * right.unit)


class _Halves(NamedTuple):
    """A matrix as ``unit * (upper + lower)`` in half precision; without a lower part where it is
    in half precision itself.
    """

    upper: Tensor
    lower: Tensor | None
    unit: Tensor | float

    @classmethod
    def of(cls, matrix: Tensor, half: torch.dtype) -> _Halves:
        if is_half(matrix.dtype):
            return cls(matrix, None, 1.0)
        # the largest number is far above what float16 can hold least, and below what it can most
        unit = torch.linalg.vector_norm(matrix, torch.inf).clamp_min(_TINY) * _UNIT
        scaled = matrix / unit
        upper = scaled.to(half)
        return cls(upper, (scaled - upper).to(half), unit)
