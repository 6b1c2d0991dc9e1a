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
from ..devices import to_cpu
from .answer import LayerSolution
from .balance import Balance, TaskAtLayer, balance_weights
from .moments import InputMoments

# Of a squared norm, relative to its parts' norms: less is rounding of parts that cancel.
ROUNDING = 1e-12


class Sizes(NamedTuple):
    """Sizes that a layer's balance and ridges follow from, on the CPU, float64.

    Args:
        inputs: ``||X_g||_F^2`` of every task, (n,).
        grams: ``||X~_g^T X~_g||_F`` of every task, (n,); 0 of one that does not count.
        crosses: ``||X~_g^T X_g||_F`` in the same way, see `InputMoments.cross_size`.
        energies: ``||X_g dW_g^T||_F^2 = tr(up^T up H^T H)`` of every task, what its teacher adds,
            (n,), also where that is rounding.
        products: ``<dW_i, dW_j>`` of all deltas, (K, K).
        lengths: Upper bound of ``||dW_k||``, the sum of the norms of its ranks, (K,).
    """

    inputs: Tensor
    grams: Tensor
    crosses: Tensor
    energies: Tensor
    products: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class LayerTasks:
    """What is merged at one layer, and for whom.

    Args:
        deltas: Adapter index -> delta at this layer, float64 on the statistics' device; only
            adapters that change it.
    """

    deltas: Mapping[int, LowRankDelta]
    tasks: Sequence[TaskAtLayer]

    @property
    def counted(self) -> list[TaskAtLayer]:
        """The tasks that have a say here."""
        return [task for task in self.tasks if task.counts]

    @cached_property
    def together(self) -> Stacked[int]:
        """All deltas as one, each with its full share."""
        return stack(self.deltas)


