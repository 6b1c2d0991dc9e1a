"""The input of a layer's solver: the deltas to merge, and each task with its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..adapters import LowRankDelta, Stacked, stack
from ..config import MergeConfig
from .answer import LayerSolution
from .statistics import InputMoments, TaskStatistics

# Of a squared norm, relative to its parts' norms: less is rounding of parts that cancel.
RELATIVE_ZERO = 1e-12
# How far a LoRA's lambda may be above what is usual at the layer, with both relative to the
# isotropic one: without a limit, a LoRA that hardly acts on its own inputs silences all others.
_MOST_ABOVE = 10


@dataclass(frozen=True)
class TaskAtLayer:
    """One task at one layer.

    Args:
        mix: Adapter index -> share, of the adapters that change this layer.
        statistics: Sums over the task's rows; their codes are codes of `worn`.
        worn: The mix as one delta, float64, with each adapter's place; None where the task wears
            nothing here.
        full_norm: ||W0 + dW_g||_F^2; only for ``balance="full"``.
    """

    name: str
    mix: Mapping[int, float]
    weight: float
    statistics: TaskStatistics
    worn: Stacked[int] | None
    full_norm: Tensor | None = None

    @property
    def counts(self) -> bool:
        """Whether the task has a say here: a weight, and tokens that count in this layer's
        stream.
        """
        return self.weight != 0 and self.statistics.inputs.tokens > 0

    @cached_property
    def squared_norm(self) -> Tensor:
        """``||dW_g||^2``, 0-dim."""
        energy = self.statistics.inputs.energy
        return energy.new_zeros(()) if self.worn is None else self.worn.delta.squared_norm()

    @cached_property
    def taught(self) -> Tensor:
        """``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``, what the teacher adds, 0-dim; 0 where
        the adapters of its mix cancel, or it is blind to its inputs, which leaves nothing but
        rounding.
        """
        if self.worn is None:
            return self.statistics.inputs.energy.new_zeros(())
        up = self.worn.delta.up
        energy = ((up.T @ up) * self.statistics.codes).sum().clamp_min(0)
        norms = self.worn.delta.up.norm(dim=0) * self.worn.delta.down.norm(dim=1)
        # the most that the norm of the whole can be, whatever the scales of the factors are
        acts = self.squared_norm > RELATIVE_ZERO * norms.sum().square()
        sees = energy > RELATIVE_ZERO * self.squared_norm * self.statistics.inputs.energy
        return torch.where(acts & sees, energy, 0.0)


@dataclass(frozen=True)
class LayerProblem:
    """The problem that is solved at one layer.

    Args:
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; at least
            one.
        rank: Rank of the answer, see `MergeConfig.rank_at`.
        base_weight: W0, (d_out, d_in); only where `MergeConfig.needs_base_weight`.
    """

    deltas: Mapping[int, LowRankDelta]
    tasks: Sequence[TaskAtLayer]
    config: MergeConfig
    rank: int | str = "sum"
    base_weight: Tensor | None = None

    @property
    def counted(self) -> list[TaskAtLayer]:
        """The tasks that have a say here."""
        return [task for task in self.tasks if task.counts]

    @cached_property
    def together(self) -> Stacked[int]:
        """All deltas as one, each with its full share."""
        return stack(self.deltas)

    @cached_property
    def balance(self) -> Balance:
        """The weights of the tasks, see `balance_weights`."""
        return balance_weights(self.tasks, self.config.balance)

    def lambdas(self) -> Tensor:
        """Return lambda_g of every task, (n,)."""
        return self.balance.lambdas

    def normal_matrix(self, lambdas: Tensor) -> Tensor:
        """Return ``S = sum_g lam_g (X~_g^T X~_g + mu_g I)``, (d_in, d_in): the objective's own
        metric.
        """
        matrix: Tensor | None = None
        for task, lam in zip(self.tasks, lambdas, strict=True):
            if task.counts:
                inputs = task.statistics.inputs
                gram = inputs.gram
                matrix = gram * lam if matrix is None else matrix.addcmul_(gram, lam)
                matrix.diagonal().add_(lam * (self.config.alpha * inputs.size()))
        return torch.zeros_like(self.tasks[0].statistics.inputs.gram) if matrix is None else matrix

    def inputs_by_name(self) -> dict[str, InputMoments]:
        """Return the inputs of the tasks that count, to explain a failure with."""
        return {task.name: task.statistics.inputs for task in self.counted}


class LayerSolver(Protocol):
    """Solves one layer: IterIS's closed form, or the rule of a rival."""

    def __call__(self, layer: LayerProblem) -> LayerSolution: ...


class Balance(NamedTuple):
    """lambda_g of every task, (n,), and whether it was limited, (n,)."""

    lambdas: Tensor
    limited: Tensor


def balance_weights(tasks: Sequence[TaskAtLayer], balance: str) -> Balance:
    """Return lambda_g of every task; 0 for one that does not count.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8). A task whose teacher does
    nothing here has no such figure. The isotropic one, ``w_g d_in / ||X_g||^2``, is several times
    too large, since LoRAs do more on their own inputs than on random ones. So it is scaled by what
    the other tasks' lambdas are over their isotropic ones on average, and a weight means the same
    for all tasks. Where one of these is more than 10 times the median of the layer, its LoRA hardly
    acts on its own inputs, and it is limited to that. ``full``: paper's formula with the base
    weight in it (official ``ceof_list``). ``uniform``: w_g.
    """
    weights = [task.weight if task.counts else 0.0 for task in tasks]
    energies = torch.stack([task.statistics.inputs.energy for task in tasks])
    counted = energies.new_tensor(weights)
    unlimited = torch.zeros_like(counted, dtype=torch.bool)
    if balance == "uniform":
        return Balance(counted, unlimited)
    if balance == "full":
        return Balance(torch.stack([_full_weight(task) for task in tasks]), unlimited)
    isotropic = counted * tasks[0].statistics.inputs.d_in / torch.where(counted > 0, energies, 1.0)
    norms = torch.stack([task.squared_norm for task in tasks])
    taught = torch.stack([task.taught for task in tasks])
    teaches = (norms > 0) & (taught > 0) & (counted > 0)
    own = torch.where(teaches, counted * norms / torch.where(teaches, taught, 1.0), 0.0)
    over_isotropic = torch.where(teaches, own / torch.where(teaches, isotropic, 1.0), 0.0)
    most = _MOST_ABOVE * torch.where(teaches, over_isotropic, torch.nan).nanmedian()
    is_above = over_isotropic > most
    own = torch.where(is_above, most * isotropic, own)
    over_isotropic = torch.where(is_above, most, over_isotropic)
    factor = over_isotropic.sum() / teaches.sum().clamp_min(1)
    factor = torch.where(teaches.any(), factor, 1.0)
    is_blind = (norms > 0) & (taught <= 0) & (counted > 0)
    return Balance(torch.where(teaches, own, factor * isotropic), is_above | is_blind)


def _full_weight(task: TaskAtLayer) -> Tensor:
    """Return ``w_g ||W0 + dW_g||^2 / ||X_g (W0 + dW_g)^T||^2``, 0-dim."""
    outputs = task.statistics.output_energy
    assert task.full_norm is not None and outputs is not None  # measured for this balance
    if not task.counts:
        return torch.zeros_like(outputs)
    return task.weight * task.full_norm / outputs
