"""SSR-Merge: route between the adapters' ranks (ICML 2026, arXiv:2606.10617).

    Z_g = X_g [down_1; ...; down_N]^T,   H_g = Z_g with column block k times m_gk
    R = Q G^-1,   G = 1/T sum_g Z_g^T Z_g + 1e-4 I,   Q = 1/T sum_g H_g^T Z_g
    dW = [up_1 | ... | up_N] R [down_1; ...; down_N]

For one-hot mixes H_g is ``X_g down_g^T`` in its own block, as published. It is RegMean with the
merged down-projections confined to the span of the adapters', so the statistics are R x R only. As
in the authors' code, T counts all tokens, the ridge is absolute, a task whose adapter does not
change this layer is ignored here, and a lone adapter is passed through. The answer is exactly low
rank.
"""

from __future__ import annotations

import torch

from ..adapters import LowRankDelta
from .layer import Layer, solve_symmetric

RIDGE = 1e-4


def ssr(layer: Layer) -> LowRankDelta:
    """Return SSR-Merge of the teachers' inputs."""
    together = layer.together
    places = layer.stacked.slices
    tasks = [task for task in layer.counted if task.mix]
    if len(layer.deltas) == 1 or not tasks:
        return together
    gram = torch.zeros(together.rank, together.rank).to(together.up)
    routed = torch.zeros_like(gram)
    tokens = sum(task.statistics.inputs.tokens for task in tasks)
    for task in tasks:
        form = task.weight / tokens * task.statistics.inputs.form(together.down)
        gram += form
        for k, share in task.mix.items():
            routed[places[k]] += share * form[places[k]]
    gram.diagonal().add_(RIDGE)
    router = solve_symmetric(gram, routed.T, "use more samples").T
    return LowRankDelta(together.up @ router, together.down)
