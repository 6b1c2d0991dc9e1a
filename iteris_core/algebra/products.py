"""Products of many rows, added up from short products in the rows' own precision.

Products of numbers in half precision are exact in float32. So rows that a model in half precision
has made stay as they are where a device multiplies them with float32 sums, see
`devices.multiplies_halves`: that is two to fifteen times as fast as the same product of float32. A
float32 factor next to them was computed from such rows, and is no more exact, so it is rounded to
their precision; for the weight of a model in half precision, that changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import devices
from ..devices import is_half

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
_UNIT = 2.0**-14  # relative to a matrix's largest number, rounded down to a power of two
_EXPONENT = 0x7F800000  # bits of a float32
_TINY = 1e-30


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a^T b`` to a total, from short products in the precision of a and b, see `product`."""
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
            total[some].add_(product(a[part, some].T, b[part]).to(total.device))


def add_square(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the blocks on and above the diagonal of a total; `mirror` fills in
    the rest.

    With many blocks that is half the work of the whole product.
    """
    width = _block_on(rows.device)
    for start in range(0, rows.shape[1], width):
        block = rows[:, start : start + width]
        add_product(total[start : start + width, start:], block, rows[:, start:])


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


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` of matrices, in float32 or better.

    Args:
        a: In float32 or better, or in a precision that the device multiplies, see
            `devices.multiplies_halves`.
        b: Likewise; rounded to the half precision of a, or a to that of b, if there is one.
    """
    if is_half(a.dtype) and is_half(b.dtype):
        return devices.half_product(a, b)
    if is_half(a.dtype):
        b, unit = _in_half(b, a.dtype)
    elif is_half(b.dtype):
        a, unit = _in_half(a, b.dtype)
    else:
        exact = torch.promote_types(a.dtype, b.dtype)
        return a.to(exact) @ b.to(exact)
    return devices.half_product(a, b).mul_(unit)


def _in_half(matrix: Tensor, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a matrix divided by a unit, in half precision, and the unit, which keeps the numbers
    well within float16's range. It is a power of two, so that numbers in half precision stay exact.
    """
    most = torch.linalg.vector_norm(matrix, torch.inf).float().clamp_min(_TINY)
    unit = (most.view(torch.int32) & _EXPONENT).view(torch.float32) * _UNIT
    return (matrix / unit).to(half), unit
