"""ACE-Merging: read each adapter's inputs off its delta (Xu et al., CVPR 2026, arXiv:2603.02945).

    C_k = dW_k less its mean over outputs,   t_k = tr(C_k^T C_k)
    S_k = s_k C_k^T C_k,   s_k = 1 and e_k = eps,  or  s_k = 1 / t_k and e_k = eps / t_k
    W = sum_k C_k (S_k + e_k I) (sum_k (S_k + e_k I) + 1 c^T)^-1
    dW = W,  or  W + mean(Z) U V^T

The input covariance of each task is estimated from its delta, and RegMean is solved with it; no
data is used. ``1 c^T`` is the collective prior: c is the mean row of ``sum_k S_k``. The second of
each pair of formulas is for layers whose deltas differ in size: where the variance of ``log
||dW_k||^2`` over the square of its mean is above 0.3. There c is divided by the mean of
``||dW_k||^2``, and ``U Z V^T`` are the leading 30 % of the singular triplets of

    W + sum_k dW_k (S_k - 1/N sum_j (S_j + e_j I))

All this, with an absolute eps, is in the authors' code. Ours are four things. Of the singular
triplets 30 % of those that are not zero are leading, at least one: of all of them, most of which
are zero for LoRAs, arbitrary directions would be among them. An adapter that does not change this
layer is left out, since its covariance would be unknown. A lone adapter is passed through.
Convolutions are merged as matrices, where the authors average them. The answer is exactly low rank:
with D = [down_1; ...; down_N] all matrices that are solved are R x R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .layer import Layer, singular_triplets

EPS = 1e-2
DIFFERENT = 0.3
LEADING = 0.3
TINY = 1e-12  # the authors' guard of logarithms and quotients


@dataclass(frozen=True)
class _Scales:
    """s_k and e_k, (N,) each, and the factor of the prior; those of deltas that differ in size, if
    they do.
    """

    differ: bool
    covariance: Tensor
    ridge: Tensor
    prior: Tensor


def ace(layer: Layer) -> LowRankDelta:
    """Return ACE-Merging."""
    deltas = list(layer.changing.values())
    if len(deltas) < 2:
        return deltas[0] if deltas else layer.together
    centred = [LowRankDelta(delta.up - delta.up.mean(0), delta.down) for delta in deltas]
    scales = _scales(deltas, centred)
    down = torch.cat([delta.down for delta in deltas])
    overlaps = down @ down.T
    # sum_k S_k = D^T M D,  down_k S_k = own_k down_k
    factors = [
        share * delta.up.T @ delta.up
        for share, delta in zip(scales.covariance, centred, strict=True)
    ]
    gram = torch.block_diag(*factors)
    own = torch.block_diag(
        *(delta.down @ delta.down.T @ m for m, delta in zip(factors, deltas, strict=True))
    )
    ridges = torch.cat(
        [e.expand(delta.rank) for e, delta in zip(scales.ridge, deltas, strict=True)]
    )
    ridge = scales.ridge.sum() * torch.eye(len(down)).to(down)
    sums = down.sum(1, keepdim=True)
    prior = scales.prior / down.shape[1] * sums @ sums.T
    # D (e I + (I + p/d 1 1^T) D^T M D)^-1 = (e I + (D D^T + prior) M)^-1 D
    core = torch.linalg.solve(ridge + (overlaps + prior) @ gram, own + ridges.diag(), left=False)
    up = torch.cat([delta.up for delta in centred], dim=1) @ core
    if scales.differ:
        rest = own - (overlaps @ gram + ridge) / len(deltas)
        fused = LowRankDelta(up + torch.cat([delta.up for delta in deltas], dim=1) @ rest, down)
        up = up + _refinement(fused)
    return LowRankDelta(up, down)


def _refinement(fused: LowRankDelta) -> Tensor:
    """Return ``mean(Z) U V^T`` of a delta as the up-projection, (d_out, R), of its ``down``."""
    spectrum = singular_triplets(fused)
    count = max(1, int(LEADING * len(spectrum.values)))
    left = spectrum.right[:, :count]
    values = spectrum.values[:count]
    return values.mean() * (left / values) @ (left.T @ fused.up)


def _scales(deltas: Sequence[LowRankDelta], centred: Sequence[LowRankDelta]) -> _Scales:
    energies = torch.stack([delta.squared_norm() for delta in deltas])
    logs = (energies + TINY).log()
    differ = bool(logs.var() / (logs.mean().square() + TINY) > DIFFERENT)
    ones = torch.ones_like(energies)
    if not differ:
        return _Scales(differ, ones, EPS * ones, ones[0])
    shares = 1 / (torch.stack([delta.squared_norm() for delta in centred]) + TINY)
    return _Scales(differ, shares, EPS * shares, 1 / (energies.mean() + TINY))
