"""DARE, and pruning by magnitude: thin the deltas out, then average or run TIES.

    dare_linear:      dW = 1/N sum_k M_k o dW_k / p,    M_k ~ Bernoulli(p), p = ``density``
    dare_ties:        TIES without its trim, of M_k o dW_k / p
    magnitude_prune:  dW = 1/N sum_k (the p largest entries of dW_k by magnitude, the rest 0)

DARE: Yu et al., "Language Models are Super Mario", arXiv:2311.03099; its expectation is the
average. The random choice depends on ``seed``, the layer and the adapter's number only, never on
the device. Magnitude pruning: PEFT's ``magnitude_prune``.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .layer import Layer
from .ties import Sign, elect_and_average, trimmed


def dare_linear(layer: Layer, *, density: float = 0.5, seed: int = 0) -> Tensor:
    """Return the (d_out, d_in) mean of randomly thinned deltas.

    Args:
        layer: The layer.
        density: p, above 0, up to 1.
        seed: Seed of the random choice.
    """
    return dropped_and_rescaled(layer, density, seed).sum(0) / layer.adapters


def dare_ties(layer: Layer, *, density: float = 0.5, seed: int = 0, sign: Sign = "total") -> Tensor:
    """Return the (d_out, d_in) TIES of randomly thinned deltas.

    Args:
        layer: The layer.
        density: p, above 0, up to 1.
        seed: Seed of the random choice.
        sign: Rule by which TIES elects a sign.
    """
    return elect_and_average(dropped_and_rescaled(layer, density, seed), sign)


def magnitude_prune(layer: Layer, *, density: float = 0.5) -> Tensor:
    """Return the (d_out, d_in) mean of the deltas' largest entries.

    Args:
        layer: The layer.
        density: p, above 0, up to 1.
    """
    return trimmed(layer.dense(), density).sum(0) / layer.adapters


def dropped_and_rescaled(layer: Layer, density: float, seed: int) -> Tensor:
    """Return the deltas, each entry kept with probability p and divided by p, (adapters at this
    layer, d_out, d_in).
    """
    deltas = layer.dense()
    masks = []
    for k in layer.deltas:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer.path} {k}".encode()))
        masks.append(torch.rand(deltas.shape[1:], generator=generator) < density)
    return deltas * torch.stack(masks).to(deltas) / density
