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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters import LowRankDelta, stack
from .config import MergeConfig
from .errors import SolveError
from .statistics import InputMoments, TaskStatistics, product_of_rows
from .system import System, factorise
from .truncate import Spectrum, delta_of_rank, factored_spectrum, leading_spectrum, rank_for_energy


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
        """Whether the task has a say here: a weight, and tokens that count in this layer's stream."""
        return self.weight != 0 and self.statistics.inputs.tokens > 0

    def delta_energy(self) -> Tensor:
        """Return ``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``, what the teacher adds, 0-dim."""
        if self.worn is None:
            return self.statistics.inputs.energy.new_zeros(())
        return ((self.worn.up.T @ self.worn.up) * self.statistics.codes).sum().clamp_min(0)


@dataclass(frozen=True)
class LayerSolution:
    """The answer at one layer.

    Args:
        delta: The merged delta, float64.
        lambdas: lambda per task, (n,).
        values: Singular values of the uncut answer in the metric of `truncate`; only for ``config.size``.
        cut: ``||(dW - dW*) L|| / ||dW* L||``, what the cut to a lower rank costs, 0-dim; None where nothing was cut.
        plain_cut: The same for a plain SVD of the same rank; only where a rank was asked for.
    """

    delta: LowRankDelta
    lambdas: Tensor
    values: Tensor | None = None
    cut: Tensor | None = None
    plain_cut: Tensor | None = None


def balance_weight(task: TaskAtLayer, balance: str) -> Tensor:
    """Return lambda_g, 0-dim.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8), and its isotropic limit ``w_g d_in / ||X_g||^2``
    where the teacher wears nothing. ``full``: the same with the base weight in it (official ``ceof_list``).
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
    norm, energy = task.worn.squared_norm(), task.delta_energy()
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
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; at least one.
        tasks: Every task of the merge, with this layer's statistics.
        config: Uses the alphas, ``ridge``, ``balance``, ``target``, ``kept_energy`` and ``size``.
        rank: See `MergeConfig.rank_at`.
        base_weight: W0, (d_out, d_in); only where `MergeConfig.needs_base_weight`.

    Raises:
        SolveError: Activations that are not finite or all zero, or a system that is not positive definite.
    """
    if not any(task.counts for task in tasks):
        raise SolveError("no task has tokens that count here; give at least one of them token weights above 0")
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    together = stack(list(deltas.values()), [1.0] * len(deltas))
    lambdas = torch.stack([balance_weight(task, config.balance) for task in tasks])
    start, columns = 0, {}
    for k, delta in deltas.items():
        columns[k] = slice(start, start := start + delta.rank)
    if _fits_sample_space(tasks, config, rank, together):
        return _sample_space_solution(columns, tasks, together, lambdas, config.alpha, alpha_cross)
    matrix = torch.zeros_like(tasks[0].statistics.inputs.gram)
    thin = matrix.new_zeros(matrix.shape[0], together.rank)  # [D_1 | ... | D_K]
    drift = None if config.target == "delta" else matrix.new_zeros(together.shape[::-1])
    for task, lam in zip(tasks, lambdas, strict=True):
        if not task.counts:
            continue
        inputs, start = task.statistics.inputs, 0
        size = inputs.size()
        mu, nu = config.alpha * size, alpha_cross * (size if inputs.cross_gram is None else inputs.cross_gram.norm())
        matrix.add_(inputs.gram * lam)
        matrix.diagonal().add_(lam * mu)
        cross_of_mix = task.statistics.cross
        for k, share in task.mix.items():
            cross = cross_of_mix[:, start : start + deltas[k].rank]
            thin[:, columns[k]] += lam * share * (cross + nu * deltas[k].down.T)
            start += deltas[k].rank
        if drift is not None:
            drift += lam * task.statistics.drift
            if base_weight is not None:
                drift += lam * (nu - mu) * base_weight.T
    system = factorise(matrix, [thin] if drift is None else [thin, drift], _inputs(tasks), config.alpha)
    if drift is None:
        return _thin_solution(system, thin, together.up, lambdas, config, rank)
    return _dense_solution(system, thin @ together.up.T + drift, together.rank, lambdas, config, rank)


def _inputs(tasks: Sequence[TaskAtLayer]) -> dict[str, InputMoments]:
    return {task.name: task.statistics.inputs for task in tasks if task.counts}


