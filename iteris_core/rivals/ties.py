"""TIES-Merging: trim, elect a sign, average what agrees (Yadav et al., arXiv:2306.01708).

    T_k = the `density` largest entries of dW_k by magnitude, the rest 0
    s = sign(sum_k T_k)  (``total``),  or  sign(sum_k sign(T_k))  (``frequency``);  0 counts as +
    dW = sum_k T_k [sign(T_k) = s] / max(1, number of k with sign(T_k) = s)

On the dense delta of each layer, as in PEFT's ``ties_svd``; PEFT's ``ties`` works on the factors,
which is another method.
"""

from __future__ import annotations

from torch import Tensor, where, zeros_like

from .layer import Layer


def ties(layer: Layer) -> Tensor:
    """Return the (d_out, d_in) delta of TIES."""
    return trim_and_elect(layer.dense(), layer.options.density, layer.options.sign)


def trim_and_elect(stacked: Tensor, density: float, sign: str) -> Tensor:
    """Return TIES of (N, ...) tensors."""
    return elect_and_average(trimmed(stacked, density), sign)


def trimmed(stacked: Tensor, density: float) -> Tensor:
    """Return (N, ...) tensors in which each keeps its ``int(density * size)`` largest entries by
    magnitude.
    """
    flat = stacked.flatten(1)
    kept = flat.abs().topk(int(density * flat.shape[1]), dim=1).indices
    return zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).reshape(stacked.shape)


def elect_and_average(stacked: Tensor, sign: str) -> Tensor:
    """Return the mean of those entries of (N, ...) tensors that have the elected sign."""
    votes = (stacked if sign == "total" else stacked.sign()).sum(0)
    agrees = stacked.sign() == where(votes >= 0, 1.0, -1.0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)
