"""The closed form of one layer, on its statistics. Pure functions, float64.

    minimise over dW   sum_g lam_g ( ||T_g - X~_g dW^T||_F^2 + mu_g ||dW_g - dW||_F^2 ),   mu_g = alpha ||X~_g^T X~_g||_F
    T_g = X_g dW_g^T  (target "delta"),  or  X_g (W0 + dW_g)^T - X~_g W0^T  (target "full_output")

    dW^T = S^-1 B,   S = sum_g lam_g (X~_g^T X~_g + mu_g I),   B = [D_1 | ... | D_K] [up_1 | ... | up_K]^T + sum_g lam_g drift_g
    D_k = sum_g lam_g m_gk (X~_g^T X_g down_k^T + nu_g down_k^T),   nu_g = mu_g, or alpha ||X~_g^T X_g||_F (the paper)

With the delta target there is no drift, and the answer is exactly low rank:
up = [up_1 | ... | up_K], down^T = S^-1 [D_1 | ... | D_K].
Source: IterIS, arXiv:2411.15231, Algorithm 1 and equation 8; official ``solution_matrix``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack
from ..config import MergeConfig
from ..errors import SolveError
from .answer import LayerSolution, dense_answer, thin_answer
from .statistics import InputMoments, TaskStatistics, joint_product
from .system import factorise

# solves one layer, with the arguments of `solve_layer`; a rival method is another one
LayerSolver = Callable[..., LayerSolution]


@dataclass(frozen=True)
class TaskAtLayer:
    """One task as one layer sees it.

    Args:
        name: The task's name.
        mix: Adapter index -> share, only adapters that change this layer.
        weight: The user's weight.
        statistics: Codes are those of `worn`.
        worn: The mix as one delta, float64; None where the task wears nothing here.
        full_norm: ||W0 + dW_g||_F^2; only for ``balance="full"``.
    """

    name: str
    mix: Mapping[int, float]
    weight: float
    statistics: TaskStatistics
    worn: LowRankDelta | None
    full_norm: Tensor | None = None

    @property
    def counts(self) -> bool:
        """Whether the task has a say here: a weight, and tokens that count in this layer's
        stream.
        """
        return self.weight != 0 and self.statistics.inputs.tokens > 0

    def delta_energy(self) -> Tensor:
        """Return ``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``, what the teacher adds, 0-dim."""
        if self.worn is None:
            return self.statistics.inputs.energy.new_zeros(())
        return ((self.worn.up.T @ self.worn.up) * self.statistics.codes).sum().clamp_min(0)


def balance_weight(task: TaskAtLayer, balance: str) -> Tensor:
    """Return lambda_g, 0-dim.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8), and its isotropic limit
    ``w_g d_in / ||X_g||^2`` where the teacher wears nothing. ``full``: the same with the base
    weight in it (official ``ceof_list``).
    """
    inputs = task.statistics.inputs
    if not task.counts:
        return torch.zeros_like(inputs.energy)
    if balance == "uniform":
        return torch.full_like(inputs.energy, task.weight)
    if balance == "full":
        return task.weight * task.full_norm / task.statistics.output_energy
    isotropic = task.weight * inputs.d_in / inputs.energy
    if task.worn is None:
        return isotropic
    norm = task.worn.squared_norm()
    energy = task.delta_energy()
    return torch.where((norm > 0) & (energy > 0), task.weight * norm / energy, isotropic)


def solve_layer(
    deltas: Mapping[int, LowRankDelta],
    tasks: Sequence[TaskAtLayer],
    config: MergeConfig,
    rank: int | str = "sum",
    base_weight: Tensor | None = None,
) -> LayerSolution:
    """Merge one layer.

    Args:
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; at least
            one.
        tasks: Every task of the merge, with this layer's statistics.
        config: Uses the alphas, ``ridge``, ``balance``, ``target``, ``kept_energy`` and ``size``.
        rank: See `MergeConfig.rank_at`.
        base_weight: W0, (d_out, d_in); only where `MergeConfig.needs_base_weight`.

    Raises:
        SolveError: Activations that are not finite or all zero, or a system that is not positive
            definite.
    """
    if not any(task.counts for task in tasks):
        raise SolveError(
            "no task has tokens that count here; give at least one of them token weights above 0"
        )
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    together = stack(list(deltas.values()), [1.0] * len(deltas))
    lambdas = torch.stack([balance_weight(task, config.balance) for task in tasks])
    start = 0
    columns = {}
    for k, delta in deltas.items():
        columns[k] = slice(start, start := start + delta.rank)
    if _fits_sample_space(tasks, config, rank, together):
        return _sample_space_solution(columns, tasks, together, lambdas, config.alpha, alpha_cross)
    matrix = normal_matrix(tasks, lambdas, config.alpha)
    thin = matrix.new_zeros(matrix.shape[0], together.rank)  # [D_1 | ... | D_K]
    drift = None if config.target == "delta" else matrix.new_zeros(together.shape[::-1])
    for task, lam in zip(tasks, lambdas, strict=True):
        if not task.counts:
            continue
        inputs = task.statistics.inputs
        start = 0
        size = inputs.size()
        mu = config.alpha * size
        nu = alpha_cross * (size if inputs.cross_gram is None else inputs.cross_gram.norm())
        cross_of_mix = task.statistics.cross
        for k, share in task.mix.items():
            cross = cross_of_mix[:, start : start + deltas[k].rank]
            thin[:, columns[k]] += lam * share * (cross + nu * deltas[k].down.T)
            start += deltas[k].rank
        if drift is not None:
            drift += lam * task.statistics.drift
            if base_weight is not None:
                drift += lam * (nu - mu) * base_weight.T
    system = factorise(
        matrix, [thin] if drift is None else [thin, drift], inputs_by_name(tasks), config.alpha
    )
    if drift is None:
        half = system.half(thin)
        return thin_answer(
            system,
            half,
            LowRankDelta(together.up, system.other_half(half).T),
            lambdas,
            config,
            rank,
        )
    return dense_answer(
        system, system.half(thin @ together.up.T + drift), together.rank, lambdas, config, rank
    )


def normal_matrix(tasks: Sequence[TaskAtLayer], lambdas: Tensor, alpha: float) -> Tensor:
    """Return ``S = sum_g lam_g (X~_g^T X~_g + mu_g I)``, (d_in, d_in): the objective's own
    metric.
    """
    matrix = torch.zeros_like(tasks[0].statistics.inputs.gram)
    for task, lam in zip(tasks, lambdas, strict=True):
        if task.counts:
            inputs = task.statistics.inputs
            matrix.add_(inputs.gram * lam)
            matrix.diagonal().add_(lam * (alpha * inputs.size()))
    return matrix


def inputs_by_name(tasks: Sequence[TaskAtLayer]) -> dict[str, InputMoments]:
    """Return the inputs of the tasks that count, to explain a failure with."""
    return {task.name: task.statistics.inputs for task in tasks if task.counts}


def _fits_sample_space(
    tasks: Sequence[TaskAtLayer], config: MergeConfig, rank: int | str, together: LowRankDelta
) -> bool:
    """Whether fewer tokens than the layer is wide can be solved for directly, and nothing asks for
    the metric of `truncate`.
    """
    plain = (
        config.target == "delta"
        and rank in ("sum", "full")
        and config.kept_energy is None
        and config.size is None
    )
    few = tasks[0].statistics.inputs.rows is not None
    return plain and few and config.alpha > 0 and together.rank <= min(together.shape)


def _sample_space_solution(
    columns: Mapping[int, slice],
    tasks: Sequence[TaskAtLayer],
    together: LowRankDelta,
    lambdas: Tensor,
    alpha: float,
    alpha_cross: float,
) -> LayerSolution:
    """Solve for the tokens instead of the width: the same answer, from a (tokens, tokens) system.

    ``down^T = M + Z^T (Z Z^T + rho I)^-1 (Y - Z M)`` with Z = [sqrt(lam_g) X~_g], Y = [sqrt(lam_g)
    H_g], rho = sum_g lam_g mu_g and M = (1 / rho) sum_g lam_g nu_g [m_g1 down_1^T | ... ]: the
    ridge's own answer, and kernel ridge on what it leaves.
    """
    counted = [(task, lam) for task, lam in zip(tasks, lambdas, strict=True) if task.counts]
    roots = [lam.sqrt() for _, lam in counted]
    unscaled = [task.statistics.inputs.student_rows() for task, _ in counted]
    matrix = joint_product([task.statistics.inputs for task, _ in counted]).clone()
    parts = torch.tensor([len(rows) for rows in unscaled]).cumsum(0).tolist()
    blocks = [slice(stop - len(rows), stop) for rows, stop in zip(unscaled, parts, strict=True)]
    sizes = torch.stack(
        [lam * matrix[block, block].norm() for (_, lam), block in zip(counted, blocks, strict=True)]
    )
    scale = torch.cat([root.expand(len(rows)) for root, rows in zip(roots, unscaled, strict=True)])
    matrix *= scale[:, None] * scale
    rows = torch.cat(unscaled).to(matrix.dtype) * scale[:, None]
    rho = alpha * sizes.sum()
    prior = torch.zeros_like(together.down)
    targets = rows.new_zeros(len(rows), together.rank)
    start = 0
    for (task, _), root, size in zip(counted, roots, sizes, strict=True):
        codes = task.statistics.all_codes() * root
        first = 0
        for k, share in task.mix.items():
            down = together.down[columns[k]]
            prior[columns[k]] += alpha_cross * size * share / rho * down
            targets[start : start + len(codes), columns[k]] = (
                share * codes[:, first : (first := first + len(down))]
            )
        start += len(codes)
    matrix.diagonal().add_(rho)
    system = factorise(matrix, [targets, prior], inputs_by_name(tasks), alpha)
    rest = targets - rows @ prior.T
    down = prior + (rows.T @ system.other_half(system.half(rest))).T
    return LayerSolution(LowRankDelta(together.up, down), lambdas)
