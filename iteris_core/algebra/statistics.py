"""What one layer's solve needs to know about its inputs: second moments, summed up row by row, in
float64; sums as large as a layer have the precision that `devices.sums_dtype` says.

Of one task: teacher inputs X and student inputs X~, (tokens, d_in); teacher codes H = X down^T,
(tokens, R); and, for the full-output target, the drift Y - Y~ of the base layer's outputs, (tokens,
d_out).

Inputs are kept in one of two forms with one interface: as `Sums`, or, where there are fewer tokens
than the layer is wide, as `KeptRows`, which are smaller.

With the base weight W0, ``Y - Y~ = (X - X~) W0^T``, so that all sums of a layer follow from sums
over its inputs and their differences, X - X~. Where layers share an input, or have many outputs,
that is less work, and a layer needs no rows of its own: `TaskSums` are measured at the layer,
`DerivedSums` follow from its input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..devices import moved, sums_dtype
from .products import TOKENS_PER_PRODUCT, add_product, add_square, mirror, product_of_rows

# Takes rows, (tokens, any) each, that are ready for their products.
UseRows = Callable[..., None]


class Gathered:
    """Rows that wait for others, until there are so many that a product is worth a pass over its
    float64 sum: that is as large as a weight, and a chunk often has few rows.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []  # each with room for all that can wait
        self._tokens = 0

    def add(self, use: UseRows, *rows: Tensor) -> None:
        """Add rows, (tokens, any) each."""
        tokens = len(rows[0])
        if [room.dtype for room in self._waiting] != [part.dtype for part in rows]:
            self.finish(use)
        elif self._tokens + tokens > TOKENS_PER_PRODUCT:
            self._use_waiting(use)
        if tokens >= TOKENS_PER_PRODUCT:
            use(*rows)
            return
        if not self._waiting:
            self._waiting = [part.new_empty(TOKENS_PER_PRODUCT, part.shape[1]) for part in rows]
        # copies: the forward call goes on with these tensors, or lets them wait elsewhere
        for room, part in zip(self._waiting, rows, strict=True):
            room[self._tokens : self._tokens + tokens] = part
        self._tokens += tokens

    def finish(self, use: UseRows) -> None:
        """Use the rows that still wait, and let their room go."""
        self._use_waiting(use)
        self._waiting = []

    def _use_waiting(self, use: UseRows) -> None:
        if self._tokens:
            use(*(room[: self._tokens] for room in self._waiting))
        self._tokens = 0


def _energy(rows: Tensor, device: torch.device) -> Tensor:
    """Return the sum of squares, float64 on a device."""
    exact = torch.promote_types(rows.dtype, torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=exact)
    norms = moved(norms, device, torch.float64)
    return torch.dot(norms, norms)


def _norm(matrix: Tensor) -> Tensor:
    """Return a matrix's Frobenius norm, float64, 0-dim."""
    norm: Tensor = torch.linalg.vector_norm(matrix, dtype=torch.float64)
    return norm


class InputMoments(ABC):
    """Second moments of one task's inputs; layers that read the same tensor share them.

    Lifecycle: `add` for each chunk, then `finish`; only then are they asked for.

    Args:
        d_in: Width of the inputs.

    Attributes:
        tokens: Number of tokens that were added.
        energy: ||X||_F^2, 0-dim.
    """

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.d_in = d_in
        self.device = device
        self.tokens = 0
        self.energy = self.zeros()

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def large_zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=sums_dtype(self.device), device=self.device)

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add rows of X and X~, (tokens, d_in), each times the root of its token's weight."""
        self.tokens += student.shape[0]
        self.energy += _energy(teacher, self.device)
        self._add_products(teacher, student)

    @abstractmethod
    def _add_products(self, teacher: Tensor, student: Tensor) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Complete the moments, when all rows have been added."""

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """X~^T X~, (d_in, d_in), in the precision of large sums; not to be modified."""

    @property
    @abstractmethod
    def size(self) -> Tensor:
        """``||X~^T X~||_F``, 0-dim."""

    @property
    def cross_size(self) -> Tensor:
        """``||X~^T X||_F``, 0-dim, where it was measured; else `size`."""
        return self.size

    @abstractmethod
    def form(self, down: Tensor) -> Tensor:
        """Return ``down X~^T X~ down^T``, (r, r), for a down of (r, d_in), in its precision."""

    @abstractmethod
    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        """Add ``X~^T H`` of rows of both to a total, (d_in, R)."""

    @abstractmethod
    def kept_bytes(self) -> int:
        """Return the memory that the moments take once all rows have been added."""

    def bytes(self) -> int:
        """Return the memory that they take at most."""
        return self.kept_bytes()


def difference(teacher: Tensor, student: Tensor) -> Tensor:
    """Return ``X - X~``, as exact as the student's rows."""
    return teacher.to(student.dtype) - student


def _waiting_bytes(width: int) -> int:
    """Return the memory that gathered rows of a width take at most."""
    return 8 * TOKENS_PER_PRODUCT * width


class Changes:
    """Sums over how a teacher's inputs differ from its student's.

    Args:
        zeros: Makes a sum of a shape.

    Attributes:
        cross: X~^T (X - X~), (d_in, d_in).
        gram: (X - X~)^T (X - X~), (d_in, d_in), by half until `Sums` completes it.
    """

    def __init__(self, d_in: int, zeros: Callable[..., Tensor]) -> None:
        self.cross = zeros(d_in, d_in)
        self.gram = zeros(d_in, d_in)


