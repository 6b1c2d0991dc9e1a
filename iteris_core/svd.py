"""The singular value decomposition, also where LAPACK's fails and says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SolveError


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``matrix = U diag(values) Vh``: U (m, k), values (k,), falling, Vh (k, n); k is the
    smaller of m and n.

    On rare finite matrices with values of the size of rounding, LAPACK's divide and conquer
    (``gesdd``, seen in MKL) returns a vector of NaN and a wrong value, without an error. The
    same matrix with its rows turned by an orthogonal Q, ``Q M = (Q U) diag(values) Vh``, is one of
    other numbers.

    Args:
        matrix: (m, n), float32 or float64.

    Raises:
        SolveError: It fails on the turned matrix, too.
    """
    found = torch.linalg.svd(matrix, full_matrices=False)
    if _is_finite(found):
        return found
    turn = _orthogonal(matrix)
    u, values, vh = torch.linalg.svd(turn @ matrix, full_matrices=False)
    if _is_finite((u, values, vh)):
        return turn.T @ u, values, vh
    shape = " x ".join(map(str, matrix.shape))
    raise SolveError(
        f"the singular values of a matrix ({shape}) were not found: the linear algebra library of "
        "torch returned NaN, also for the same matrix turned. Most likely this is a fault of that "
        "library; try another version of torch, or another device"
    )


def _is_finite(found: tuple[Tensor, ...]) -> bool:
    return bool(torch.isfinite(torch.stack([part.sum() for part in found])).all())


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return a random orthogonal (m, m) matrix, the same one at every call."""
    size = len(matrix)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(numbers.to(matrix))[0]
