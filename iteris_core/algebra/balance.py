"""The tasks of a layer, and the weight of each, lambda."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import config
from ..adapters import Stacked
from ..devices import to_cpu
from .statistics import TaskStatistics, TaskSums

# Largest lambda of a LoRA over the median of the layer, both relative to the isotropic one: without
# a limit, a LoRA that hardly acts on its own inputs silences all others.
_MOST_ABOVE = 10


@dataclass(frozen=True)
class TaskAtLayer:
    """One task at one layer.

    Args:
        mix: Adapter index -> share, of the adapters that change this layer.
        statistics: Sums over the task's rows; their codes are codes of `worn`.
        worn: The mix as one delta, with each adapter's place; None where the task wears nothing
            here.
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


class Balance(NamedTuple):
    """lambda_g of every task, (n,), and whether it was limited, (n,)."""

    lambdas: Tensor
    limited: Tensor


def balance_weights(
    kind: config.Balance,
    tasks: Sequence[TaskAtLayer],
    inputs: Tensor,
    norms: Tensor,
    taught: Tensor,
) -> Balance:
    """Return lambda_g of every task; 0 for one that does not count.

    ``delta``: ``w_g ||dW_g||^2 / ||X_g dW_g^T||^2`` (paper, equation 8). A task whose teacher does
    nothing here has no such figure. The isotropic one, ``w_g d_in / ||X_g||^2``, is several times
    too large, since LoRAs do more on their own inputs than on random ones. So it is multiplied by
    the other tasks' mean ratio of lambda to isotropic lambda, and a weight means the same for all
    tasks. A ratio of more than 10 times the layer's median, whose LoRA hardly acts on its own
    inputs, is limited to that. ``full``: the paper's formula with the base weight in it (official
    ``ceof_list``). ``uniform``: w_g.

    Args:
        inputs: ``||X_g||_F^2`` of every task, (n,).
        norms: ``||dW_g||^2``, (n,).
        taught: ``||X_g dW_g^T||^2``, (n,), 0 where that is rounding.
    """
    weights = [task.weight if task.counts else 0.0 for task in tasks]
    counted = torch.tensor(weights, dtype=torch.float64)
    unlimited = torch.zeros_like(counted, dtype=torch.bool)
    if kind == "uniform":
        return Balance(counted, unlimited)
    if kind == "full":
        return Balance(torch.stack(to_cpu(*map(_full_weight, tasks))), unlimited)
    isotropic = counted * tasks[0].statistics.inputs.d_in / torch.where(counted > 0, inputs, 1.0)
    acts = (norms > 0) & (counted > 0)
    teaches = acts & (taught > 0)
    lambdas = torch.where(teaches, counted * norms / taught, 0.0)
    over_isotropic = torch.where(teaches, lambdas / isotropic, 0.0)
    most = _MOST_ABOVE * torch.where(teaches, over_isotropic, torch.nan).nanmedian()
    is_above = over_isotropic > most
    lambdas = torch.where(is_above, most * isotropic, lambdas)
    over_isotropic = torch.where(is_above, most, over_isotropic)
    factor = over_isotropic.sum() / teaches.sum().clamp_min(1)
    factor = torch.where(teaches.any(), factor, 1.0)
    limited = is_above | (acts & ~teaches)
    return Balance(torch.where(teaches, lambdas, factor * isotropic), limited)


def _full_weight(task: TaskAtLayer) -> Tensor:
    """Return ``w_g ||W0 + dW_g||^2 / ||X_g (W0 + dW_g)^T||^2``, 0-dim."""
    assert isinstance(task.statistics, TaskSums)  # measured for this balance
    outputs = task.statistics.output_energy
    assert task.full_norm is not None and outputs is not None
    if not task.counts:
        return torch.zeros_like(outputs)
    return task.weight * task.full_norm / outputs
