"""Rules that look at nothing but the deltas.

    average, sum      dW = sum_k w_k dW_k with w_k = 1 / N, or 1
    weighted          w_k = the user's weights over their sum
    task_arithmetic   one w for all (Ilharco et al., arXiv:2212.04089)
    hyper_linear      one w_k per adapter (PEM arithmetic, Zhang et al., arXiv:2306.14870)
    ties              trim, elect a sign, average what agrees (Yadav et al., arXiv:2306.01708)
    np_lora           the style's directions kept free of the others (Chen et al., arXiv:2511.11051)

A sum loses nothing at rank sum r_k: factors are stacked, never added, since ``(sum_k up_k)(sum_k
down_k)`` has products of one adapter's up with another's down. All answers but TIES are exactly low
rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack
from ..errors import ConfigError
from ..tasks import Task
from .layer import Layer, singular_triplets

STYLE = 0  # NP-LoRA's style is the first adapter


def average(layer: Layer) -> LowRankDelta:
    """Return ``1 / N sum_k dW_k``; an adapter that does not change this layer counts as zero."""
    return stack(layer.deltas, dict.fromkeys(layer.deltas, 1 / layer.adapters)).delta


def stacked_sum(layer: Layer) -> LowRankDelta:
    """Return ``sum_k dW_k``, as when LoRAs are stacked."""
    return layer.together.delta


def linear(layer: Layer, *, coefficients: Sequence[float]) -> LowRankDelta:
    """Return ``sum_k w_k dW_k``.

    Args:
        coefficients: w_k of every adapter of the merge.
    """
    return stack(layer.deltas, {k: coefficients[k] for k in layer.deltas}).delta


def user_weights(tasks: Sequence[Task], adapters: int) -> list[float]:
    """Return each adapter's share of the weights; its weight is the largest among the tasks whose
    teacher wears it alone.

    Raises:
        ConfigError: No adapter has a task of its own with a weight above 0.
    """
    weights = [0.0] * adapters
    for task in tasks:
        worn = [k for k, share in task.mix.items() if share]
        if len(worn) == 1:
            weights[worn[0]] = max(weights[worn[0]], task.weight)
    if not sum(weights):
        raise ConfigError(
            "method 'weighted' needs a task with a weight above 0 whose teacher wears one adapter "
            "alone"
        )
    return [weight / sum(weights) for weight in weights]


def ties(layer: Layer, *, density: float = 0.5) -> Tensor:
    """Return the (d_out, d_in) delta of TIES.

        T_k = the largest entries of dW_k by magnitude, the rest 0
        s = sign(sum_k T_k),  sign(0) = 1
        dW = sum_k T_k [sign(T_k) = s] / max(1, number of k with sign(T_k) = s)

    On the dense delta of each layer, as in PEFT's ``ties_svd``; PEFT's ``ties`` works on the
    factors, which is another method.

    Args:
        density: Share of the entries that is kept, above 0, up to 1.
    """
    kept = trimmed(layer.dense(), density)
    agrees = kept.sign() == torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    return (kept * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def trimmed(stacked: Tensor, density: float) -> Tensor:
    """Return (N, ...) tensors that each keep their ``int(density * size)`` largest entries by
    magnitude, at least one.
    """
    flat = stacked.flatten(1)
    kept = flat.abs().topk(max(1, int(density * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).reshape(stacked.shape)


def np_lora(layer: Layer, *, projection: float | None = 0.5) -> LowRankDelta:
    """Return NP-LoRA, which takes the style's directions out of all other adapters; where the style
    changes nothing, the sum of the others.

        V = right singular vectors of dW_style,  (d_in, r)
        dW = dW_style + sum_(k != style) dW_k (I - mu / (1 + mu) V V^T)

    Each term of the sum is the minimum of ``||W - dW_k||^2 + mu ||W V||^2`` over W. The first
    adapter is the style; the paper has one other, here there may be more.

    Args:
        projection: mu, 0 or more: 0 is the plain sum. None: its limit, the hard projection.
    """
    if STYLE not in layer.deltas:
        return layer.together.delta
    share = 1.0 if projection is None else projection / (1 + projection)
    directions = singular_triplets(layer.deltas[STYLE]).left
    projected = {
        k: delta
        if k == STYLE
        else LowRankDelta(delta.up, delta.down - share * (delta.down @ directions) @ directions.T)
        for k, delta in layer.deltas.items()
    }
    return stack(projected).delta