class Sums(InputMoments):
    """Moments as sums: any number of tokens in the room of a (d_in, d_in) matrix.

    Args:
        cross_gram: Whether X~^T X is summed up, too: for the paper's ridge.
        changes: Whether `Changes` are summed up, too: for `DerivedSums`.
    """

    def __init__(
        self, d_in: int, device: torch.device, *, cross_gram: bool = False, changes: bool = False
    ) -> None:
        super().__init__(d_in, device)
        self._gram = self.large_zeros(d_in, d_in)  # by half until `finish`
        self._cross_gram = self.large_zeros(d_in, d_in) if cross_gram else None
        self.changes = Changes(d_in, self.large_zeros) if changes else None
        self._rows = Gathered()

    def _add_products(self, teacher: Tensor, student: Tensor) -> None:
        others = [] if self._cross_gram is None else [teacher]
        if self.changes is not None:
            others = [difference(teacher, student)]
        self._rows.add(self._use, student, *others)

    def _use(self, student: Tensor, *other: Tensor) -> None:
        add_square(self._gram, student)
        if self._cross_gram is not None:
            add_product(self._cross_gram, student, *other)
        if self.changes is not None:
            add_product(self.changes.cross, student, *other)
            add_square(self.changes.gram, *other)

    def totals(self) -> list[Tensor]:
        """Return the sums themselves, to be added to before `finish`."""
        self._rows.finish(self._use)
        totals = [self.energy, self._gram]
        if self._cross_gram is not None:
            totals.append(self._cross_gram)
        if self.changes is not None:
            totals += [self.changes.cross, self.changes.gram]
        return totals

    def finish(self) -> None:
        self._rows.finish(self._use)
        mirror(self._gram)
        if self.changes is not None:
            mirror(self.changes.gram)

    @property
    def gram(self) -> Tensor:
        return self._gram

    @cached_property
    def size(self) -> Tensor:
        return _norm(self._gram)

    @property
    def cross_size(self) -> Tensor:
        return self.size if self._cross_gram is None else _norm(self._cross_gram)

    def form(self, down: Tensor) -> Tensor:
        return down @ self._gram.to(down.dtype) @ down.T

    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        add_product(total, student, codes)

    def kept_bytes(self) -> int:
        return self._sums * self._gram.nbytes

    def bytes(self) -> int:
        return self.kept_bytes() + min(self._sums, 2) * _waiting_bytes(self.d_in)

    @property
    def _sums(self) -> int:
        return 1 + (self._cross_gram is not None) + 2 * (self.changes is not None)


class KeptRows(InputMoments):
    """Moments as the rows themselves, in the precision of their products; sums are made when they
    are asked for.

    Args:
        capacity: Number of rows that will come at most.
    """

    def __init__(self, d_in: int, device: torch.device, *, capacity: int) -> None:
        super().__init__(d_in, device)
        self.capacity = capacity
        # the least precision of products, so that other tasks' rows next to none keep theirs
        self._rows = torch.zeros(0, d_in, dtype=torch.float32, device=device)
        self._added: list[Tensor] = []
        self._gram: Tensor | None = None

    def _add_products(self, teacher: Tensor, student: Tensor) -> None:
        # a copy: the forward call goes on with the tensor that is added, or lets it wait elsewhere
        self._added.append(student.to(device=self.device, copy=True))

    def finish(self) -> None:
        if self._added:
            self._rows = torch.cat(self._added)
        self._added = []

    @property
    def gram(self) -> Tensor:
        if self._gram is None:
            total = self.large_zeros(self.d_in, self.d_in)
            add_square(total, self._rows)
            self._gram = mirror(total)
        return self._gram

    @property
    def size(self) -> Tensor:
        return _norm(product_of_rows(self._rows) if self._gram is None else self._gram)

    def form(self, down: Tensor) -> Tensor:
        codes = self._rows.to(down.dtype) @ down.T
        return codes.T @ codes

    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        # there are few rows, so that the best precision costs little
        add_product(total, *(moved(part, self.device, torch.float64) for part in (student, codes)))

    def kept_bytes(self) -> int:
        made = 0 if self._gram is None else self._gram.nbytes
        return made + 8 * self.capacity * self.d_in


class TaskSums:
    """Sums over one task's rows at a layer.

    Lifecycle: as of `InputMoments`.

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
            target: X dW^T + Y - Y~, (tokens, d_out), with `drift`; None: the same as that.
            outputs: X (W0 + dW)^T, (tokens, d_out), where the balance asks for it.
        """
        self._rows.add(self._use, student, codes, *([] if drift is None else [drift]))
        if self.target_energy is not None and drift is not None:
            self.target_energy += _energy(drift if target is None else target, self.inputs.device)
        if self.output_energy is not None and outputs is not None:
            self.output_energy += _energy(outputs, self.inputs.device)

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
        return self.codes.nbytes + self.cross.nbytes + drift + _waiting_bytes(waiting)


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
    """Sums as `TaskSums`, of the full-output target, that follow from the inputs of a layer.

    Args:
        inputs: Moments with their `Changes`.
        worn: What the teacher wears, float64; None: nothing.
        base: The layer's own weight.
    """

    inputs: Sums
    worn: LowRankDelta | None
    base: BaseWeight

    @property
    def changes(self) -> Changes:
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
    """Return the parts of ``<X~ dW^T, Y - Y~>`` of each rank of a delta, (tasks, r), of a layer's
    tasks, whose drift was measured: of all in the same way, in the delta's precision.
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
