"""KnOTS: merge in a space that all adapters share (Stoica et al., arXiv:2410.19735).

    U S [V_1 | ... | V_N] = SVD of [dW_1 | ... | dW_N],  each V_k (R, d_in)
    dW = U S merge(V_1, ..., V_N)

The rule of ``knots`` is TIES, on the V_k as in the authors' code. With the mean as a rule the
result is the plain mean. The answer is exactly low rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..svd import svd
from .layer import RELATIVE_ZERO, Layer
from .ties import Sign, trim_and_elect


def knots(layer: Layer, *, density: float = 0.5, sign: Sign = "total") -> LowRankDelta:
    """Return KnOTS-TIES; its options are those of `ties`."""
    return in_knots_space(layer, lambda parts: trim_and_elect(parts, density, sign))


def in_knots_space(layer: Layer, rule: Callable[[Tensor], Tensor]) -> LowRankDelta:
    """Merge the V_k by a rule.

    Args:
        layer: The layer.
        rule: Function that merges (N, R, d_in) into (R, d_in).
    """
    deltas = list(layer.deltas.values())
    left, left_core = torch.linalg.qr(torch.cat([delta.up for delta in deltas], dim=1))
    rows = [torch.linalg.qr(delta.down.T) for delta in deltas]
    u, values, vh = svd(left_core @ torch.block_diag(*(core.T for _, core in rows)))
    used = values > RELATIVE_ZERO * values[0]
    values = values[used]
    parts = vh[used].split([basis.shape[1] for basis, _ in rows], dim=1)
    merged = rule(
        torch.stack([part @ basis.T for part, (basis, _) in zip(parts, rows, strict=True)])
    )
    return LowRankDelta(left @ u[:, used], values[:, None] * merged)
