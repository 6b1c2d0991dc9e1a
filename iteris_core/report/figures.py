"""The figures of one solved layer: residuals of the tasks, and interference of other adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta, Stacked, stack
from ..algebra.answer import LayerSolution
from ..algebra.layer import RELATIVE_ZERO, LayerProblem, TaskAtLayer
from .records import Interference, LayerReport, TaskAtLayerReport

_DIGITS = 6  # of shares


def figures_of(
    path: str,
    names: Mapping[int, str],
    layer: LayerProblem,
    solution: LayerSolution,
    merged: LowRankDelta,
) -> Callable[[], LayerReport]:
    """Measure a solved layer, and return a function that reads the figures from the device.

    Reading at once would make every layer wait for the device.

    Args:
        names: Adapter index -> name, of the adapters that change the layer.
        layer: Layer that was solved, with its statistics.
        merged: The delta as it will be saved, float64.
    """
    both: dict[int | None, LowRankDelta] = {None: merged}
    both.update(layer.deltas.items())
    stacked = stack(both)
    tasks = [
        _task_figures(task, lam, limited, stacked, names)
        for task, lam, limited in zip(
            layer.tasks, solution.lambdas, layer.balance.limited, strict=True
        )
        if task.counts
    ]
    cut = solution.cut
    plain_cut = solution.plain_cut
    rank = merged.rank
    kept = None if solution.spectrum is None else solution.spectrum.kept()

    @functools.cache  # a listener may have read it already
    def read() -> LayerReport:
        return LayerReport(
            path,
            rank,
            tuple(task.read() for task in tasks),
            cut=0.0 if cut is None else cut.item(),
            plain_cut=None if plain_cut is None else plain_cut.item(),
            kept=() if kept is None else tuple(round(share, _DIGITS) for share in kept.tolist()),
        )

    return read


@dataclass(frozen=True)
class _TaskFigures:
    """One task at a solved layer, before its figures are read from the device.

    Args:
        wears: Whether its teacher wears anything here.
        tokens: Number of tokens that were counted.
        strangers: Names of the adapters that the teacher does not wear.
        figures: Residuals of the merge, of all adapters stacked and of their average; lambda, and
            whether it was limited; the taught energy; the gain; then ``stacked`` and ``merged`` of
            each stranger.
    """

    task: str
    wears: bool
    tokens: int
    strangers: tuple[str, ...]
    figures: Tensor

    def read(self) -> TaskAtLayerReport:
        residual, stacked, averaged, weight, limited, energy, gain, *pairs = self.figures.tolist()
        between = zip(self.strangers, pairs[::2], pairs[1::2], strict=True)
        return TaskAtLayerReport(
            self.task,
            residual,
            weight,
            self.tokens,
            wears=self.wears,
            interference=tuple(Interference(*found) for found in between),
            stacked=stacked,
            averaged=averaged,
            energy=energy,
            gain=gain if energy > 0 else None,
            limited=bool(limited),
        )


def _task_figures(
    task: TaskAtLayer,
    lam: Tensor,
    limited: Tensor,
    stacked: Stacked[int | None],
    names: Mapping[int, str],
) -> _TaskFigures:
    """Measure one task from its sums.

    Args:
        lam: lambda, 0-dim.
        limited: Whether it was limited, 0-dim.
        stacked: The merged delta, under None, and all adapters'.
        names: Adapter index -> name.
    """
    energies = _Energies(task, stacked)
    strangers = [k for k in names if k not in task.mix]
    return _TaskFigures(
        task.name,
        task.worn is not None,
        task.statistics.inputs.tokens,
        tuple(names[k] for k in strangers),
        torch.cat(
            [
                energies.residuals(),
                torch.stack([lam, limited.to(lam.dtype), energies.taught, energies.gain()]),
                *(energies.interference(k) for k in strangers),
            ]
        ),
    )


class _Energies:
    """Energies of the merged delta and of every adapter on one task's inputs, all from one form of
    the Gram matrix.

    Attributes:
        taught: ``||X dW_g^T||^2``, 0-dim.
        products: Matrix whose entries, summed over a pair of parts of the stack, give
            ``<X~ dW_i^T, X~ dW_j^T>``.
        with_teacher: Vector whose entries, summed over a part, give ``<X~ dW_i^T, X dW_g^T>``.
        with_target: The same with the target T_g in place of ``X dW_g^T``.
    """

    def __init__(self, task: TaskAtLayer, stacked: Stacked[int | None]) -> None:
        statistics = task.statistics
        both = stacked.delta
        self.slices = stacked.slices
        self.adapters = slice(stacked.slices[None].stop, None)
        self.taught = task.delta_energy()
        target = statistics.target_energy
        self.target_energy = self.taught if target is None else target
        self.products = (both.up.T @ both.up) * statistics.inputs.form(both.down)
        self.with_teacher = both.up.new_zeros(both.rank)
        if task.worn is not None:
            worn = task.worn.delta
            self.with_teacher = ((both.up.T @ worn.up) * (both.down @ statistics.cross)).sum(1)
        self.with_target = self.with_teacher
        if statistics.drift is not None:
            drift = (both.up.T * (both.down @ statistics.drift)).sum(1)
            self.with_target = self.with_teacher + drift

    def energy(self, part: slice) -> Tensor:
        """Return ``||X~ dW^T||_F^2`` of a part, 0-dim."""
        return self.products[part, part].sum().clamp_min(0)

    def residuals(self) -> Tensor:
        """Return ``||T_g - X~_g dW^T||_F``, with T_g the target, relative to `reference`: of the
        merge, of all adapters stacked, and of their average, (3,).
        """
        adapters = len(self.slices) - 1
        ways = ((self.slices[None], 1.0), (self.adapters, 1.0), (self.adapters, 1 / adapters))
        squares = [
            self.target_energy - 2 * c * self.with_target[part].sum() + c**2 * self.energy(part)
            for part, c in ways
        ]
        remaining = torch.stack(squares).clamp_min(0)
        reference = self.reference
        return torch.where(reference > 0, (remaining / reference).sqrt(), 0.0)

    @functools.cached_property
    def reference(self) -> Tensor:
        """The energy that figures are relative to, 0-dim: the energy of the teacher's delta, or of
        all adapters stacked where the teacher wears nothing.
        """
        stacked = self.energy(self.adapters)
        alone = [self.energy(part) for key, part in self.slices.items() if key is not None]
        # adapters that cancel leave nothing but rounding
        most = torch.stack(alone).sqrt().sum().square()
        stacked = torch.where(stacked > RELATIVE_ZERO * most, stacked, 0.0)
        return torch.where(self.taught > 0, self.taught, stacked)

    def gain(self) -> Tensor:
        """Return ``<X~ dW^T, X dW_g^T> / ||X dW_g^T||^2``, 0-dim; 0 where nothing is taught."""
        done = self.with_teacher[self.slices[None]].sum()
        return torch.where(self.taught > 0, done / self.taught, 0.0)

    def interference(self, k: int) -> Tensor:
        """Return ``stacked`` and ``merged`` of `records.Interference` for an adapter that the
        teacher does not wear, (2,).
        """
        part = self.slices[k]
        reference = self.reference
        alone = self.energy(part)
        stacked = torch.where(reference > 0, (alone / reference).sqrt(), 0.0)
        along = self.products[self.slices[None], part].sum() - self.with_teacher[part].sum()
        return torch.stack([stacked, torch.where(alone > 0, along / alone, 0.0) * stacked])
