"""NP-LoRA: keep the style, and take its directions out of everybody else (Chen et al.,
arXiv:2511.11051).

    V = right singular vectors of dW_style,  (d_in, r)
    dW = dW_style + sum_(k != style) dW_k (I - mu / (1 + mu) V V^T)

Each term of the sum is the minimum of ``||W - dW_k||^2 + mu ||W V||^2`` over W. mu is
``projection``: 0 is the plain sum, None the limit of a large mu, the hard projection. The first
adapter is the style; the paper has one other, here there may be more. Order matters. The answer is
exactly low rank.
"""

from __future__ import annotations

from ..adapters import LowRankDelta, stack
from .layer import Layer, singular_triplets

STYLE = 0


def np_lora(layer: Layer, *, projection: float | None = 0.5) -> LowRankDelta:
    """Return NP-LoRA, with the first adapter as the style; where that one changes nothing, the sum
    of the others.

    Args:
        layer: The layer.
        projection: mu, 0 or more; None: infinite.
    """
    if STYLE not in layer.deltas:
        return layer.together
    share = 1.0 if projection is None else projection / (1 + projection)
    directions = singular_triplets(layer.deltas[STYLE]).left
    projected = {
        k: delta
        if k == STYLE
        else LowRankDelta(delta.up, delta.down - share * (delta.down @ directions) @ directions.T)
        for k, delta in layer.deltas.items()
    }
    return stack(projected).delta
