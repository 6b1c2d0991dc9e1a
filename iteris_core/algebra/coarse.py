"""A float32 factorisation of a layer's system, where float64 is slow, and answers that are exact
nevertheless.

With ``S ~ L L^T`` in float32, ``L^-1 B`` and its leading left singular vectors U are found in
float32, which is nearly all of the work. They choose the subspace of inputs that an answer is cut
to, and nothing else: its directions ``V = L^-T U`` are made orthonormal in the metric of the exact
float64 matrix, ``V^T S V = 1``, and the answer is the optimum in that subspace, in float64:

    dW^T = V V^T B

So the rounding of float32 turns the subspace a little. Since the subspace is the best one to first
order, the objective rises only by the square of that. Where float32 is too coarse, L fails a test
on the exact matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..svd import random_columns
from .system import Check, System, cholesky

# Random vectors that L is tested on, and how far L^-1 S L^-T may be from 1 on them.
_PROBES = 8
_FARTHEST = 0.01
# The same for each direction that is kept: these are made exact, if L is about right.
_FARTHEST_KEPT = 0.1
# Numbers of a matrix that are scaled at once.
_ENTRIES_AT_ONCE = 1 << 22


class TooCoarseError(Exception):
    """Float32 does not hold enough digits of a matrix; the layer is solved in float64 then."""


def check_of(is_sound: Tensor) -> Check:
    """Return the check that raises a TooCoarseError where this is false."""

    def judge(numbers: Sequence[Tensor]) -> None:
        if not numbers[0]:
            raise TooCoarseError

    return Check([is_sound], judge)


def factorise_coarsely(matrix: Tensor) -> tuple[System, Tensor]:
    """Return the float32 Cholesky factor of a matrix scaled to a unit diagonal, and whether it is
    good enough, 0-dim, since reading it would wait for the device.

    Args:
        matrix: Symmetric, (n, n), float64.
    """
    scale = matrix.diagonal().rsqrt()
    factor, failed_at = cholesky(_scaled(matrix, scale))
    system = System(scale, factor)
    probes = random_columns(len(matrix), _PROBES, matrix.dtype, matrix.device)
    seen = system.solve_lower(matrix @ system.solve_upper(probes))
    # false for what is not finite, too
    is_near = (seen - probes).norm() <= _FARTHEST * probes.norm()
    return system, (failed_at == 0) & is_near


def _scaled(matrix: Tensor, scale: Tensor) -> Tensor:
    """Return ``scale S scale`` in float32, some rows at a time: a wide matrix is large."""
    scaled = torch.empty_like(matrix, dtype=torch.float32)
    step = max(1, _ENTRIES_AT_ONCE // len(matrix))
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        scaled[rows] = (matrix[rows] * scale).mul_(scale[rows, None])
    return scaled


def exact_directions(matrix: Tensor, system: System, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return V, (n, r), float64, with ``V^T S V = 1``, which spans what ``L^-T basis`` spans, and
    whether the factor is good enough for it, 0-dim.

    Args:
        matrix: S, (n, n), float64.
        basis: Orthonormal, (n, r).
    """
    nearly = system.solve_upper(basis)
    product = nearly.T @ (matrix @ nearly)
    core, failed_at = torch.linalg.cholesky_ex(product)
    unit = torch.eye(len(product), dtype=product.dtype, device=product.device)
    is_near = (product - unit).norm() <= _FARTHEST_KEPT * len(product) ** 0.5
    inverse: Tensor = torch.linalg.solve_triangular(core, nearly.T, upper=False)
    return inverse.T, (failed_at == 0) & is_near
