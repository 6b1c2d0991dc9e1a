"""What one layer's solve needs to know: sums over each task's rows, in float64; sums as large as
the layer are in the precision of `devices.sums_dtype`.

A task has teacher inputs X and student inputs X~, (tokens, d_in); teacher codes H = X down^T,
(tokens, R); and, for the full-output target, the drift Y - Y~ of the base layer's outputs, (tokens,
d_out).

With the base weight W0, ``Y - Y~ = (X - X~) W0^T``, so that all sums of a layer follow from sums
over its inputs and their differences, X - X~. Where layers share an input, or have many outputs,
that is less work, and a layer needs no rows of its own: `TaskSums` are measured at the layer,
`DerivedSums` follow from the moments of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .moments import Gathered, InputChanges, InputMoments, Sums, energy_of, waiting_bytes
from .products import add_product, add_square, mirror


class TaskSums:
    """Sums over one task's rows at a layer.

    Lifecycle: see `InputMoments`.

    Args:
        inputs: Moments of its inputs.
        rank: R, the rank of what the teacher wears.
        drift_width: d_out, for the full-output target; None: no drift is measured.
        output_energy: Whether the published code's balance needs the outputs' energy.

    Attributes:
        codes: H^T H, (R, R).
        cross: X~^T H, (d_in, R).
        drift: X~^T (Y - Y~), (d_in, d_out); None where the target does not ask for it.
        target_energy: ||X dW^T + Y - Y~||_F^2, 0-dim; None likewise.
        output_energy: ||X (W0 + dW)^T||_F^2, 0-dim; None where the balance does not ask for it.
    """

    def __init__(
        self,
        inputs: InputMoments,
        rank: int,
        *,
        drift_width: int | None = None,
        output_energy: bool = False,
    ) -> None:
        self.inputs = inputs
        self.codes = inputs.zeros(rank, rank)
        self.cross = inputs.zeros(inputs.d_in, rank)
        self.drift = None
        if drift_width is not None:
            self.drift = inputs.large_zeros(inputs.d_in, drift_width)
        self.target_energy = None if drift_width is None else inputs.zeros()
        self.output_energy = inputs.zeros() if output_energy else None
        self._rows = Gathered()

    def add(
        self,
        student: Tensor,
        codes: Tensor,
        *,
        drift: Tensor | None = None,
        target: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Add rows, each times the root of its token's weight.

        Args:
            student: X~, (tokens, d_in), in the precision of the products.
            codes: H, (tokens, R).
            drift: Y - Y~, (tokens, d_out), where the target asks for it.
            target: X dW^T + Y - Y~, (tokens, d_out), with `drift`.
            outputs: X (W0 + dW)^T, (tokens, d_out), where the balance asks for it.
        """
        self._rows.add(self._use, student, codes, *([] if drift is None else [drift]))
        if self.target_energy is not None and target is not None:
            self.target_energy += energy_of(target, self.inputs.device)
        if self.output_energy is not None and outputs is not None:
            self.output_energy += energy_of(outputs, self.inputs.device)

    def _use(self, student: Tensor, codes: Tensor, *drift: Tensor) -> None:
        add_product(self.codes, codes, codes)
        self.inputs.add_cross(self.cross, student, codes)
        if self.drift is not None:
            add_product(self.drift, student, *drift)

    def finish(self) -> None:
        """Use the rows that still wait for others."""
        self._rows.finish(self._use)

    def totals(self) -> list[Tensor]:
        """Return the sums themselves, to be added to, without the inputs' sums."""
        self.finish()
        totals = [self.drift, self.target_energy, self.output_energy]
        return [self.codes, self.cross, *(total for total in totals if total is not None)]

    def bytes(self) -> int:
        """Return the memory that the sums take, without the inputs' sums."""
        drift = 0 if self.drift is None else self.drift.nbytes
        waiting = sum(self.drift.shape) if self.drift is not None else self.inputs.d_in
        return self.codes.nbytes + self.cross.nbytes + drift + waiting_bytes(waiting)


