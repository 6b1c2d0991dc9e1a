"""The singular value decomposition, also where LAPACK's fails."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .devices import exact_products
from .errors import SolveError

_ROUNDING = 1e-6  # of the first singular value; less is rounding, and its directions mean nothing


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``matrix = U diag(values) Vh``: U (m, k), values (k,), falling, Vh (k, n); k is the
    smaller of m and n.

    On rare finite matrices with values of the size of rounding, LAPACK's divide and conquer
    (``gesdd``, seen in MKL) returns a vector of NaN and a wrong value, without an error. The
    same matrix turned by an orthogonal Q, ``Q M = (Q U) diag(values) Vh``, has the same values and
    other entries, so it is tried next.

    Args:
        matrix: (m, n), float32 or float64.

    Raises:
        SolveError: It fails on the turned matrix, too.
    """
    found = _tried(matrix)
    if found is not None:
        return found
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = matrix if is_wide else matrix.T
    turn = _orthogonal(wide)
    found = _tried(turn @ wide)
    if found is None:
        raise SolveError(_why_not_found(matrix))
    u, values, vh = found
    u = turn.T @ u
    return (u, values, vh) if is_wide else (vh.T, values, u.T)


def numerical_rank(values: Tensor) -> int:
    """Return how many singular values, falling, are more than rounding; at least 1."""
    return max(1, int((values > _ROUNDING * values[0]).sum()))


# The width from which this first test costs less than it saves, and the share of the rank that it
# looks for.
_WIDE = 256
_NEARLY_FULL = 0.8


def has_nearly_full_rank(matrix: Tensor) -> bool:
    """Whether a large (m, n) matrix has about 0.8 of the rank that it can have, or more: its
    products with so many random vectors then do not depend on each other.
    """
    smaller = min(matrix.shape)
    if smaller < _WIDE:
        return False
    rows = matrix if matrix.shape[0] == smaller else matrix.T
    numbers = random_columns.__wrapped__  # which keeps nothing so large
    vectors = numbers(rows.shape[1], int(_NEARLY_FULL * smaller), rows.dtype, rows.device)
    with exact_products(rows.device):
        left = torch.linalg.qr(rows @ vectors, mode="r").R.diagonal().abs()
    return bool(left.min() > _ROUNDING * left.max())


def _tried(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the decomposition; None where the library fails, with an error or without."""
    try:
        found = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    finite = torch.stack([torch.isfinite(part).all() for part in found])
    return found if bool(finite.all()) else None


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return a random orthogonal (m, m) matrix, the same one at every call."""
    size = len(matrix)
    numbers = random_columns.__wrapped__  # which keeps nothing so large
    turn: Tensor = torch.linalg.qr(numbers(size, size, matrix.dtype, matrix.device)).Q
    return turn


@lru_cache(maxsize=8)
def random_columns(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return normally distributed numbers, (rows, columns), always the same; not to be modified."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return numbers.to(device, dtype)


def _why_not_found(matrix: Tensor) -> str:
    shape = " x ".join(map(str, matrix.shape))
    why = (
        "torch's linear algebra library failed, also on the same matrix turned, most likely by a "
        "fault of its own; try another version of torch, or another device"
        if torch.isfinite(matrix).all()
        else "it holds NaN or infinite numbers, most likely an overflow; lower the strengths"
    )
    return f"the singular values of a matrix ({shape}) were not found: {why}"
