"""Custom Diffusion's constrained merge of cross-attention keys and values (Kumari et al.,
arXiv:2212.04488).

    minimise ||dW C^(1/2)||_F   subject to   dW K = V
    C = sum of c c^T over the tokens of ordinary captions
    K = the concepts' tokens,   V = what each concept's teacher adds to them

Published as ``W = W0 + (V - W0 K)(D^T K)^-1 D^T`` with D = C^-1 K, for no more tokens than the
layer is wide, none of them twice. The same from second moments, for any number of tokens; with too
many for the constraint it becomes least squares:

    dW^T = L^-T (L^-1 G L^-T)^+ L^-1 sum_g G_g dW_g^T
    G_g = X_g^T X_g,   G = sum_g G_g,   C = L L^T

C is measured on the tasks whose teacher wears nothing here, such as preserve prompts, plus 1e-6 of
its mean on the diagonal; without such a task it is the identity. Layers that read text, in a
network that also has others, are the keys and values of cross-attention. The paper trains no other
layers; here those are averaged. The answer is exactly low rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import SolveError
from .layer import GRAM_ZERO, Layer, summed
from .linear import average

RIDGE = 1e-6


def custom_diffusion(layer: Layer) -> LowRankDelta:
    """Return the constrained solution where the layer reads text, and the average elsewhere.

    Raises:
        SolveError: A layer that reads text, none of whose tokens count.
    """
    if not layer.reads_text:
        return average(layer)
    concepts = [task for task in layer.counted if task.mix]
    if not concepts:
        raise SolveError(
            "no task whose teacher wears something here has tokens that count; give one of them "
            "token weights above 0"
        )
    grams = [task.statistics.inputs.gram for task in concepts]
    ordinary = [task.statistics.inputs.gram for task in layer.counted if not task.mix]
    down = constrained(
        summed(grams),
        layer.taught(concepts, grams),
        summed(ordinary) if ordinary else None,
    )
    return LowRankDelta(layer.together.up, down)


def constrained(gram: Tensor, taught: Tensor, ordinary: Tensor | None) -> Tensor:
    """Return the solution of the constraints with the smallest effect on ordinary inputs, (R,
    d_in).

    Args:
        gram: G of the concepts' inputs, (d_in, d_in).
        taught: ``sum_g G_g dW_g^T``, as factors, (d_in, R).
        ordinary: C without its ridge, (d_in, d_in); None: the identity.
    """
    if ordinary is None:
        return (torch.linalg.pinv(gram, rtol=GRAM_ZERO, hermitian=True) @ taught).T
    metric = ordinary + RIDGE * ordinary.trace() / len(ordinary) * torch.eye(len(ordinary)).to(
        ordinary
    )
    factor = torch.linalg.cholesky(metric)
    half = torch.linalg.solve_triangular(factor, gram, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    right = torch.linalg.solve_triangular(factor, taught, upper=False)
    inverse = torch.linalg.pinv((whitened + whitened.T) / 2, rtol=GRAM_ZERO, hermitian=True)
    return torch.linalg.solve_triangular(factor.T, inverse @ right, upper=True).T
