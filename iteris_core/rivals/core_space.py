"""Core Space: merge R x R matrices instead of weights (Panariello et al., arXiv:2509.17786).

    U = left singular vectors of [up_1 | ... | up_N]
    V = right singular vectors of [down_1; ...; down_N]
    M_k = U^T up_k down_k V,   dW = U merge(M_1, ..., M_N) V^T

Nothing is lost on the way there and back. The rule of ``core_space_ties`` is TIES. TSV-M and Iso-C
give in core space what they give outside, since U and V are orthonormal: there is no second version
of those. The answer is exactly low rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..svd import svd
from .layer import RELATIVE_ZERO, Layer
from .ties import Sign, trim_and_elect


@dataclass(frozen=True)
class CoreSpace:
    """Deltas of one layer in core space: U (d_out, R), V (d_in, R'), and the M_k, (N, R, R')."""

    left: Tensor
    right: Tensor
    cores: Tensor


def core_space_ties(layer: Layer, *, density: float = 0.5, sign: Sign = "total") -> LowRankDelta:
    """Return TIES in core space; its options are those of `ties`."""
    space = core_space(list(layer.deltas.values()))
    return LowRankDelta(space.left @ trim_and_elect(space.cores, density, sign), space.right.T)


def core_space(deltas: Sequence[LowRankDelta]) -> CoreSpace:
    """Return deltas, at least one and not all zero, in core space."""
    left = _basis(torch.cat([delta.up for delta in deltas], dim=1))
    right = _basis(torch.cat([delta.down for delta in deltas]).T)
    cores = [(left.T @ delta.up) @ (delta.down @ right) for delta in deltas]
    return CoreSpace(left, right, torch.stack(cores))


def _basis(columns: Tensor) -> Tensor:
    """Return the left singular vectors of (d, R) that are not rounding."""
    u, values, _ = svd(columns)
    return u[:, values > RELATIVE_ZERO * values[0]]
