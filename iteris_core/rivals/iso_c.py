"""Iso-C: the sum of the deltas with a flat spectrum (Marczak et al., "No Task Left Behind",
arXiv:2502.04959).

    U S V^T = SVD of sum_k dW_k,   dW = mean(S) U V^T

The mean is over the singular values that are not zero, at most sum r_k of them: over all of them,
most of which are zero for LoRAs, it would shrink the adapters to nothing. The answer is exactly low
rank.
"""

from __future__ import annotations

from ..adapters import LowRankDelta
from .layer import Layer, singular_triplets


def iso_c(layer: Layer) -> LowRankDelta:
    """Return Iso-C."""
    spectrum = singular_triplets(layer.together)
    return LowRankDelta(spectrum.right * spectrum.values.mean(), spectrum.left.T)
