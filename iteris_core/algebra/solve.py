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
from ..errors import SolveError
from .answer import Cut, LayerSolution, dense_answer, thin_answer
from .coarse import TooCoarseError, exact_directions, factorise_coarsely
from .gain import LinearAnswer, RightSides, own_tasks
from .layer import LayerProblem
from .statistics import add_drifts
from .system import System, factorise


def solve_layer(layer: LayerProblem) -> LayerSolution:
    """Merge one layer.

    Raises:
        SolveError: Activations that are not finite or all zero, or a system that is not positive
            definite.
    """
    if not layer.counted:
        raise SolveError(
            "no task has tokens that count here; give at least one of them token weights above 0"
        )
    config = layer.config
    lambdas = layer.lambdas()
    matrix = layer.normal_matrix(lambdas)
    sides = right_sides(layer, lambdas)
    is_cut = sides.drift is not None and layer.rank != "full"
    is_coarse = is_cut and in_float32(config.factorisation, matrix.device, len(matrix))
    if is_coarse:
        with suppress(TooCoarseError):
            system, is_sound = factorise_coarsely(matrix)
            uncut = LinearAnswer(layer, sides.under(system.half), is_sound)
            exactly = partial(exact_directions, matrix, system)
            return _answer(lambdas, sides, system, uncut, exactly)
    system = factorise(matrix, [sides.whole], layer.inputs_by_name(), config.alpha)
    uncut = LinearAnswer(layer, sides.under(system.half))
    return replace(_answer(lambdas, sides, system, uncut), was_too_coarse=is_coarse)


def _answer(
    lambdas: Tensor,
    sides: RightSides,
    system: System,
    uncut: LinearAnswer,
    exactly: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> LayerSolution:
    """Return the answer of a factorised layer, cut to its rank.

    Args:
        lambdas: lambda per task, (n,).
        uncut: The answer of full rank.
        exactly: Orthonormal basis -> directions of the same span, orthonormal in the exact system,
            see `coarse.exact_directions`; None: the system itself is exact.

    Raises:
        TooCoarseError: The system is too coarse.
    """
    layer = uncut.layer

    def refit(basis: Tensor) -> LowRankDelta:
        if exactly is None:
            return LowRankDelta(uncut.within(basis).half().T, system.other_half(basis).T)
        directions, is_sound = exactly(basis)
        answer = LinearAnswer(layer, sides.under(lambda side: directions.T @ side), is_sound)
        return LowRankDelta(answer.half().T, directions.T)

    cut = Cut(system, lambdas, layer.config, layer.rank, refit)
    together = layer.together.delta
    if sides.drift is not None:
        return dense_answer(cut, uncut.half(), together.rank)
    half = uncut.sides.thin * uncut.scales()
    return thin_answer(cut, half, LowRankDelta(together.up, system.other_half(half).T))


def right_sides(layer: LayerProblem, lambdas: Tensor) -> RightSides:
    """Return the right sides of a layer's system.

    Where the two ridges differ, ``(nu_g - mu_g) W0^T`` is a part of the drift.
    """
    config = layer.config
    together = layer.together
    d_out, d_in = together.delta.shape
    outputs = d_out if config.target == "full_output" else 0
    seen = [layer.tasks[g].statistics.cross for g in own_tasks(layer).values()]
    columns = together.delta.rank + outputs + sum(cross.shape[1] for cross in seen)
    sides = RightSides(together.delta.down.new_zeros(d_in, columns), together.delta.rank, outputs)
    torch.cat([sides.seen[:, :0], *seen], dim=1, out=sides.seen)
    counted = [(task, g) for g, task in enumerate(layer.tasks) if task.counts]
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    nu = alpha_cross * layer.cross_sizes
    shares = lambdas[:, None] * layer.shares
    ridges = nu @ shares
    for place, (k, of_k) in enumerate(together.slices.items()):
        thin = sides.thin[:, of_k].addcmul_(layer.deltas[k].down.T, ridges[place])
        for task, g in counted:
            if task.worn is not None and k in task.mix:
                cross = task.statistics.cross[:, task.worn.slices[k]]
                thin.addcmul_(cross, shares[g, place])
    drift = sides.drift
    if drift is not None:
        add_drifts(drift, [(lambdas[g], task.statistics) for task, g in counted])
        if layer.base_weight is not None:
            mu = config.alpha * layer.sizes
            drift.addcmul_(layer.base_weight.T, lambdas @ (nu - mu))
    return sides