def _fits_sample_space(tasks: Sequence[TaskAtLayer], config: MergeConfig, rank: int | str, together: LowRankDelta) -> bool:
    """Whether fewer tokens than the layer is wide can be solved for directly, and nothing asks for the metric of `truncate`."""
    plain = config.target == "delta" and rank in ("sum", "full") and config.kept_energy is None and config.size is None
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

    ``down^T = M + Z^T (Z Z^T + rho I)^-1 (Y - Z M)`` with Z = [sqrt(lam_g) X~_g], Y = [sqrt(lam_g) H_g], rho = sum_g lam_g mu_g
    and M = (1 / rho) sum_g lam_g nu_g [m_g1 down_1^T | ... ]: the ridge's own answer, and kernel ridge on what it leaves.
    """
    counted = [(task, lam) for task, lam in zip(tasks, lambdas, strict=True) if task.counts]
    roots = [lam.sqrt() for _, lam in counted]
    unscaled = [task.statistics.inputs.student_rows() for task, _ in counted]
    matrix = product_of_rows(unscaled)
    parts = torch.tensor([len(rows) for rows in unscaled]).cumsum(0).tolist()
    blocks = [slice(stop - len(rows), stop) for rows, stop in zip(unscaled, parts, strict=True)]
    sizes = torch.stack([lam * matrix[block, block].norm() for (_, lam), block in zip(counted, blocks, strict=True)])
    scale = torch.cat([root.expand(len(rows)) for root, rows in zip(roots, unscaled, strict=True)])
    matrix *= scale[:, None] * scale
    rows = torch.cat(unscaled).to(matrix.dtype) * scale[:, None]
    rho, prior = alpha * sizes.sum(), torch.zeros_like(together.down)
    targets = rows.new_zeros(len(rows), together.rank)
    start = 0
    for (task, _), root, size in zip(counted, roots, sizes, strict=True):
        codes = task.statistics.all_codes() * root
        first = 0
        for k, share in task.mix.items():
            down = together.down[columns[k]]
            prior[columns[k]] += alpha_cross * size * share / rho * down
            targets[start : start + len(codes), columns[k]] = share * codes[:, first : (first := first + len(down))]
        start += len(codes)
    matrix.diagonal().add_(rho)
    system = factorise(matrix, [targets, prior], _inputs(tasks), alpha)
    rest = targets - rows @ prior.T
    down = prior + (rows.T @ system.other_half(system.half(rest))).T
    return LayerSolution(LowRankDelta(together.up, down), lambdas)


def _thin_solution(
    system: System, thin: Tensor, up: Tensor, lambdas: Tensor, config: MergeConfig, rank: int | str
) -> LayerSolution:
    half = system.half(thin)
    exact = LowRankDelta(up, system.other_half(half).T)
    most = min(exact.shape)
    if rank in ("sum", "full") and config.kept_energy is None and config.size is None and exact.rank <= most:
        return LayerSolution(exact, lambdas)
    spectrum = factored_spectrum(half, up)
    if exact.rank > most:  # more factors than the weight has dimensions: the same delta with as many as it has
        exact = delta_of_rank(spectrum, most, system.other_half)
    if config.size is not None:
        return LayerSolution(exact, lambdas, spectrum.values)
    if config.kept_energy is not None:
        wanted = rank_for_energy(spectrum, config.kept_energy)
    else:
        wanted = exact.rank if rank in ("sum", "full") else int(rank)
    if wanted >= exact.rank:
        return LayerSolution(exact, lambdas)
    return _cut(system, spectrum, exact, wanted, lambdas)


def _dense_solution(
    system: System, right: Tensor, sum_of_ranks: int, lambdas: Tensor, config: MergeConfig, rank: int | str
) -> LayerSolution:
    half, most = system.half(right), min(right.shape)
    if rank == "full":
        return LayerSolution(_as_factors(system.other_half(half).T), lambdas)
    asked = rank != "sum" or config.kept_energy is not None
    wanted = most if config.kept_energy is not None else min(most, sum_of_ranks if rank == "sum" else int(rank))
    spectrum = leading_spectrum(half, wanted)
    if config.kept_energy is not None:
        wanted = rank_for_energy(spectrum, config.kept_energy)
    values = spectrum.values if config.size is not None else None
    exact = _as_factors(system.other_half(half).T) if asked else None
    return _cut(system, spectrum, exact, wanted, lambdas, values)


def _as_factors(weight: Tensor) -> LowRankDelta:
    """Return a full matrix as a delta whose smaller side is the rank."""
    d_out, d_in = weight.shape
    if d_out <= d_in:
        return LowRankDelta(torch.eye(d_out).to(weight), weight)
    return LowRankDelta(weight, torch.eye(d_in).to(weight))


def _cut(
    system: System,
    spectrum: Spectrum,
    exact: LowRankDelta | None,
    rank: int,
    lambdas: Tensor,
    values: Tensor | None = None,
) -> LayerSolution:
    total = spectrum.total.clamp_min(torch.finfo(torch.float64).tiny)
    lost = (spectrum.total - spectrum.values[:rank].square().sum()).clamp_min(0)
    plain_cut = None
    if exact is not None:
        weight = exact.dense().T
        plain = leading_spectrum(weight, rank)
        rest = weight - (plain.left * plain.values) @ plain.right.T
        plain_cut = (system.metric(rest).square().sum() / total).sqrt()
    delta = delta_of_rank(spectrum, rank, system.other_half)
    return LayerSolution(delta, lambdas, values, (lost / total).sqrt(), plain_cut)


def squared_residual(task: TaskAtLayer, merged: LowRankDelta) -> Tensor:
    """Return ``||T_g - X~_g dW^T||_F^2`` from the statistics, 0-dim."""
    statistics, overlap = task.statistics, task.statistics.inputs.energy.new_zeros(())
    if task.worn is not None:
        overlap = overlap + ((merged.up.T @ task.worn.up) * (merged.down @ statistics.cross)).sum()
    if statistics.drift is not None:
        overlap = overlap + (merged.up.T * (merged.down @ statistics.drift)).sum()
    target = task.delta_energy() if statistics.target_energy is None else statistics.target_energy
    return (target - 2 * overlap + student_energy(task, merged)).clamp_min(0)


def student_energy(task: TaskAtLayer, delta: LowRankDelta) -> Tensor:
    """Return ``||X~_g dW^T||_F^2``, what a delta does on the student's inputs, 0-dim."""
    return ((delta.up.T @ delta.up) * task.statistics.inputs.form(delta.down)).sum().clamp_min(0)
