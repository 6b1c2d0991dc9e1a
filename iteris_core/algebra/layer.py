"""The input of a layer's solver: the deltas to merge, and each task with its statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters import LowRankDelta, Stacked, stack, sums_of_parts
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

    @property
    def energy(self) -> Tensor:
        """``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)``, what the teacher adds, 0-dim, also where that
        is rounding, see `LayerProblem.taught`.
        """
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
    def shares(self) -> Tensor:
        """The share of every delta in every task's mix, (tasks, deltas)."""
        mixes = [[task.mix.get(k, 0.0) for k in self.deltas] for task in self.tasks]
        return self.together.delta.up.new_tensor(mixes)

    @property
    def ranks(self) -> list[int]:
        """The rank of every delta."""
        return [delta.rank for delta in self.deltas.values()]

    @cached_property
    def up_products(self) -> Tensor:
        """``up^T up`` of all deltas as one, (R, R)."""
        up = self.together.delta.up
        return up.T @ up

    @cached_property
    def sizes(self) -> Tensor:
        """``||X~_g^T X~_g||_F`` of every task, (n,); 0 of one that does not count."""
        return self._of_counted(lambda inputs: inputs.size())

    @cached_property
    def cross_sizes(self) -> Tensor:
        """``||X~_g^T X_g||_F`` of every task, see `InputMoments.cross_size`."""
        return self._of_counted(lambda inputs: inputs.cross_size())

    def _of_counted(self, measure: Callable[[InputMoments], Tensor]) -> Tensor:
        inputs = [task.statistics.inputs for task in self.tasks]
        return torch.stack(
            [
                measure(part) if task.counts else part.zeros()
                for task, part in zip(self.tasks, inputs, strict=True)
            ]
        )

    @cached_property
    def norms(self) -> Tensor:
        """``||dW_g||^2`` of every task, (n,)."""
        return self._norms[0]

    @cached_property
    def taught(self) -> Tensor:
        """``||X_g dW_g^T||_F^2`` of every task, (n,): 0 where the adapters of its mix cancel, or it
        is blind to its inputs, which leaves nothing but rounding.
        """
        norms, most = self._norms
        seen = torch.stack([task.statistics.inputs.energy for task in self.tasks])
        energies = torch.stack([task.energy for task in self.tasks])
        is_real = (norms > RELATIVE_ZERO * most) & (energies > RELATIVE_ZERO * norms * seen)
        return torch.where(is_real, energies, 0.0)

    @cached_property
    def _norms(self) -> tuple[Tensor, Tensor]:
        """``||dW_g||^2`` of every task, and the most that it can be, whatever the scales of the
        factors are.
        """
        down = self.together.delta.down
        down_products = down @ down.T
        products = sums_of_parts(self.up_products * down_products, self.ranks, 0)
        between = sums_of_parts(products, self.ranks, 1)
        lengths = (self.up_products.diagonal() * down_products.diagonal()).sqrt()
        most = self.shares.abs() @ sums_of_parts(lengths, self.ranks, 0)
        return ((self.shares @ between) * self.shares).sum(1), most.square()

    @cached_property
    def balance(self) -> Balance:
        """The weights of the tasks, see `balance_weights`."""
        return balance_weights(self)

    def lambdas(self) -> Tensor:
        """Return lambda_g of every task, (n,)."""
        return self.balance.lambdas

    def normal_matrix(self, lambdas: Tensor) -> Tensor:
        """Return ``S = sum_g lam_g (X~_g^T X~_g + mu_g I)``, (d_in, d_in): the objective's own
        metric.
        """
        matrix = torch.zeros_like(self.tasks[0].statistics.inputs.gram)
        for task, lam in zip(self.tasks, lambdas, strict=True):
            if task.counts:
                matrix.addcmul_(task.statistics.inputs.gram, lam)
        matrix.diagonal().add_(lambdas @ self.sizes, alpha=self.config.alpha)
        return matrix

    def inputs_by_name(self) -> dict[str, InputMoments]:
        """Return the inputs of the tasks that count, to explain a failure with."""
        return {task.name: task.statistics.inputs for task in self.counted}


# Solves one layer: IterIS's closed form, or the rule of a rival.
LayerSolver = Callable[[LayerProblem], LayerSolution]


class Balance(NamedTuple):
    """lambda_g of every task, (n,), and whether it was limited, (n,)."""

    lambdas: Tensor
    limited: Tensor


def balance_weights(layer: LayerProblem) -> Balance:
    """Return lambda_g of every task; 0 for one that does not count.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8). A task whose teacher does
    nothing here has no such figure. The isotropic one, ``w_g d_in / ||X_g||^2``, is several times
    too large, since LoRAs do more on their own inputs than on random ones. So it is scaled by what
    the other tasks' lambdas are over their isotropic ones on average, and a weight means the same
    for all tasks. Where one of these is more than 10 times the median of the layer, its LoRA hardly
    acts on its own inputs, and it is limited to that. ``full``: paper's formula with the base
    weight in it (official ``ceof_list``). ``uniform``: w_g.
    """
    tasks = layer.tasks
    energies = torch.stack([task.statistics.inputs.energy for task in tasks])
    counted = energies.new_tensor([task.weight if task.counts else 0.0 for task in tasks])
    unlimited = torch.zeros_like(counted, dtype=torch.bool)
    if layer.config.balance == "uniform":
        return Balance(counted, unlimited)
    if layer.config.balance == "full":
        return Balance(torch.stack([_full_weight(task) for task in tasks]), unlimited)
    isotropic = counted * tasks[0].statistics.inputs.d_in / torch.where(counted > 0, energies, 1.0)
    acts = (layer.norms > 0) & (counted > 0)
    teaches = acts & (layer.taught > 0)
    own = torch.where(teaches, counted * layer.norms / layer.taught, 0.0)
    over_isotropic = torch.where(teaches, own / isotropic, 0.0)
    most = _MOST_ABOVE * torch.where(teaches, over_isotropic, torch.nan).nanmedian()
    is_above = over_isotropic > most
    own = torch.where(is_above, most * isotropic, own)
    over_isotropic = torch.where(is_above, most, over_isotropic)
    factor = over_isotropic.sum() / teaches.sum().clamp_min(1)
    factor = torch.where(teaches.any(), factor, 1.0)
    limited = is_above | (acts & ~teaches)
    return Balance(torch.where(teaches, own, factor * isotropic), limited)


def _full_weight(task: TaskAtLayer) -> Tensor:
    """Return ``w_g ||W0 + dW_g||^2 / ||X_g (W0 + dW_g)^T||^2``, 0-dim."""
    outputs = task.statistics.output_energy
    assert task.full_norm is not None and outputs is not None  # measured for this balance
    if not task.counts:
        return torch.zeros_like(outputs)
    return task.weight * task.full_norm / outputs
