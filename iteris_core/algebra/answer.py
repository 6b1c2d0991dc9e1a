"""A layer's answer, cut to the requested rank, and the cost of the cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..config import MergeConfig
from .system import System
from .truncate import Spectrum, delta_of_rank, factored_spectrum, leading_spectrum, rank_for_energy


@dataclass(frozen=True)
class LayerSolution:
    """The answer at one layer.

    Args:
        delta: The merged delta, float64.
        lambdas: lambda per task, (n,).
        spectrum: Spectrum of the uncut answer in the metric of `truncate`, as many values as the
            cut needed; None: no cut was considered.
        cut: ``||(dW - dW*) L|| / ||dW* L||``, what the cut to a lower rank costs, 0-dim; None where
            nothing was cut.
        plain_cut: The same cost for a plain SVD of the same rank; None where no rank was requested.
    """

    delta: LowRankDelta
    lambdas: Tensor
    spectrum: Spectrum | None = None
    cut: Tensor | None = None
    plain_cut: Tensor | None = None


def is_left_whole(delta: LowRankDelta, config: MergeConfig, rank: int | str) -> bool:
    """Whether an exact delta needs no cut: no rank is requested, and it has no more factors than
    the weight has dimensions.
    """
    asked = rank not in ("sum", "full") or config.kept_energy is not None or config.size is not None
    return not asked and delta.rank <= min(delta.shape)


def thin_answer(
    system: System,
    half: Tensor,
    exact: LowRankDelta,
    lambdas: Tensor,
    config: MergeConfig,
    rank: int | str,
) -> LayerSolution:
    """Cut an exact low-rank answer, if a rank is requested.

    Args:
        system: The metric, S = L L^T.
        half: ``L^T down^T``, (d_in, R).
        exact: The uncut answer, float64.
        lambdas: lambda per task, (n,), for the solution.
        config: Settings, of which ``kept_energy`` and ``size`` are used.
        rank: Requested rank, see `MergeConfig.rank_at`.
    """
    most = min(exact.shape)
    if is_left_whole(exact, config, rank):
        return LayerSolution(exact, lambdas)
    spectrum = factored_spectrum(half, exact.up)
    if exact.rank > most:
        # more factors than the weight has dimensions: the same delta, with as many as it has
        exact = delta_of_rank(spectrum, most, system.other_half)
    if config.size is not None:
        return LayerSolution(exact, lambdas, spectrum)
    if config.kept_energy is not None:
        cut_rank = rank_for_energy(spectrum, config.kept_energy)
    else:
        cut_rank = exact.rank if rank in ("sum", "full") else int(rank)
    if cut_rank >= exact.rank:
        return LayerSolution(exact, lambdas, spectrum)
    return _cut(system, spectrum, exact, cut_rank, lambdas)


def dense_answer(
    system: System,
    half: Tensor,
    sum_of_ranks: int,
    lambdas: Tensor,
    config: MergeConfig,
    rank: int | str,
) -> LayerSolution:
    """Cut an answer of full rank.

    Args:
        system: The metric, S = L L^T.
        half: ``L^T dW^T``, (d_in, d_out).
        sum_of_ranks: Rank that ``sum`` means here.
        lambdas: lambda per task, (n,), for the solution.
        config: Settings, of which ``kept_energy`` is used. As with the delta target, it never takes
            more than the sum of the ranks.
        rank: Requested rank, see `MergeConfig.rank_at`.
    """
    most = min(half.shape)
    if rank == "full":
        return LayerSolution(_as_factors(system.other_half(half).T), lambdas)
    asked = rank != "sum" or config.kept_energy is not None
    cut_rank = min(most, sum_of_ranks if rank == "sum" else int(rank))
    spectrum = leading_spectrum(half, cut_rank)
    if config.kept_energy is not None:
        cut_rank = rank_for_energy(spectrum, config.kept_energy)
    exact = _as_factors(system.other_half(half).T) if asked else None
    return _cut(system, spectrum, exact, cut_rank, lambdas)


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
    return LayerSolution(delta, lambdas, spectrum, (lost / total).sqrt(), plain_cut)
