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

from dataclasses import replace
from functools import partial

from torch import Tensor

from ..adapters import LowRankDelta
from ..devices import in_float32
from ..errors import SolveError
from .answer import Cut, LayerSolution, dense_answer, thin_answer
from .coarse import TooCoarseError, exact_directions, factorise_coarsely
from .gain import LinearAnswer
from .layer import LayerProblem
from .sample_space import solve_in_sample_space, usable_rows
from .system import System, factorise


def solve_layer(layer: LayerProblem) -> LayerSolution:
    """Merge one layer.

    Args:
        layer: Deltas and tasks of the layer, with their statistics.

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
    joint = usable_rows(layer)
    if joint is not None:
        return solve_in_sample_space(layer, joint, lambdas)
    matrix = layer.normal_matrix(lambdas)
    thin, drift = right_sides(layer, lambdas)
    too_coarse = False
    if (
        drift is not None
        and layer.rank != "full"
        and in_float32(config.factorisation, matrix.device, len(matrix))
    ):
        try:
            return _solve_coarsely(layer, matrix, thin, drift, lambdas)
        except TooCoarseError:
            too_coarse = True
    checked = [thin] if drift is None else [thin, drift]
    system = factorise(matrix, checked, layer.inputs_by_name(), config.alpha)
    together = layer.together.delta
    gained = None
    refit = None
    if config.largest_gain > 1:
        halved_drift = None if drift is None else system.half(drift)
        gained = LinearAnswer(layer, system.half, system.half(thin), halved_drift)
        refit = partial(_refit, gained, system)
    cut = Cut(system, lambdas, config, layer.rank, refit)
    if drift is None:
        half = system.half(thin) if gained is None else gained.thin * gained.scales()
        return thin_answer(cut, half, LowRankDelta(together.up, system.other_half(half).T))
    half = system.half(thin @ together.up.T + drift) if gained is None else gained.half()
    return replace(dense_answer(cut, half, together.rank), was_too_coarse=too_coarse)


def _refit(gained: LinearAnswer, system: System, basis: Tensor) -> LowRankDelta:
    """Return the answer that is cut to a basis, at its gain there."""
    return LowRankDelta(gained.cut_to(basis).T, system.other_half(basis).T)


def _solve_coarsely(
    layer: LayerProblem, matrix: Tensor, thin: Tensor, drift: Tensor, lambdas: Tensor
) -> LayerSolution:
    """Merge one layer by a float32 factorisation, see `coarse`.

    Args:
        layer: The layer, whose answer is cut to a rank.
        matrix: S, see the top of this file.
        thin: See `right_sides`.
        drift: See `right_sides`.
        lambdas: lambda per task, (n,).

    Raises:
        TooCoarseError: Float32 does not hold enough digits of the matrix.
    """
    system = factorise_coarsely(matrix)
    uncut = LinearAnswer(layer, system.half, system.half(thin), system.half(drift))

    def refit(basis: Tensor) -> LowRankDelta:
        directions = exact_directions(matrix, system, basis)
        halved = directions.T.__matmul__
        within = LinearAnswer(layer, halved, halved(thin), halved(drift))
        return LowRankDelta(within.half().T, directions.T)

    cut = Cut(system, lambdas, layer.config, layer.rank, refit)
    return dense_answer(cut, uncut.half(), layer.together.delta.rank)


def right_sides(layer: LayerProblem, lambdas: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return ``[D_1 | ... | D_K]``, (d_in, R), and for the full-output target ``sum_g lam_g
    drift_g``, (d_in, d_out).

    Where the two ridges differ, ``(nu_g - mu_g) W0^T`` is a part of the drift.
    """
    config = layer.config
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    together = layer.together
    thin = together.delta.down.new_zeros(together.delta.down.T.shape)
    drift = None
    if config.target == "full_output":
        drift = thin.new_zeros(together.delta.shape[::-1])
    for task, lam in zip(layer.tasks, lambdas, strict=True):
        if not task.counts:
            continue
        inputs = task.statistics.inputs
        mu = config.alpha * inputs.size()
        nu = alpha_cross * inputs.cross_size()
        if task.worn is not None:
            cross = task.statistics.cross
            for k, share in task.mix.items():
                ridge = nu * layer.deltas[k].down.T
                thin[:, together.slices[k]] += lam * share * (cross[:, task.worn.slices[k]] + ridge)
        if drift is not None:
            assert task.statistics.drift is not None  # measured for this target
            drift.addcmul_(task.statistics.drift, lam)
            if layer.base_weight is not None:
                drift += lam * (nu - mu) * layer.base_weight.T
    return thin, drift
