"""Mix-of-Show's gradient fusion: regress on every adapter's own inputs, from the base weight (Gu et
al., arXiv:2305.18292).

    minimise over dW   1 / (M d_out) sum_g w_g ||X_g dW_g^T - X_g dW^T||_F^2,   M tokens in all

starting at dW = 0.

As published, with ``solver="lbfgs"``: L-BFGS with a strong Wolfe line search, 500 steps for layers
that read text and 50 for the others, of which the best is kept; stopping early is the regulariser.
All steps stay in the span of the inputs, so the limit (``solver="closed_form"``) is the solution of
least norm,

    dW^T = (sum_g w_g X_g^T X_g)^+ sum_g w_g X_g^T X_g dW_g^T

which is IterIS with X~ = X, one weight per token, and no ridge. It is exactly low rank. Both see
the inputs only through their Gram matrices, which is all that the objective depends on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .layer import GRAM_ZERO, Layer, summed

TEXT_STEPS = 500
OTHER_STEPS = 50


def mix_of_show(
    layer: Layer, *, solver: Literal["closed_form", "lbfgs"] = "closed_form"
) -> LowRankDelta | Tensor:
    """Return gradient fusion.

    Args:
        layer: The layer.
        solver: The limit, or descent as published.
    """
    tasks = layer.counted
    grams = [task.weight * task.statistics.inputs.gram for task in tasks]
    right = layer.taught(tasks, grams)
    total = summed(grams)
    up = layer.together.up
    if solver == "closed_form":
        return LowRankDelta(
            up, (torch.linalg.pinv(total, rtol=GRAM_ZERO, hermitian=True) @ right).T
        )
    tokens = sum(task.statistics.inputs.tokens for task in tasks)
    energy = summed([task.weight * task.delta_energy() for task in tasks])
    steps = TEXT_STEPS if layer.reads_text else OTHER_STEPS
    return _descend(total, right @ up.T, energy, tokens * len(up), steps)


def _descend(gram: Tensor, right: Tensor, energy: Tensor, scale: int, steps: int) -> Tensor:
    """Return the best iterate, (d_out, d_in), of L-BFGS on ``(tr(W G W^T) - 2 tr(W B) + energy) /
    scale``.

    Args:
        gram: G, (d_in, d_in).
        right: B, (d_in, d_out).
        energy: Energy of the target, 0-dim.
        scale: Number of entries of the target.
        steps: Number of steps at most.
    """
    weight = torch.zeros_like(right.T, requires_grad=True)
    best = weight.detach().clone()
    smallest = float("inf")

    def loss() -> Tensor:
        nonlocal best, smallest
        with torch.no_grad():
            product = weight @ gram
            weight.grad = 2 / scale * (product - right.T)
            value = ((product * weight).sum() - 2 * (weight * right.T).sum() + energy) / scale
            if value < smallest:
                best = weight.detach().clone()
                smallest = value.item()
        return value

    optimiser = torch.optim.LBFGS(
        [weight],
        lr=1,
        max_iter=steps,
        history_size=25,
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(loss)
    return best
