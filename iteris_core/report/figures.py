"""The figures of one solved layer: residuals of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack, sums_of_parts
from ..algebra.answer import LayerSolution
from ..algebra.balance import TaskAtLayer
from ..algebra.layer import ROUNDING, LayerProblem
from ..algebra.statistics import along_drifts
from ..devices import has_slow_float64
from .records import LayerReport, TaskAtLayerReport


def figures_of(layer: LayerProblem, solution: LayerSolution, merged: LowRankDelta) -> list[Tensor]:
    """Return what the report of a solved layer follows from. It is read with the layer's answer,
    since each reading waits for the device.

    Args:
        layer: Layer that was solved, with its statistics.
        merged: The delta as it will be saved, float64.
    """
    cut = torch.zeros(()) if solution.cut is None else solution.cut
    return [*_Energies.of(layer, merged), cut]


def report_of(
    path: str, layer: LayerProblem, solution: LayerSolution, figures: Sequence[Tensor]
) -> LayerReport:
    """Return the report of a solved layer.

    Args:
        figures: See `figures_of`; on the CPU.
    """
    *energies, cut = figures
    counted = [task.counts for task in layer.tasks]
    weights = torch.stack([layer.balance.lambdas, layer.balance.limited], dim=1)[counted]
    rows = torch.cat([_Energies(*energies).residuals()[:, None], weights], dim=1).tolist()
    return LayerReport(
        path,
        solution.delta.rank,
        tuple(_of_task(*pair) for pair in zip(layer.counted, rows, strict=True)),
        cut.item(),
    )


def _of_task(task: TaskAtLayer, figures: Sequence[float]) -> TaskAtLayerReport:
    """Return the report of a task from its residual, lambda, and whether that was limited."""
    residual, weight, limited = figures
    return TaskAtLayerReport(
        task.name,
        residual,
        weight,
        task.statistics.inputs.tokens,
        wears=task.worn is not None,
        limited=bool(limited),
    )


class _Energies(NamedTuple):
    """Energies on the inputs of all tasks that count, (n,) each, of the merged delta, which is
    number 0, and of K adapters; from products in float32 where float64 is slow.

    Args:
        taught: ``||X dW_g^T||^2``.
        target: ``||T_g||^2``, with T_g the target.
        products: ``<X~ dW_i^T, X~ dW_j^T>``, (n, 1 + K, 1 + K).
        with_target: ``<X~ dW^T, T_g>`` of the merged delta.
    """

    taught: Tensor
    target: Tensor
    products: Tensor
    with_target: Tensor

    @classmethod
    def of(cls, layer: LayerProblem, merged: LowRankDelta) -> _Energies:
        """Measure them, all from one form of each task's Gram matrix."""
        tasks = layer.counted
        both = stack({"merged": merged, "adapters": layer.together.delta}).delta
        if has_slow_float64(both.up.device):
            both = both.to(dtype=torch.float32)
        ranks = [merged.rank, *layer.ranks]
        forms = torch.stack([task.statistics.inputs.form(both.down) for task in tasks])
        products = ((both.up.T @ both.up) * forms).double()
        near = merged.to(dtype=both.up.dtype)
        with_target = _along_teachers(layer, near)
        taught = layer.taught[[task.counts for task in layer.tasks]]
        energies = [task.statistics.target_energy for task in tasks]
        targets = [energy for energy in energies if energy is not None]
        if targets:  # then the drift was measured
            along = along_drifts([task.statistics for task in tasks], near)
            with_target = with_target + along.double().sum(1)
        return cls(
            taught,
            torch.stack(targets) if targets else taught,
            sums_of_parts(sums_of_parts(products, ranks, 2), ranks, 1),
            with_target,
        )

    def residuals(self) -> Tensor:
        """Return ``||T_g - X~_g dW^T||_F`` relative to `reference`, (n,); 0 where that is 0."""
        stacked = self.products[:, 1:, 1:].sum((1, 2)).clamp_min(0)
        own = self.products.diagonal(dim1=1, dim2=2).clamp_min(0)
        square = (self.target - 2 * self.with_target + own[:, 0]).clamp_min(0)
        whole = self.reference(stacked, own[:, 1:])
        return torch.where(whole > 0, square / whole, 0.0).sqrt()

    def reference(self, stacked: Tensor, alone: Tensor) -> Tensor:
        """Return the energy that figures are relative to, (n,): the energy of the teacher's delta,
        or of all adapters stacked where the teacher wears nothing.

        Args:
            stacked: Energy of all adapters stacked, (n,).
            alone: Energy of each, (n, K).
        """
        # adapters that cancel leave nothing but rounding
        most = alone.sqrt().sum(1).square()
        stacked = torch.where(stacked > ROUNDING * most, stacked, 0.0)
        return torch.where(self.taught > 0, self.taught, stacked)


def _along_teachers(layer: LayerProblem, merged: LowRankDelta) -> Tensor:
    """Return ``<X~ dW^T, X dW_g^T>`` of each task that counts, (tasks,)."""
    up, cross = layer.worn_up.to(merged.up), layer.worn_cross.to(merged.up)
    products = ((merged.up.T @ up) * (merged.down @ cross)).double()
    return sums_of_parts(products.sum(0), layer.worn_ranks, 0)
