"""Core Space: merge R x R matrices instead of weights (Panariello et al., arXiv:2509.17786).

    U = left singular vectors of [up_1 | ... | up_N]
    V = right singular vectors of [down_1; ...; down_N]
    M_k = U^T up_k down_k V,   dW = U merge(M_1, ..., M_N) V^T

Nothing is lost on the way there and back. The rule of ``core_space_ties`` is TIES. TSV-M and Iso-C
give in core space what they give outside, since U and V are orthonormal: there is no second version
of those. The answer is exactly low rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .layer import RELATIVE_ZERO, Layer
from .ties import Sign, trim_and_elect


def core_space_ties(layer: Layer, *, density: float = 0.5, sign: Sign = "total") -> LowRankDelta:
    """Return TIES in core space; its options are those of `ties`."""
    return in_core_space(layer, lambda cores: trim_and_elect(cores, density, sign))


def in_core_space(layer: Layer, rule: Callable[[Tensor], Tensor]) -> LowRankDelta:
    """Merge the M_k by a rule.

    Args:
        layer: The layer.
        rule: Function that merges (N, R, R') into (R, R').
    """
    together = layer.together
    left = _basis(together.up)
    right = _basis(together.down.T)
    cores = torch.stack(
        [(left.T @ delta.up) @ (delta.down @ right) for delta in layer.deltas.values()]
    )
    return LowRankDelta(left @ rule(cores), right.T)


def _basis(columns: Tensor) -> Tensor:
    """Return the left singular vectors of (d, R) that are not rounding."""
    u, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, values > RELATIVE_ZERO * values[0]]
