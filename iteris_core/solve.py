"""The closed form of one layer, on its statistics. Pure functions, float64.

    minimise over dW   sum_g lam_g ( ||X_g dW_g^T - X~_g dW^T||_F^2 + mu_g ||dW_g - dW||_F^2 ),   mu_g = alpha ||X~_g^T X~_g||_F

    dW = up down,   up = [up_1 | ... | up_K],   down^T = S^-1 [D_1 | ... | D_K],   S = sum_g lam_g (X~_g^T X~_g + mu_g I)
    D_k = sum_g lam_g m_gk (X~_g^T X_g down_k^T + nu_g down_k^T),   nu_g = mu_g, or alpha ||X~_g^T X_g||_F (the paper)

Exactly low rank: the right-hand side is a product with [up_1 | ... | up_K]^T, so only sum r_k columns are solved for.
Source: IterIS, arXiv:2411.15231, Algorithm 1 and equation 8; official ``solution_matrix``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters import LowRankDelta, stack
from .config import MergeConfig
from .errors import SolveError
from .statistics import TaskStatistics


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


@dataclass(frozen=True)
class LayerSolution:
    """The merged delta of one layer, lambda per task (n,), and target energies ||X_g dW_g^T||^2 per task (n,)."""

    delta: LowRankDelta
    lambdas: Tensor
    target_energies: Tensor


def target_energy(task: TaskAtLayer) -> Tensor:
    """Return ``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``."""
    if task.worn is None:
        return task.statistics.input_energy.new_zeros(())
    return ((task.worn.up.T @ task.worn.up) * task.statistics.codes).sum().clamp_min(0)


def balance_weight(task: TaskAtLayer, balance: str) -> Tensor:
    """Return lambda_g, 0-dim.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8), and its isotropic limit ``w_g d_in / ||X_g||^2``
    where the teacher wears nothing. ``full``: the same with the base weight in it (official ``ceof_list``).
    """
    statistics = task.statistics
    if balance == "uniform":
        return torch.full_like(statistics.input_energy, task.weight)
    if balance == "full":
        return task.weight * task.full_norm / statistics.output_energy
    isotropic = task.weight * statistics.gram.shape[0] / statistics.input_energy
    if task.worn is None:
        return isotropic
    norm, energy = task.worn.squared_norm(), target_energy(task)
    return torch.where((norm > 0) & (energy > 0), task.weight * norm / energy, isotropic)


def solve_layer(deltas: Mapping[int, LowRankDelta], tasks: Sequence[TaskAtLayer], config: MergeConfig) -> LayerSolution:
    """Merge one layer.

    Args:
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; at least one.
        tasks: Every task of the merge, with this layer's statistics.
        config: Uses ``alpha``, ``alpha_cross``, ``ridge`` and ``balance``.

    Raises:
        SolveError: Activations that are not finite or all zero, or a system that is not positive definite.
    """
    columns, offset = {}, 0
    for k, delta in deltas.items():
        columns[k] = slice(offset, offset + delta.rank)
        offset += delta.rank
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    d_in = next(iter(deltas.values())).shape[1]
    system = torch.zeros_like(tasks[0].statistics.gram)
    target = system.new_zeros(d_in, offset)
    lambdas = torch.stack([balance_weight(task, config.balance) for task in tasks])
    for task, lam in zip(tasks, lambdas, strict=True):
        if task.weight == 0:
            continue
        gram, start = task.statistics.gram, 0
        size = gram.norm()
        cross_size = size if task.statistics.cross_gram is None else task.statistics.cross_gram.norm()
        system += lam * gram
        system.diagonal().add_(lam * config.alpha * size)
        for k, share in task.mix.items():
            rank = deltas[k].rank
            cross = task.statistics.cross[:, start : start + rank]
            target[:, columns[k]] += lam * share * (cross + alpha_cross * cross_size * deltas[k].down.T)
            start += rank
    down = solve_positive_definite(system, target, tasks, config.alpha).T
    merged = LowRankDelta(stack(list(deltas.values()), [1.0] * len(deltas)).up, down)
    return LayerSolution(merged, lambdas, torch.stack([target_energy(task) for task in tasks]))


def solve_positive_definite(system: Tensor, target: Tensor, tasks: Sequence[TaskAtLayer], alpha: float) -> Tensor:
    """Return ``system^-1 target`` by a Cholesky factorisation of the system scaled to a unit diagonal.

    Raises:
        SolveError: With the cause, found from the tasks' statistics.
    """
    scale = system.diagonal().rsqrt()
    factor, failed_at = torch.linalg.cholesky_ex(system * scale[:, None] * scale)
    bad = (failed_at != 0) | ~torch.isfinite(scale).all() | ~torch.isfinite(target).all()
    if bool(bad):  # the only wait for the device in a layer's solve
        raise SolveError(_why_unsolvable(system, tasks, int(failed_at), alpha))
    return scale[:, None] * torch.cholesky_solve(scale[:, None] * target, factor)


def _why_unsolvable(system: Tensor, tasks: Sequence[TaskAtLayer], failed_at: int, alpha: float) -> str:
    for task in tasks:
        sums = task.statistics
        if not (torch.isfinite(sums.gram).all() and torch.isfinite(sums.input_energy)):
            return (
                f"the inputs of task {task.name!r} hold NaN or infinite numbers, most likely an overflow of half precision "
                "in the layers before; run the model in bfloat16 or float32, or lower the strength of its adapter"
            )
        if not sums.input_energy > 0:
            return f"all inputs of task {task.name!r} are zero here; use other samples for it"
    tokens, width = sum(task.statistics.tokens for task in tasks), system.shape[0]
    found = f"the Gram matrix ({width} x {width}) of {tokens} tokens is not positive definite"
    where = f" (Cholesky stopped at row {failed_at})" if failed_at else ""
    return f"{found}{where} with alpha = {alpha:g}; set alpha to 1e-6 or more, or use more samples"


def squared_residual(task: TaskAtLayer, merged: LowRankDelta) -> Tensor:
    """Return ``||X_g dW_g^T - X~_g dW^T||_F^2`` from the statistics, 0-dim."""
    return (target_energy(task) - 2 * _overlap(task, merged) + student_energy(task, merged)).clamp_min(0)


def student_energy(task: TaskAtLayer, delta: LowRankDelta) -> Tensor:
    """Return ``||X~_g dW^T||_F^2``, what a delta does on the student's inputs, 0-dim."""
    return ((delta.up.T @ delta.up) * (delta.down @ task.statistics.gram @ delta.down.T)).sum().clamp_min(0)


def _overlap(task: TaskAtLayer, merged: LowRankDelta) -> Tensor:
    if task.worn is None:
        return task.statistics.input_energy.new_zeros(())
    return ((merged.up.T @ task.worn.up) * (merged.down @ task.statistics.cross)).sum()
