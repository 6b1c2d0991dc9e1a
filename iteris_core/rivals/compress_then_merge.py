"""Compress-then-Merge: a rank first, then the merge (He et al., ICML 2026, arXiv:2606.03723).

    U, V = argmax sum_k ||U^T dW_k V||^2 / ||dW_k||^2   over U (d_out, r), V (d_in, r), orthonormal
    dW = U merge(U^T dW_1 V, ..., U^T dW_N V) V^T

U and V are found as in the authors' code: a Tucker decomposition by higher-order orthogonal
iteration in core space, from singular vectors, until the error relative to the whole changes by
less than 1e-6. They give all adapters the same norm in it by default (beta = 0), and search beta,
the share of TIES and a scale for the best score in validation; here ``density`` and ``scale`` are
the user's. The rule is TIES, the one of their command.

r is the requested rank. Where none is requested it is the largest of the adapters', as published,
and less than their sum. Where a size is requested, the first solve, which shares it out, takes all
of core space. The answer is exactly of rank r: nothing is cut. An adapter that changes nothing here
is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .core_space import CoreSpace, core_space
from .layer import Layer
from .ties import trim_and_elect

MOST_ITERATIONS = 1000
TOLERANCE = 1e-6


def compress_then_merge(layer: Layer, *, density: float = 0.5) -> LowRankDelta:
    """Return Compress-then-Merge.

    Args:
        layer: The layer.
        density: See `ties`. A sign is elected by the sum, as published: where votes are counted, a
            draw counts as +, and would depend on the signs of the singular vectors.
    """
    deltas = layer.changing
    if not deltas:
        return layer.together
    rank = layer.rank or max(delta.rank for delta in deltas.values())
    space = core_space(list(deltas.values()))
    left, right = shared_subspaces(_of_one_norm(space), rank)
    merged = trim_and_elect(left.T @ space.cores @ right, density, "total")
    return LowRankDelta(space.left @ left @ merged, (space.right @ right).T)


def shared_subspaces(cores: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U and V, which keep most of ``sum_k ||U^T M_k V||^2``, by higher-order orthogonal
    iteration.

    Args:
        cores: M_k, (N, R, R').
        rank: Columns of U and V; fewer where R or R' is smaller.

    Returns:
        U (R, r), V (R', r); their columns fall in energy.
    """
    mirrored = cores.mT
    right = _leading(mirrored, rank)
    whole = cores.square().sum()
    errors: list[float] = []
    for _ in range(MOST_ITERATIONS):
        left = _leading(cores @ right, rank)
        right = _leading(mirrored @ left, rank)
        kept = (left.T @ cores @ right).square().sum()
        errors.append(((whole - kept).abs() / whole).sqrt().item())
        if len(errors) > 2 and abs(errors[-2] - errors[-1]) < TOLERANCE:
            break
    return left, right


def _of_one_norm(space: CoreSpace) -> Tensor:
    return space.cores / space.cores.flatten(1).norm(dim=1)[:, None, None]


def _leading(stacked: Tensor, count: int) -> Tensor:
    """Return the leading left singular vectors of ``[M_1 | ... | M_N]``, (R, count), from (N, R,
    R').
    """
    gram = (stacked @ stacked.mT).sum(0)
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :count]
