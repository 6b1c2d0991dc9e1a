"""The closed form of one layer, on its statistics. Pure functions, float64.

    minimise over dW   sum_g lam_g ( ||T_g - X~_g dW^T||_F^2 + mu_g ||dW_g - dW||_F^2 )
    T_g = X_g dW_g^T  (target "delta"),  or  X_g (W0 + dW_g)^T - X~_g W0^T  (target "full_output")
    mu_g = alpha ||X~_g^T X~_g||_F

    dW^T = S^-1 B,   S = sum_g lam_g (X~_g^T X~_g + mu_g I)
    B = [D_1 | ... | D_K] [up_1 | ... | up_K]^T + sum_g lam_g drift_g
    D_k = sum_g lam_g m_gk (X~_g^T X_g down_k^T + nu_g down_k^T)
    nu_g = mu_g, or alpha ||X~_g^T X_g||_F (the paper)

With the delta target there is no drift, and the answer is exactly low rank:
up = [up_1 | ... | up_K], down^T = S^-1 [D_1 | ... | D_K].
Source: IterIS, arXiv:2411.15231, Algorithm 1 and equation 8; official ``solution_matrix``. The
whole method on one page is in `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..devices import in_float32
from .answer import Cut, LayerSolution, dense_answer, thin_answer
from .coarse import TooCoarseError, check_of, exact_directions, factorise_coarsely
from .gain import LinearAnswer, RightSides
from .layer import LayerProblem
from .statistics import add_drifts
from .system import System, factorise_unchecked


def solve_layer(layer: LayerProblem) -> LayerSolution:
    """Merge one layer, at which some task counts.

    Raises:
        SolveError: Activations that are not finite or all zero, or a system that is not positive
            definite.
    """
    config = layer.config
    matrix = layer.normal_matrix()
    sides = right_sides(layer)
    is_cut = sides.drift is not None and layer.rank != "full"
    is_coarse = is_cut and in_float32(matrix.device, len(matrix))
    if is_coarse:
        with suppress(TooCoarseError):
            return _coarse_answer(layer, matrix, sides)
    inputs = layer.inputs_by_name()
    system, check = factorise_unchecked(matrix, [sides.whole], inputs, config.alpha)
    uncut = LinearAnswer(layer, sides.mapped(system.solve_lower), check)
    return replace(_answer(sides, system, uncut), was_too_coarse=is_coarse)


def _coarse_answer(layer: LayerProblem, matrix: Tensor, sides: RightSides) -> LayerSolution:
    """Return the answer by a factor in float32.

    Raises:
        TooCoarseError: The system is too coarse, or the right sides are not finite; the exact way
            names the cause of that.
    """
    system, is_sound = factorise_coarsely(matrix)
    is_usable = is_sound & sides.whole.sum().isfinite()
    uncut = LinearAnswer(layer, sides.mapped(system.solve_lower), check_of(is_usable))
    return _answer(sides, system, uncut, partial(exact_directions, matrix, system))


def _answer(
    sides: RightSides,
    system: System,
    uncut: LinearAnswer,
    exactly: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> LayerSolution:
    """Return the answer of a factorised layer, cut to its rank.

    Args:
        uncut: The answer of full rank.
        exactly: Orthonormal basis -> directions of the same span, orthonormal in the exact system,
            see `coarse.exact_directions`; None: the system itself is exact.

    Raises:
        TooCoarseError: The system is too coarse.
    """
    layer = uncut.layer

    def refit(basis: Tensor) -> LowRankDelta:
        if exactly is None:
            return LowRankDelta(uncut.within(basis).half().T, system.solve_upper(basis).T)
        directions, is_sound = exactly(basis)
        inside = sides.mapped(lambda side: directions.T @ side)
        answer = LinearAnswer(layer, inside, check_of(is_sound))
        return LowRankDelta(answer.half().T, directions.T)

    cut = Cut(system, layer.config, layer.rank, refit)
    together = layer.together.delta
    if sides.drift is not None:
        return dense_answer(cut, uncut.half(), together.rank)
    half = uncut.sides.thin * uncut.scales()
    return thin_answer(cut, half, LowRankDelta(together.up, system.solve_upper(half).T))


def right_sides(layer: LayerProblem) -> RightSides:
    """Return the right sides of a layer's system.

    Where the two ridges differ, ``(nu_g - mu_g) W0^T`` is a part of the drift.
    """
    config = layer.config
    lambdas = layer.balance.lambdas
    together = layer.together
    d_out, d_in = together.delta.shape
    outputs = d_out if config.target == "full_output" else 0
    seen = [layer.tasks[g].statistics.cross for g in layer.own_tasks.values()]
    columns = together.delta.rank + outputs + sum(cross.shape[1] for cross in seen)
    sides = RightSides(together.delta.down.new_zeros(d_in, columns), together.delta.rank, outputs)
    torch.cat([sides.seen[:, :0], *seen], dim=1, out=sides.seen)
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    nu = alpha_cross * layer.sizes.crosses
    mixing = _mixing(layer, nu).to(sides.whole)
    torch.addmm(together.delta.down.T * mixing[-1], layer.worn_cross, mixing[:-1], out=sides.thin)
    drift = sides.drift
    if drift is not None:
        lams = zip(lambdas.tolist(), layer.tasks, strict=True)
        add_drifts(drift, [(lam, task.statistics) for lam, task in lams if task.counts])
        if layer.base_weight is not None:
            mu = config.alpha * layer.sizes.grams
            drift.add_(layer.base_weight.T, alpha=(lambdas @ (nu - mu)).item())
    return sides


def _mixing(layer: LayerProblem, nu: Tensor) -> Tensor:
    """Return the factors of ``worn_cross``'s columns in each column of D, and in the last row the
    ridge on it, (R' + 1, R).
    """
    together = layer.together
    shares = layer.balance.lambdas[:, None] * layer.shares
    ridges = (nu @ shares).repeat_interleave(torch.tensor(layer.ranks))
    places = {k: place for place, k in enumerate(layer.deltas)}
    factors = torch.zeros(layer.worn_cross.shape[1], together.delta.rank, dtype=torch.float64)
    of_tasks = torch.split(factors, [worn.delta.rank for _, _, worn in layer.wearing])
    for of_task, (g, task, worn) in zip(of_tasks, layer.wearing, strict=True):
        for k in task.mix:
            part = of_task[worn.slices[k], together.slices[k]]
            part.fill_diagonal_(shares[g, places[k]].item())
    return torch.cat([factors, ridges[None]])
