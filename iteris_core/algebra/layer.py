"""The input of a layer's solver: the deltas to merge, and each task with its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..adapters import LowRankDelta, Stacked, stack
from ..config import MergeConfig
from .answer import LayerSolution
from .statistics import InputMoments, JointRows, TaskStatistics


@dataclass(frozen=True)
class TaskAtLayer:
    """One task at one layer.

    Args:
        name: Name of the task.
        mix: Adapter index -> share, of the adapters that change this layer.
        weight: The user's weight.
        statistics: Sums over the task's rows; their codes are those of `worn`.
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

    def delta_energy(self) -> Tensor:
        """Return ``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``, what the teacher adds, 0-dim."""
        if self.worn is None:
            return self.statistics.inputs.energy.new_zeros(())
        up = self.worn.delta.up
        return ((up.T @ up) * self.statistics.codes).sum().clamp_min(0)


@dataclass(frozen=True)
class LayerProblem:
    """The problem that is solved at one layer.

    Args:
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; at least
            one.
        tasks: All tasks of the merge.
        config: Settings of the merge.
        rank: Rank of the answer, see `MergeConfig.rank_at`.
        base_weight: W0, (d_out, d_in); only where `MergeConfig.needs_base_weight`.
        joint: Rows of all tasks, where they were kept.
    """

    deltas: Mapping[int, LowRankDelta]
    tasks: Sequence[TaskAtLayer]
    config: MergeConfig
    rank: int | str = "sum"
    base_weight: Tensor | None = None
    joint: JointRows | None = None

    @property
    def counted(self) -> list[TaskAtLayer]:
        """The tasks that have a say here."""
        return [task for task in self.tasks if task.counts]

    @cached_property
    def together(self) -> Stacked[int]:
        """All deltas as one, each with its full share."""
        return stack(self.deltas)

    def lambdas(self) -> Tensor:
        """Return lambda_g of every task, (n,), see `balance_weight`."""
        if self.config.balance == "stack":
            return torch.stack([stack_weight(task, self.together.delta) for task in self.tasks])
        weights = [balance_weight(task, self.config.balance) for task in self.tasks]
        if self.config.balance == "matched":
            weights = self._matched(weights)
        return torch.stack(weights)

    def _matched(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights, with those of tasks that wear nothing times the mean of what LoRAs'
        own weights are over the isotropic ones.
        """
        factors = [
            weight / isotropic_weight(task)
            for task, weight in zip(self.tasks, weights, strict=True)
            if task.counts and task.worn is not None
        ]
        if not factors:
            return list(weights)
        factor = torch.stack(factors).mean()
        return [
            weight * factor if task.worn is None else weight
            for task, weight in zip(self.tasks, weights, strict=True)
        ]

    def normal_matrix(self, lambdas: Tensor) -> Tensor:
        """Return ``S = sum_g lam_g (X~_g^T X~_g + mu_g I)``, (d_in, d_in): the objective's own
        metric.
        """
        matrix = torch.zeros_like(self.tasks[0].statistics.inputs.gram)
        for task, lam in zip(self.tasks, lambdas, strict=True):
            if task.counts:
                inputs = task.statistics.inputs
                matrix.add_(inputs.gram * lam)
                matrix.diagonal().add_(lam * (self.config.alpha * inputs.size()))
        return matrix

    def inputs_by_name(self) -> dict[str, InputMoments]:
        """Return the inputs of the tasks that count, to explain a failure with."""
        return {task.name: task.statistics.inputs for task in self.counted}


class LayerSolver(Protocol):
    """Solves one layer: IterIS's closed form, or the rule of a rival."""

    def __call__(self, layer: LayerProblem) -> LayerSolution: ...


def isotropic_weight(task: TaskAtLayer) -> Tensor:
    """Return ``w_g d_in / ||X_g||^2``, 0-dim."""
    return task.weight * task.statistics.inputs.d_in / task.statistics.inputs.energy


def stack_weight(task: TaskAtLayer, stacked: LowRankDelta) -> Tensor:
    """Return ``w_g ||dW_s||^2 / ||X~_g dW_s^T||^2`` with dW_s all adapters stacked, 0-dim."""
    inputs = task.statistics.inputs
    if not task.counts:
        return torch.zeros_like(inputs.energy)
    energy = ((stacked.up.T @ stacked.up) * inputs.form(stacked.down)).sum().clamp_min(0)
    norm = stacked.squared_norm()
    return torch.where(
        (norm > 0) & (energy > 0), task.weight * norm / energy, isotropic_weight(task)
    )


def balance_weight(task: TaskAtLayer, balance: str) -> Tensor:
    """Return lambda_g, 0-dim.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8), and its isotropic limit
    ``w_g d_in / ||X_g||^2`` where the teacher wears nothing. ``full``: the same with the base
    weight in it (official ``ceof_list``). ``uniform``: w_g.
    """
    inputs = task.statistics.inputs
    if not task.counts:
        return torch.zeros_like(inputs.energy)
    if balance == "uniform":
        return torch.full_like(inputs.energy, task.weight)
    if balance == "full":
        outputs = task.statistics.output_energy
        assert task.full_norm is not None and outputs is not None  # measured for this balance
        return task.weight * task.full_norm / outputs
    isotropic = isotropic_weight(task)
    if task.worn is None:
        return isotropic
    norm = task.worn.delta.squared_norm()
    energy = task.delta_energy()
    return torch.where((norm > 0) & (energy > 0), task.weight * norm / energy, isotropic)