@dataclass(frozen=True)
class LayerProblem(LayerTasks):
    """The problem that is solved at one layer. Numbers per task or delta are on the CPU, which is
    done with them before another device would have started.

    Args:
        rank: Rank of the answer, see `MergeConfig.rank_at`.
        base_weight: W0, (d_out, d_in); only where `MergeConfig.needs_base_weight`.
    """

    config: MergeConfig
    rank: int | str = "sum"
    base_weight: Tensor | None = None

    @cached_property
    def shares(self) -> Tensor:
        """The share of every delta in every task's mix, (tasks, deltas)."""
        mixes = [[task.mix.get(k, 0.0) for k in self.deltas] for task in self.tasks]
        return torch.tensor(mixes, dtype=torch.float64)

    @cached_property
    def own_tasks(self) -> dict[int, int]:
        """Adapter index -> number of the first counting task whose teacher wears it alone."""
        tasks: dict[int, int] = {}
        for g, task, _ in self.wearing:
            if len(task.mix) == 1:
                tasks.setdefault(next(iter(task.mix)), g)
        return tasks

    @cached_property
    def own_up(self) -> Tensor:
        """The ``up`` of the adapters in `own_tasks`, each with its full share, side by side."""
        return torch.cat([self.deltas[k].up for k in self.own_tasks], dim=1)

    @cached_property
    def own_products(self) -> Tensor:
        """``own_up^T up`` with all deltas as one."""
        return self.own_up.T @ self.together.delta.up

    @property
    def ranks(self) -> list[int]:
        """The rank of every delta."""
        return [delta.rank for delta in self.deltas.values()]

    @cached_property
    def wearing(self) -> list[tuple[int, TaskAtLayer, Stacked[int]]]:
        """The counting tasks whose teacher wears something: number, task, and what it wears."""
        return [
            (g, task, task.worn)
            for g, task in enumerate(self.tasks)
            if task.counts and task.worn is not None
        ]

    @cached_property
    def worn_up(self) -> Tensor:
        """The ``up`` of all that is worn in `wearing`, side by side, (d_out, R'), float64."""
        none = self.together.delta.up[:, :0]
        ups = [worn.delta.up.to(none.device) for _, _, worn in self.wearing]
        return torch.cat(ups, dim=1).to(none) if ups else none

    @cached_property
    def worn_cross(self) -> Tensor:
        """``X~_g^T H_g`` of the tasks in `wearing`, side by side, (d_in, R')."""
        none = self.together.delta.down[:0].T
        return torch.cat([none, *(task.statistics.cross for _, task, _ in self.wearing)], 1)

    @cached_property
    def worn_ranks(self) -> list[int]:
        """The rank of what each counting task's teacher wears."""
        return [0 if task.worn is None else task.worn.delta.rank for task in self.counted]

    @cached_property
    def norms(self) -> Tensor:
        """``||dW_g||^2`` of every task, (n,)."""
        return ((self.shares @ self.sizes.products) * self.shares).sum(1)

    @cached_property
    def taught(self) -> Tensor:
        """``||X_g dW_g^T||_F^2`` of every task; 0 where it is only rounding, since the adapters of
        its mix cancel, or are blind to its inputs.
        """
        most = (self.shares.abs() @ self.sizes.lengths).square()
        least = ROUNDING * self.norms * self.sizes.inputs
        is_real = (self.norms > ROUNDING * most) & (self.sizes.energies > least)
        return torch.where(is_real, self.sizes.energies, 0.0)

    @cached_property
    def sizes(self) -> Sizes:
        """All sizes, read together to wait for the device only once."""
        none = torch.zeros((), dtype=torch.float64)
        of_inputs: list[Tensor] = []  # three of every task
        for task in self.tasks:
            part = task.statistics.inputs
            norms = (part.size, part.cross_size) if task.counts else (none, none)
            of_inputs += [part.energy, *norms]
        up, down = self.together.delta.up, self.together.delta.down
        products = (up.T @ up) * (down @ down.T)
        taught, squares, products, *found = to_cpu(
            self._taught_by_rank(),
            products.diagonal(),
            sums_of_parts(sums_of_parts(products, self.ranks, 1), self.ranks, 0),
            *of_inputs,
        )
        energies = torch.zeros(len(self.tasks), dtype=torch.float64)
        energies[[task.counts for task in self.tasks]] = sums_of_parts(taught, self.worn_ranks, 0)
        inputs, grams, crosses = torch.stack(found).reshape(-1, 3).T.contiguous()
        return Sizes(
            inputs,
            grams,
            crosses,
            energies.clamp_min(0),
            products,
            sums_of_parts(squares.sqrt(), self.ranks, 0),
        )

    def _taught_by_rank(self) -> Tensor:
        """Return the parts of ``||X_g dW_g^T||_F^2``, one for each rank in `worn_up`, (R',)."""
        codes = [task.statistics.codes for _, task, _ in self.wearing]
        none = self.worn_up.new_empty(0, 0)
        apart: Tensor = torch.block_diag(none, *codes)  # type: ignore[no-untyped-call]
        return ((self.worn_up.T @ self.worn_up) * apart).sum(0)

    @cached_property
    def balance(self) -> Balance:
        """The weights of the tasks."""
        kind = self.config.balance
        return balance_weights(kind, self.tasks, self.sizes.inputs, self.norms, self.taught)

    def normal_matrix(self) -> Tensor:
        """Return ``S = sum_g lam_g (X~_g^T X~_g + mu_g I)``, (d_in, d_in): the objective's own
        metric.
        """
        lambdas = self.balance.lambdas
        inputs = self.tasks[0].statistics.inputs
        matrix = inputs.zeros(inputs.d_in, inputs.d_in)
        for task, lam in zip(self.tasks, lambdas.tolist(), strict=True):
            if task.counts:
                matrix.add_(task.statistics.inputs.gram, alpha=lam)
        matrix.diagonal().add_(self.config.alpha * (lambdas @ self.sizes.grams).item())
        return matrix

    def inputs_by_name(self) -> dict[str, InputMoments]:
        """Return the inputs of the tasks that count, to explain a failure with."""
        return {task.name: task.statistics.inputs for task in self.counted}


# Solves one layer: IterIS's closed form, or the rule of a rival.
LayerSolver = Callable[[LayerProblem], LayerSolution]
