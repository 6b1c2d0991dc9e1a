"""Rules that regress on the measured inputs of each layer.

    regmean, regmean_pp   reproduce each model's outputs on its own inputs (Jin et al.,
                          arXiv:2212.09849); on the merged model's inputs (RegMean++,
                          arXiv:2508.03121)
    mix_of_show           gradient fusion (Gu et al., arXiv:2305.18292), in closed form
    custom_diffusion      constrained merge of keys and values (Kumari et al., arXiv:2212.04488)

Below, ``G_g = X_g^T X_g`` of task g's T_g tokens, w_g is the user's weight of the task, and a task
whose teacher wears nothing here is one more model, whose delta is 0. The answers are exactly low
rank, ``up = [up_1 | ... | up_K]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import SolveError
from .data_free import average
from .layer import Layer, solve_symmetric, summed

# Eigenvalues of a Gram matrix below this share of the first are rounding: it is summed up from
# products in float32.
GRAM_ZERO = 1e-6
CAPTION_RIDGE = 1e-6


def regmean(layer: Layer, *, off_diagonal: float = 0.9) -> LowRankDelta:
    """Return RegMean of the inputs that were measured: teachers' for RegMean, students' for
    RegMean++.

        G^_g = b G_g / T_g + (1 - b) diag(G_g / T_g)
        dW^T = (sum_g w_g G^_g)^-1 sum_g w_g G^_g dW_g^T

    RegMean++ is published block by block, and is here layer by layer. Both work on whole weights;
    on deltas they are the same, since the base weight cancels out.

    Args:
        off_diagonal: b, 0 to 1; 0.9 in the paper, 0.1 for T5.

    Raises:
        SolveError: A singular matrix; only without any damping of what is off the diagonal.
    """
    tasks = layer.counted
    grams = []
    for task in tasks:
        gram = task.statistics.inputs.gram.double() * (task.weight / task.statistics.inputs.tokens)
        grams.append(off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal()))
    advice = "set off_diagonal below 1, or use more samples"
    down = solve_symmetric(summed(grams), layer.taught(tasks, grams), advice).T
    return LowRankDelta(layer.together.delta.up, down)


def mix_of_show(layer: Layer) -> LowRankDelta:
    """Return gradient fusion.

        minimise over dW   sum_g w_g ||X_g dW_g^T - X_g dW^T||_F^2

    Published as a descent from dW = 0. All its steps stay in the span of the inputs, so its limit,
    which is returned, is the solution of least norm,

        dW^T = (sum_g w_g G_g)^+ sum_g w_g G_g dW_g^T

    which is IterIS with X~ = X, one weight per token, and no ridge.
    """
    tasks = layer.counted
    grams = [task.weight * task.statistics.inputs.gram.double() for task in tasks]
    inverse = torch.linalg.pinv(summed(grams), rtol=GRAM_ZERO, hermitian=True)
    down = (inverse @ layer.taught(tasks, grams)).T
    return LowRankDelta(layer.together.delta.up, down)


def custom_diffusion(layer: Layer) -> LowRankDelta:
    """Return Custom Diffusion's constrained solution where the layer reads text, and the average
    elsewhere.

        minimise ||dW C^(1/2)||_F   subject to   dW K = V
        C = sum of c c^T over the tokens of ordinary captions
        K = the concepts' tokens,   V = what each concept's teacher adds to them

    Published as ``W = W0 + (V - W0 K)(D^T K)^-1 D^T`` with D = C^-1 K, for no more tokens than the
    layer is wide, none of them twice. `_constrained` is the same from second moments, for any
    number of tokens; with too many for the constraint it becomes least squares.

    C is measured on the tasks whose teacher wears nothing here, such as preserve prompts, plus 1e-6
    of its mean on the diagonal; without such a task it is the identity. Layers that read text, in a
    network that also has others, are the keys and values of cross-attention. The paper trains no
    other layers.

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
    grams = [task.statistics.inputs.gram.double() for task in concepts]
    ordinary = [task.statistics.inputs.gram.double() for task in layer.counted if not task.mix]
    down = _constrained(
        summed(grams), layer.taught(concepts, grams), summed(ordinary) if ordinary else None
    )
    return LowRankDelta(layer.together.delta.up, down)


def _constrained(gram: Tensor, taught: Tensor, ordinary: Tensor | None) -> Tensor:
    """Return ``dW^T = L^-T (L^-1 G L^-T)^+ L^-1 sum_g G_g dW_g^T`` with C = L L^T, as the factor
    ``down``, (R, d_in).

    Args:
        gram: G of the concepts' inputs, (d_in, d_in).
        taught: ``sum_g G_g dW_g^T``, as factors, (d_in, R).
        ordinary: C without its ridge, (d_in, d_in); None: the identity.
    """
    if ordinary is None:
        solved: Tensor = torch.linalg.pinv(gram, rtol=GRAM_ZERO, hermitian=True) @ taught
        return solved.T
    identity = torch.eye(len(ordinary)).to(ordinary)
    ridge = CAPTION_RIDGE * ordinary.trace() / len(ordinary) * identity
    factor = torch.linalg.cholesky(ordinary + ridge)
    half = torch.linalg.solve_triangular(factor, gram, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    right = torch.linalg.solve_triangular(factor, taught, upper=False)
    inverse = torch.linalg.pinv((whitened + whitened.T) / 2, rtol=GRAM_ZERO, hermitian=True)
    solved = torch.linalg.solve_triangular(factor.T, inverse @ right, upper=True)
    return solved.T
