"""What one solved layer tells: how each task fares, and how much of the other adapters gets into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .adapters import LowRankDelta, stack
from .answer import LayerSolution
from .report import Interference, LayerReport, TaskAtLayerReport
from .solve import TaskAtLayer


def figures_of(
    path: str,
    deltas: Mapping[int, tuple[str, LowRankDelta]],
    tasks: Sequence[TaskAtLayer],
    merged: LowRankDelta,
    solution: LayerSolution,
) -> Callable[[], LayerReport]:
    """Measure a solved layer, and return a function that reads the figures from the device.

    Reading at once would make every layer wait for it.

    Args:
        path: Of the layer.
        deltas: Adapter index -> its name, and its delta at this layer, float64.
        tasks: With the statistics that the layer was solved on.
        merged: As it will be saved, float64.
        solution: Of the layer.
    """
    counted = [(task, lam) for task, lam in zip(tasks, solution.lambdas, strict=True) if task.counts]
    lambdas = torch.stack([lam for _, lam in counted])
    energies = [_Energies(task, {k: delta for k, (_, delta) in deltas.items()}, merged) for task, _ in counted]
    left = torch.stack([entry.squared_residual() for entry in energies])
    reference = torch.stack([entry.reference() for entry in energies])
    residuals = torch.where(reference > 0, (left / reference).sqrt(), torch.zeros_like(left))
    strangers = [[k for k in deltas if k not in task.mix] for task, _ in counted]
    pairs = [torch.stack(entry.interference(k)) for entry, own in zip(energies, strangers, strict=True) for k in own]
    interference = torch.stack(pairs) if pairs else left.new_zeros(0, 2)
    facts = [(task.name, task.worn is not None, task.statistics.inputs.tokens) for task, _ in counted]
    cut, plain_cut, rank = solution.cut, solution.plain_cut, merged.rank

    def read() -> LayerReport:
        known, entries = iter(interference.tolist()), []
        for fact, own, residual, weight in zip(facts, strangers, residuals.tolist(), lambdas.tolist(), strict=True):
            name, wears, tokens = fact
            between = tuple(Interference(deltas[k][0], *next(known)) for k in own)
            entries.append(TaskAtLayerReport(name, residual, weight, tokens, wears, between))
        plain = None if plain_cut is None else plain_cut.item()
        return LayerReport(path, rank, tuple(entries), 0.0 if cut is None else cut.item(), plain)

    return read


class _Energies:
    """What the merged delta, and every adapter, do on one task's inputs at one layer: all from one form of the Gram matrix."""

    def __init__(self, task: TaskAtLayer, deltas: Mapping[int, LowRankDelta], merged: LowRankDelta) -> None:
        self.task, self.merged, self.deltas = task, merged, deltas
        both = stack([merged, *deltas.values()], [1.0] * (1 + len(deltas)))
        # entry (i, j) of this matrix, summed over a pair of blocks, is <X~ dW_i^T, X~ dW_j^T>
        self.products = (both.up.T @ both.up) * task.statistics.inputs.form(both.down)
        stop = merged.rank
        self.blocks: dict[int, slice] = {}
        for k, delta in deltas.items():
            self.blocks[k] = slice(stop, stop := stop + delta.rank)

    def _of_merged(self, other: slice) -> Tensor:
        return self.products[: self.merged.rank, other].sum()

    def _overlap_with_teacher(self, delta: LowRankDelta) -> Tensor:
        """Return ``<X~ delta^T, X dW_g^T>``, 0-dim."""
        task = self.task
        if task.worn is None:
            return task.statistics.inputs.energy.new_zeros(())
        return ((delta.up.T @ task.worn.up) * (delta.down @ task.statistics.cross)).sum()

    def squared_residual(self) -> Tensor:
        """Return ``||T_g - X~_g dW^T||_F^2``, 0-dim; T_g is what the target asks for."""
        statistics, merged = self.task.statistics, self.merged
        overlap = self._overlap_with_teacher(merged)
        if statistics.drift is not None:
            overlap = overlap + (merged.up.T * (merged.down @ statistics.drift)).sum()
        target = self.task.delta_energy() if statistics.target_energy is None else statistics.target_energy
        return (target - 2 * overlap + self._of_merged(slice(merged.rank)).clamp_min(0)).clamp_min(0)

    def reference(self) -> Tensor:
        """Return what a residual is relative to: what the teacher adds; where that is nothing, what all adapters would."""
        own, everything = self.task.delta_energy(), slice(self.merged.rank, None)
        return torch.where(own > 0, own, self.products[everything, everything].sum().clamp_min(0))

    def interference(self, k: int) -> tuple[Tensor, Tensor]:
        """Return `report.Interference`'s ``stacked`` and ``merged`` for an adapter that the teacher does not wear, 0-dim."""
        block, reference = self.blocks[k], self.reference()
        alone = self.products[block, block].sum().clamp_min(0)
        stacked = torch.where(reference > 0, (alone / reference).sqrt(), torch.zeros_like(alone))
        along = self._of_merged(block) - self._overlap_with_teacher(self.deltas[k])
        return stacked, torch.where(alone > 0, along / alone, torch.zeros_like(alone)) * stacked
