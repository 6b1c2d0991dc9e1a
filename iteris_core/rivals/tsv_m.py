"""TSV-M: task singular vectors, made orthogonal to one another (Gargiulo et al., arXiv:2412.00081).

    U_k S_k V_k^T = SVD of dW_k,   U = polar([U_1 | ... | U_N]),   V = polar([V_1 | ... | V_N])
    dW = U diag(S_1, ..., S_N) V^T

where polar(M) is the nearest matrix with orthonormal columns. The paper keeps 1/N of each task's
singular vectors, since it merges weights of full rank. A LoRA has r_k of them, and all are kept,
unless they are more than the weight has dimensions; then 1/N of that number each. The answer is
exactly low rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..svd import svd
from .layer import Layer, singular_triplets


def tsv_m(layer: Layer) -> LowRankDelta:
    """Return TSV-M."""
    spectra = [singular_triplets(delta) for delta in layer.deltas.values()]
    most = min(layer.together.shape)
    if sum(len(spectrum.values) for spectrum in spectra) > most:
        most = max(1, most // len(spectra))
    up = polar(torch.cat([spectrum.right[:, :most] for spectrum in spectra], dim=1))
    down = polar(torch.cat([spectrum.left[:, :most] for spectrum in spectra], dim=1))
    return LowRankDelta(up * torch.cat([spectrum.values[:most] for spectrum in spectra]), down.T)


def polar(columns: Tensor) -> Tensor:
    """Return the orthonormal factor of a matrix's polar decomposition, the same shape."""
    u, _, vh = svd(columns)
    return u @ vh
