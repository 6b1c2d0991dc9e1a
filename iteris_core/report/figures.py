"""The figures of one solved layer: residuals of the tasks, and interference of other adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack, sums_of_parts
from ..algebra.answer import LayerSolution
from ..algebra.balance import TaskAtLayer
from ..algebra.layer import ROUNDING, LayerProblem
from ..algebra.statistics import along_drifts
from ..devices import has_slow_float64
from .layers import Interference, LayerReport, TaskAtLayerReport

_DIGITS = 6  # of shares


def figures_of(layer: LayerProblem, solution: LayerSolution, merged: LowRankDelta) -> list[Tensor]:
    """Return what the report of a solved layer follows from. It is read with the layer's answer,
    since each reading waits for the device.

    Args:
        layer: Layer that was solved, with its statistics.
        merged: The delta as it will be saved, float64.
    """
    none = torch.zeros(0)
    kept = none if solution.spectrum is None else solution.spectrum.kept()
    cut = none.sum() if solution.cut is None else solution.cut
    return [*_Energies.of(layer, merged), cut, kept]


def report_of(
    path: str,
    names: Mapping[int, str],
    layer: LayerProblem,
    solution: LayerSolution,
    figures: Sequence[Tensor],
) -> LayerReport:
    """Return the report of a solved layer.

    Args:
        names: Adapter index -> name, of the adapters that change the layer.
        figures: See `figures_of`; on the CPU.
    """
    *energies, cut, kept = figures
    counted = [task.counts for task in layer.tasks]
    weights = torch.stack([layer.balance.lambdas, layer.balance.limited], dim=1)[counted]
    rows = torch.cat([_Energies(*energies).figures(), weights], dim=1).tolist()
    return LayerReport(
        path,
        solution.delta.rank,
        tuple(_of_task(*pair, names) for pair in zip(layer.counted, rows, strict=True)),
        cut=cut.item(),
        is_asked=solution.is_asked,
        kept=tuple(round(share, _DIGITS) for share in kept.tolist()),
    )


def _of_task(
    task: TaskAtLayer, figures: Sequence[float], names: Mapping[int, str]
) -> TaskAtLayerReport:
    """Return the report of a task from its figures, see `_Energies.figures`, then lambda and
    whether it was limited.
    """
    residual, stacked, averaged, energy, gain, *pairs, weight, limited = figures
    of_adapters = zip(names.items(), pairs[::2], pairs[1::2], strict=True)
    return TaskAtLayerReport(
        task.name,
        residual,
        weight,
        task.statistics.inputs.tokens,
        wears=task.worn is not None,
        interference=tuple(
            Interference(other, *pair) for (k, other), *pair in of_adapters if k not in task.mix
        ),
        stacked=stacked,
        averaged=averaged,
        energy=energy,
        gain=gain if energy > 0 else None,
        limited=bool(limited),
    )


class _Energies(NamedTuple):
    """Energies of the merged delta, which is number 0, and of K adapters on the inputs of all tasks
    that count, (n,) each; from products in float32 where float64 is slow.

    Args:
        taught: ``||X dW_g^T||^2``.
        target: ``||T_g||^2``, with T_g the target.
        products: ``<X~ dW_i^T, X~ dW_j^T>``, (n, 1 + K, 1 + K).
        with_teacher: ``<X~ dW_i^T, X dW_g^T>``, (n, 1 + K).
        with_target: ``<X~ dW_i^T, T_g>``, (n, 1 + K).
    """

    taught: Tensor
    target: Tensor
    products: Tensor
    with_teacher: Tensor
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
        with_teacher = _along_teachers(layer, both, ranks)
        with_target = with_teacher
        taught = layer.taught[[task.counts for task in layer.tasks]]
        energies = [task.statistics.target_energy for task in tasks]
        targets = [energy for energy in energies if energy is not None]
        if targets:  # then the drift was measured
            along = along_drifts([task.statistics for task in tasks], both)
            with_target = with_teacher + sums_of_parts(along.double(), ranks, 1)
        return cls(
            taught,
            torch.stack(targets) if targets else taught,
            sums_of_parts(sums_of_parts(products, ranks, 2), ranks, 1),
            with_teacher,
            with_target,
        )

    def figures(self) -> Tensor:
        """Return what a report says, (n, 5 + 2 K): ``||T_g - X~_g dW^T||_F`` relative to
        `reference`, of the merge, of all adapters stacked and of their average; what is taught; the
        gain ``<X~ dW^T, X dW_g^T> / ||X dW_g^T||^2``, 0 where nothing is taught; and of each
        adapter ``stacked`` and ``merged`` of `layers.Interference`.
        """
        share = 1 / (self.products.shape[1] - 1)
        stacked = self.products[:, 1:, 1:].sum((1, 2)).clamp_min(0)
        own = self.products.diagonal(dim1=1, dim2=2).clamp_min(0)
        along = self.with_target[:, 1:].sum(1)
        squares = torch.stack(
            [
                self.target - 2 * self.with_target[:, 0] + own[:, 0],
                self.target - 2 * along + stacked,
                self.target - 2 * share * along + share**2 * stacked,
            ],
            dim=1,
        )
        reference = self.reference(stacked, own[:, 1:])[:, None]
        residuals = _relative(squares.clamp_min(0), reference).sqrt()
        gain = _relative(self.with_teacher[:, 0], self.taught)
        alone = _relative(own[:, 1:], reference).sqrt()
        beyond = self.products[:, 0, 1:] - self.with_teacher[:, 1:]
        remains = _relative(beyond, own[:, 1:]) * alone
        pairs = torch.stack([alone, remains], dim=2).flatten(1)
        return torch.cat([residuals, torch.stack([self.taught, gain], dim=1), pairs], dim=1)

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


def _along_teachers(layer: LayerProblem, both: LowRankDelta, ranks: Sequence[int]) -> Tensor:
    """Return ``<X~ dW_i^T, X dW_g^T>`` of each task that counts and part of a stack, (tasks,
    parts).

    Args:
        ranks: Rank of each part.
    """
    up, cross = layer.worn_up.to(both.up), layer.worn_cross.to(both.up)
    products = ((both.up.T @ up) * (both.down @ cross)).double()
    return sums_of_parts(sums_of_parts(products, ranks, 0), layer.worn_ranks, 1).T


def _relative(part: Tensor, whole: Tensor) -> Tensor:
    """Return what part this is of a whole, 0 where there is nothing."""
    return torch.where(whole > 0, part / whole, 0.0)
