"""Weighted sums of the adapters' deltas, the most usual merges.

    dW = sum_k w_k dW_k

These are the only methods that lose nothing at rank sum r_k. average: w_k = 1 / N. sum: w_k = 1,
which is what stacking LoRAs does. weighted: w_k = the user's weight of adapter k's own task, over
the sum of all. svd: the sum, cut to `MergeConfig.rank` by a plain SVD (at rank ``sum`` nothing is
cut). task_arithmetic: one w for all (Ilharco et al., "Editing Models with Task Arithmetic",
arXiv:2212.04089). hyper_linear: one w_k per adapter (PEM arithmetic, Zhang et al.,
arXiv:2306.14870; the hyperparameters of IterIS's own table). The last two have no w of their own:
both are searched on the error of the network's output on the calibration samples, see `search`.

The factors are stacked, never averaged: ``(sum_k up_k)(sum_k down_k)`` would add products of one
adapter's up with another's down, which belong to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import LowRankDelta, stack
from ..errors import ConfigError
from ..tasks import Task
from .layer import Layer


def average(layer: Layer) -> LowRankDelta:
    """Return ``1 / N sum_k dW_k``; an adapter that does not change this layer counts as zero."""
    return stack(layer.deltas, dict.fromkeys(layer.deltas, 1 / layer.adapters)).delta


def total(layer: Layer) -> LowRankDelta:
    """Return ``sum_k dW_k``."""
    return layer.together


def linear(layer: Layer, *, coefficients: Sequence[float]) -> LowRankDelta:
    """Return ``sum_k w_k dW_k``.

    Args:
        layer: The layer.
        coefficients: w_k of every adapter of the merge.
    """
    return stack(layer.deltas, {k: coefficients[k] for k in layer.deltas}).delta


def user_weights(tasks: Sequence[Task], adapters: int) -> list[float]:
    """Return each adapter's share of the weights; its weight is the largest of the tasks whose
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
