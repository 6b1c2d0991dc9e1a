"""RegMean and RegMean++: the regression that reproduces each model's outputs on its own inputs.

    G_g = X_g^T X_g / T_g,   G^_g = b G_g + (1 - b) diag(G_g)
    dW^T = (sum_g w_g G^_g)^-1 sum_g w_g G^_g dW_g^T

b is ``off_diagonal`` (0.9 in the paper, 0.1 for T5), w_g the user's weight of the task, T_g its
tokens. A task whose teacher wears nothing here is one more model, whose delta is 0.

RegMean (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models",
arXiv:2212.09849) takes X_g from the adapter's own model. RegMean++ (arXiv:2508.03121) takes it from
the merged model, layer after layer; published block by block, here layer by layer. Both work on
whole weights; on deltas they are the same, since the base weight cancels out.

The answer is exactly low rank: ``up = [up_1 | ... | up_K]``.
"""

from __future__ import annotations

import torch

from ..adapters import LowRankDelta
from .layer import Layer, solve_symmetric, summed


def regmean(layer: Layer, *, off_diagonal: float = 0.9) -> LowRankDelta:
    """Return RegMean of the inputs that were measured: teachers' for RegMean, students' for
    RegMean++.

    Args:
        layer: The layer.
        off_diagonal: b, 0 to 1.

    Raises:
        SolveError: A singular matrix; only without any damping of what is off the diagonal.
    """
    tasks = layer.counted
    grams = []
    for task in tasks:
        gram = task.statistics.inputs.gram * (task.weight / task.statistics.inputs.tokens)
        grams.append(off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal()))
    advice = "set off_diagonal below 1, or use more samples"
    down = solve_symmetric(summed(grams), layer.taught(tasks, grams), advice).T
    return LowRankDelta(layer.together.up, down)
