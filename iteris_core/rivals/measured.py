"""Rules that regress on the measured inputs of each layer.

    regmean, regmean_pp   reproduce each model's outputs on its own inputs (Jin et al.,
                          arXiv:2212.09849); on the merged model's inputs (RegMean++,
                          arXiv:2508.03121)
    ssr                   RegMean in the span of the adapters (SSR-Merge, ICML 2026,
                          arXiv:2606.10617)
    mix_of_show           gradient fusion (Gu et al., arXiv:2305.18292)
    custom_diffusion      constrained merge of keys and values (Kumari et al., arXiv:2212.04488)

Below, ``G_g = X_g^T X_g`` of task g's T_g tokens, w_g is the user's weight of the task, and a task
whose teacher wears nothing here is one more model, whose delta is 0. The answers are exactly low
rank, ``up = [up_1 | ... | up_K]``, but for Mix-of-Show as published.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..algebra.balance import TaskAtLayer
from ..errors import SolveError
from .data_free import average
from .layer import Layer, solve_symmetric, summed

# Eigenvalues of a Gram matrix below this share of the first are rounding: it is summed up from
# products in float32.
GRAM_ZERO = 1e-6
SSR_RIDGE = 1e-4
CAPTION_RIDGE = 1e-6
TEXT_STEPS = 500
OTHER_STEPS = 50


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


def ssr(layer: Layer) -> LowRankDelta:
    """Return SSR-Merge, which routes between the adapters' ranks.

        Z_g = X_g [down_1; ...; down_N]^T,   H_g = Z_g with column block k times m_gk
        R = Q G^-1,   G = 1/T sum_g Z_g^T Z_g + 1e-4 I,   Q = 1/T sum_g H_g^T Z_g
        dW = [up_1 | ... | up_N] R [down_1; ...; down_N]

    For one-hot mixes H_g is ``X_g down_g^T`` in its own block, as published. As in the authors'
    code, T counts all tokens, the ridge is absolute, a task whose adapter does not change this
    layer is ignored here, and a lone adapter is passed through.
    """
    together = layer.together.delta
    places = layer.together.slices
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
    gram.diagonal().add_(SSR_RIDGE)
    router = solve_symmetric(gram, routed.T, "use more samples").T
    return LowRankDelta(together.up @ router, together.down)


def mix_of_show(
    layer: Layer, *, solver: Literal["closed_form", "lbfgs"] = "closed_form"
) -> LowRankDelta | Tensor:
    """Return gradient fusion.

        minimise over dW   1 / (M d_out) sum_g w_g ||X_g dW_g^T - X_g dW^T||_F^2,   M tokens in all

    As published (``lbfgs``) by descent from dW = 0, whose early end is the regulariser. All its
    steps stay in the span of the inputs, so its limit (``closed_form``) is the solution of least
    norm,

        dW^T = (sum_g w_g G_g)^+ sum_g w_g G_g dW_g^T

    which is IterIS with X~ = X, one weight per token, and no ridge.

    Args:
        solver: The limit, or descent as published.
    """
    tasks = layer.counted
    grams = [task.weight * task.statistics.inputs.gram.double() for task in tasks]
    right = layer.taught(tasks, grams)
    gram = summed(grams)
    up = layer.together.delta.up
    if solver == "closed_form":
        inverse = torch.linalg.pinv(gram, rtol=GRAM_ZERO, hermitian=True)
        return LowRankDelta(up, (inverse @ right).T)
    tokens = sum(task.statistics.inputs.tokens for task in tasks)
    energy = summed([task.weight * _energy(task) for task in tasks])
    steps = TEXT_STEPS if layer.reads_text else OTHER_STEPS
    return _descend(gram, right @ up.T, energy, tokens * len(up), steps)


def _energy(task: TaskAtLayer) -> Tensor:
    """Return ``||X_g dW_g^T||_F^2``, 0-dim."""
    codes = task.statistics.codes
    if task.worn is None:
        return codes.new_zeros(())
    up = task.worn.delta.up.to(codes)
    return ((up.T @ up) * codes).sum()


def _descend(gram: Tensor, right: Tensor, energy: Tensor, scale: int, steps: int) -> Tensor:
    """Return the best iterate, (d_out, d_in), of L-BFGS with a strong Wolfe line search on
    ``(tr(W G W^T) - 2 tr(W B) + energy) / scale``.

    Args:
        gram: G, (d_in, d_in).
        right: B, (d_in, d_out).
        energy: Energy of the target, 0-dim.
        scale: Number of entries of the target.
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
    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return best


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
        summed(grams),
        layer.taught(concepts, grams),
        summed(ordinary) if ordinary else None,
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