class BaseWeight:
    """A layer's own weight W0, for the sums that follow from its input.

    Args:
        weight: (d_out, d_in), in the precision of the rows' products, on the sums' device.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @cached_property
    def gram(self) -> Tensor:
        """W0^T W0, (d_in, d_in)."""
        total = torch.zeros_like(self.weight[:0].T @ self.weight[:0])
        add_square(total, self.weight)
        return mirror(total)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return float64 ``inputs W0^T``, which is rounded as the rows' own products are."""
        return (inputs.to(self.weight.dtype) @ self.weight.T).double()

    def under(self, up: Tensor) -> Tensor:
        """Return float64 ``up^T W0``, (r, d_in), rounded in the same way."""
        return (up.T.to(self.weight.dtype) @ self.weight).double()


@dataclass(frozen=True)
class DerivedSums:
    """The sums of `TaskSums` for the full-output target, derived from the inputs of a layer.

    Args:
        inputs: Moments with their `InputChanges`.
        worn: What the teacher wears, float64; None: nothing.
        base: The layer's own weight.
    """

    inputs: Sums
    worn: LowRankDelta | None
    base: BaseWeight

    @property
    def changes(self) -> InputChanges:
        """The sums over differences."""
        found = self.inputs.changes
        assert found is not None
        return found

    @cached_property
    def codes(self) -> Tensor:
        if self.worn is None:
            return self.inputs.zeros(0, 0)
        return self.worn.down @ (self.cross + self._codes_with_changes.T)

    @cached_property
    def cross(self) -> Tensor:
        if self.worn is None:
            return self.inputs.zeros(self.inputs.d_in, 0)
        down = self.worn.down.T
        return torch.addmm(self.inputs.gram.double() @ down, self.changes.cross.double(), down)

    @cached_property
    def _codes_with_changes(self) -> Tensor:
        """H^T (X - X~), (R, d_in)."""
        assert self.worn is not None
        down = self.worn.down
        return torch.addmm(down @ self.changes.cross.double(), down, self.changes.gram.double())

    @cached_property
    def target_energy(self) -> Tensor:
        energy = (self.base.gram * self.changes.gram).sum(dtype=torch.float64)
        if self.worn is None:
            return energy
        up = self.worn.up
        taught = _inner(up.T @ up, self.codes)
        return torch.add(
            energy + taught, _inner(self.base.under(up), self._codes_with_changes), alpha=2
        )


TaskStatistics = TaskSums | DerivedSums


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return ``<a, b>``, 0-dim."""
    return torch.dot(a.flatten(), b.flatten())


def add_drifts(total: Tensor, parts: Sequence[tuple[float, TaskStatistics]]) -> None:
    """Add ``sum_g lam_g X~_g^T (Y_g - Y~_g)`` to a total, (d_in, d_out), of tasks whose drift was
    measured.

    Args:
        parts: lambda of each task that counts, with its sums.
    """
    changes = None
    for lam, of_task in parts:
        if isinstance(of_task, DerivedSums):
            cross = of_task.changes.cross
            changes = cross * lam if changes is None else changes.add_(cross, alpha=lam)
            base = of_task.base
        else:
            total.add_(_measured_drift(of_task), alpha=lam)
    if changes is not None:
        total.add_(base.outputs(changes))


def along_drifts(parts: Sequence[TaskStatistics], delta: LowRankDelta) -> Tensor:
    """Return the part of each rank of a delta in ``<X~ dW^T, Y - Y~>``, (tasks, r), in the delta's
    precision. The tasks are those of one layer, whose drift was measured in the same way.
    """
    base = next((part.base for part in parts if isinstance(part, DerivedSums)), None)
    up = delta.up.T if base is None else base.under(delta.up)
    drifts = [
        part.changes.cross if isinstance(part, DerivedSums) else _measured_drift(part)
        for part in parts
    ]
    found = torch.stack([delta.down @ drift.to(delta.down.dtype) for drift in drifts])
    return (up * found).sum(2)


def _measured_drift(part: TaskStatistics) -> Tensor:
    assert isinstance(part, TaskSums) and part.drift is not None
    return part.drift
