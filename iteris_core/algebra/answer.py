"""A layer's answer, cut to the requested rank, and the cost of the cut."""

from __future__ import annotations

from collections.abc import Callable
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
        cut: ``||(dW - dW*) L|| / ||dW* L||``, what the cut to a lower rank costs, 0-dim; None where
            nothing was cut.
        was_too_coarse: Whether float32 was tried, and was too coarse, see `coarse`.
    """

    delta: LowRankDelta
    cut: Tensor | None = None
    was_too_coarse: bool = False


def is_left_whole(delta: LowRankDelta, config: MergeConfig, rank: int | str) -> bool:
    """Whether an exact delta needs no cut: no rank is requested, and it has no more factors than
    the weight has dimensions.
    """
    asked = rank not in ("sum", "full") or config.kept_energy is not None
    return not asked and delta.rank <= min(delta.shape)


@dataclass(frozen=True)
class Cut:
    """How a layer's answer is cut.

    Args:
        system: The metric, S = L L^T.
        config: Settings; only ``kept_energy`` is used.
        rank: Requested rank, see `MergeConfig.rank_at`.
        refit: Orthonormal basis (d_in, r) -> the best delta whose inputs ``L^-T basis`` spans;
            None: the projection of the uncut answer.
    """

    system: System
    config: MergeConfig
    rank: int | str
    refit: Callable[[Tensor], LowRankDelta] | None = None

    def at_rank(self, spectrum: Spectrum, rank: int) -> LayerSolution:
        """Return the answer of a rank, and the cost of the cut.

        Args:
            spectrum: Leading part of the uncut answer's spectrum.
        """
        total = spectrum.total.clamp_min(torch.finfo(torch.float64).tiny)
        lost = (spectrum.total - spectrum.values[:rank].square().sum()).clamp_min(0)
        if self.refit is None:
            delta = delta_of_rank(spectrum, rank, self.system.solve_upper)
        else:
            delta = self.refit(spectrum.left[:, :rank])
        return LayerSolution(delta, (lost / total).sqrt())


def thin_answer(cut: Cut, half: Tensor, exact: LowRankDelta) -> LayerSolution:
    """Cut an exact low-rank answer, if a rank is requested.

    Args:
        half: ``L^T down^T``, (d_in, R).
        exact: The uncut answer, float64.
    """
    config = cut.config
    most = min(exact.shape)
    if is_left_whole(exact, config, cut.rank):
        return LayerSolution(exact)
    spectrum = factored_spectrum(half, exact.up)
    if exact.rank > most:
        # more factors than the weight has dimensions: the same delta, with as many as it has
        exact = delta_of_rank(spectrum, most, cut.system.solve_upper)
    if config.kept_energy is not None:
        rank = rank_for_energy(spectrum, config.kept_energy)
    else:
        rank = exact.rank if cut.rank in ("sum", "full") else int(cut.rank)
    if rank >= exact.rank:
        return LayerSolution(exact)
    return cut.at_rank(spectrum, rank)


def dense_answer(cut: Cut, half: Tensor, sum_of_ranks: int) -> LayerSolution:
    """Cut an answer of full rank.

    Args:
        cut: How it is cut. With ``kept_energy``, as with the delta target, the rank is at most the
            sum of the ranks.
        half: ``L^T dW^T``, (d_in, d_out).
        sum_of_ranks: Rank that ``sum`` means here.
    """
    most = min(half.shape)
    if cut.rank == "full":
        return LayerSolution(_as_factors(cut.system.solve_upper(half).T))
    kept_energy = cut.config.kept_energy
    rank = min(most, sum_of_ranks if cut.rank == "sum" else int(cut.rank))
    spectrum = leading_spectrum(half, rank)
    if kept_energy is not None:
        rank = rank_for_energy(spectrum, kept_energy)
    return cut.at_rank(spectrum, rank)


def _as_factors(weight: Tensor) -> LowRankDelta:
    """Return a full matrix as a delta; its rank is the smaller side."""
    d_out, d_in = weight.shape
    if d_out <= d_in:
        return LowRankDelta(torch.eye(d_out).to(weight), weight)
    return LowRankDelta(weight, torch.eye(d_in).to(weight))
