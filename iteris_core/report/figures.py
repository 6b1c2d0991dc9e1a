"""What one solved layer tells: how each task fares, and how much of the other adapters gets into
it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack
from ..algebra.answer import LayerSolution
from ..algebra.solve import TaskAtLayer
from .records import Interference, LayerReport, TaskAtLayerReport

_DIGITS = 6  # of shares


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
    counted = [
        (task, lam) for task, lam in zip(tasks, solution.lambdas, strict=True) if task.counts
    ]
    lambdas = torch.stack([lam for _, lam in counted])
    energies = [
        _Energies(task, {k: delta for k, (_, delta) in deltas.items()}, merged)
        for task, _ in counted
    ]
    left = torch.stack([entry.squared_residuals() for entry in energies])
    reference = torch.stack([entry.reference() for entry in energies])[:, None]
    residuals = torch.where(reference > 0, (left / reference).sqrt(), torch.zeros_like(left))
    taught = torch.stack([entry.taught for entry in energies])
    strangers = [[k for k in deltas if k not in task.mix] for task, _ in counted]
    pairs = [
        torch.stack(entry.interference(k))
        for entry, own in zip(energies, strangers, strict=True)
        for k in own
    ]
    interference = torch.stack(pairs) if pairs else left.new_zeros(0, 2)
    facts = [
        (task.name, task.worn is not None, task.statistics.inputs.tokens) for task, _ in counted
    ]
    cut = solution.cut
    plain_cut = solution.plain_cut
    rank = merged.rank
    kept = None if solution.spectrum is None else solution.spectrum.kept()

    @functools.cache  # whoever watches the merge has read it already
    def read() -> LayerReport:
        known = iter(interference.tolist())
        entries = []
        figures = zip(
            facts, strangers, residuals.tolist(), lambdas.tolist(), taught.tolist(), strict=True
        )
        for (name, wears, tokens), own, (residual, stacked, averaged), weight, energy in figures:
            between = tuple(Interference(deltas[k][0], *next(known)) for k in own)
            entries.append(
                TaskAtLayerReport(
                    name, residual, weight, tokens, wears, between, stacked, averaged, energy
                )
            )
        shares = () if kept is None else tuple(round(share, _DIGITS) for share in kept.tolist())
        plain = None if plain_cut is None else plain_cut.item()
        return LayerReport(
            path, rank, tuple(entries), 0.0 if cut is None else cut.item(), plain, shares
        )

    return read


class _Energies:
    """What the merged delta, and every adapter, do on one task's inputs at one layer: all from one
    form of the Gram matrix.
    """

    def __init__(
        self, task: TaskAtLayer, deltas: Mapping[int, LowRankDelta], merged: LowRankDelta
    ) -> None:
        self.task = task
        self.taught = task.delta_energy()
        statistics = task.statistics
        both = stack([merged, *deltas.values()], [1.0] * (1 + len(deltas)))
        # entry (i, j) of this matrix, summed over a pair of blocks, is <X~ dW_i^T, X~ dW_j^T>
        self.products = (both.up.T @ both.up) * statistics.inputs.form(both.down)
        # entry i of these, summed over a block, is <X~ dW_i^T, X dW_g^T>, and the same with what
        # the target asks for
        self.with_teacher = both.up.new_zeros(both.rank)
        if task.worn is not None:
            self.with_teacher = ((both.up.T @ task.worn.up) * (both.down @ statistics.cross)).sum(1)
        self.with_target = self.with_teacher
        if statistics.drift is not None:
            self.with_target = self.with_teacher + (both.up.T * (both.down @ statistics.drift)).sum(
                1
            )
        self.merged = slice(0, merged.rank)
        self.adapters = slice(merged.rank, None)
        stop = merged.rank
        self.blocks: dict[int, slice] = {}
        for k, delta in deltas.items():
            self.blocks[k] = slice(stop, stop := stop + delta.rank)

    def energy(self, block: slice) -> Tensor:
        """Return ``||X~ dW^T||_F^2`` of a block, 0-dim."""
        return self.products[block, block].sum().clamp_min(0)

    def squared_residuals(self) -> Tensor:
        """Return ``||T_g - X~_g dW^T||_F^2`` of the merge, of all adapters stacked, and of their
        average, (3,).

        T_g is what the target asks for.
        """
        target = self.task.statistics.target_energy
        target = self.taught if target is None else target
        ways = ((self.merged, 1.0), (self.adapters, 1.0), (self.adapters, 1 / len(self.blocks)))
        left = [
            target - 2 * c * self.with_target[of].sum() + c**2 * self.energy(of) for of, c in ways
        ]
        return torch.stack(left).clamp_min(0)

    def reference(self) -> Tensor:
        """Return what a residual is relative to: what the teacher adds; where that is nothing, what
        all adapters would.
        """
        return torch.where(self.taught > 0, self.taught, self.energy(self.adapters))

    def interference(self, k: int) -> tuple[Tensor, Tensor]:
        """Return `report.Interference`'s ``stacked`` and ``merged`` for an adapter that the teacher
        does not wear, 0-dim.
        """
        block = self.blocks[k]
        reference = self.reference()
        alone = self.energy(block)
        stacked = torch.where(reference > 0, (alone / reference).sqrt(), torch.zeros_like(alone))
        along = self.products[self.merged, block].sum() - self.with_teacher[block].sum()
        return stacked, torch.where(alone > 0, along / alone, torch.zeros_like(alone)) * stacked
