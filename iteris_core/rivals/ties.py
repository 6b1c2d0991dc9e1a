"""TIES-Merging: trim, elect a sign, average what agrees (Yadav et al., arXiv:2306.01708).

    T_k = the `density` largest entries of dW_k by magnitude, the rest 0
    s = sign(sum_k T_k)  (``total``),  or  sign(sum_k sign(T_k))  (``frequency``);  0 counts as +
    dW = sum_k T_k [sign(T_k) = s] / max(1, number of k with sign(T_k) = s)

On the dense delta of each layer, as in PEFT's ``ties_svd``; PEFT's ``ties`` works on the factors,
which is another method.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, where, zeros_like

from .layer import Layer

Sign = Literal["total", "frequency"]


def ties(layer: Layer, *, density: float = 0.5, sign: Sign = "total") -> Tensor:
    """Return the (d_out, d_in) delta of TIES.

    Args:
        layer: The layer.
        density: Share of the entries that is kept, above 0, up to 1.
        sign: Rule by which a sign is elected.
    """
    return trim_and_elect(layer.dense(), density, sign)


def trim_and_elect(stacked: Tensor, density: float, sign: Sign) -> Tensor:
    """Return TIES of (N, ...) tensors."""
    return elect_and_average(trimmed(stacked, density), sign)


def trimmed(stacked: Tensor, density: float) -> Tensor:
    """Return (N, ...) tensors in which each keeps its ``int(density * size)`` largest entries by
    magnitude, at least one.
    """
    flat = stacked.flatten(1)
    kept = flat.abs().topk(max(1, int(density * flat.shape[1])), dim=1).indices
    return zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).reshape(stacked.shape)


def elect_and_average(stacked: Tensor, sign: Sign) -> Tensor:
    """Return the mean of those entries of (N, ...) tensors that have the elected sign."""
    votes = (stacked if sign == "total" else stacked.sign()).sum(0)
    agrees = stacked.sign() == where(votes >= 0, 1.0, -1.0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)
