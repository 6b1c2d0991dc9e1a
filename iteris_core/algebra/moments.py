"""Second moments of what a layer reads, summed up row by row.

Teacher inputs are X, student inputs X~, (tokens, d_in). They are kept in one of two forms with one
interface: as `Sums`, or, where there are fewer tokens than the layer is wide, as `KeptRows`, which
are smaller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..devices import moved, sums_dtype
from .products import TOKENS_PER_PRODUCT, add_product, add_square, mirror, product_of_rows

# Takes rows, (tokens, any) each, that are ready for their products.
UseRows = Callable[..., None]


class Gathered:
    """Collects rows until there are enough to be worth a pass over the float64 sum of products,
    which is as large as a weight; a chunk often has few rows.
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
        """Use the rows that still wait, and free their memory."""
        self._use_waiting(use)
        self._waiting = []

    def _use_waiting(self, use: UseRows) -> None:
        if self._tokens:
            use(*(room[: self._tokens] for room in self._waiting))
        self._tokens = 0


def energy_of(rows: Tensor, device: torch.device) -> Tensor:
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
        self.energy += energy_of(teacher, self.device)
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
    def bytes(self) -> int:
        """Return the memory that they take at most."""


def difference(teacher: Tensor, student: Tensor) -> Tensor:
    """Return ``X - X~``, as exact as the student's rows."""
    return teacher.to(student.dtype) - student


def waiting_bytes(width: int) -> int:
    """Return the memory that gathered rows of a width take at most."""
    return 8 * TOKENS_PER_PRODUCT * width


@dataclass(frozen=True)
class InputChanges:
    """Sums over how a teacher's inputs differ from its student's.

    Args:
        cross: X~^T (X - X~), (d_in, d_in).
        gram: (X - X~)^T (X - X~), (d_in, d_in); half of it until `Sums` completes it.
    """

    cross: Tensor
    gram: Tensor


class Sums(InputMoments):
    """Moments as sums: any number of tokens in the room of a (d_in, d_in) matrix.

    Args:
        cross_gram: Whether X~^T X is summed up, too: for the paper's ridge.
        changes: Whether `InputChanges` are summed up, too: for `DerivedSums`.
    """

    def __init__(
        self, d_in: int, device: torch.device, *, cross_gram: bool = False, changes: bool = False
    ) -> None:
        super().__init__(d_in, device)
        self._gram = self.large_zeros(d_in, d_in)  # half of it until `finish`
        self._cross_gram = self.large_zeros(d_in, d_in) if cross_gram else None
        self.changes = None
        if changes:
            self.changes = InputChanges(self.large_zeros(d_in, d_in), self.large_zeros(d_in, d_in))
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

    def bytes(self) -> int:
        return self._sums * self._gram.nbytes + min(self._sums, 2) * waiting_bytes(self.d_in)

    @property
    def _sums(self) -> int:
        return 1 + (self._cross_gram is not None) + 2 * (self.changes is not None)


class KeptRows(InputMoments):
    """Moments as the rows themselves, in the precision of their products; sums are made on demand.

    Args:
        capacity: Largest number of rows that may come.
    """

    def __init__(self, d_in: int, device: torch.device, *, capacity: int) -> None:
        super().__init__(d_in, device)
        self.capacity = capacity
        # the lowest precision of products: an empty tensor must not raise that of other tasks' rows
        self._rows = torch.zeros(0, d_in, dtype=torch.float32, device=device)
        self._added: list[Tensor] = []

    def _add_products(self, teacher: Tensor, student: Tensor) -> None:
        # a copy: the forward call goes on with the tensor that is added, or lets it wait elsewhere
        self._added.append(student.to(device=self.device, copy=True))

    def finish(self) -> None:
        if self._added:
            self._rows = torch.cat(self._added)
        self._added = []

    @property
    def gram(self) -> Tensor:
        """The Gram matrix, made anew, since it may be many times as large as the rows."""
        total = self.large_zeros(self.d_in, self.d_in)
        add_square(total, self._rows)
        return mirror(total)

    @cached_property
    def size(self) -> Tensor:
        return _norm(product_of_rows(self._rows))

    def form(self, down: Tensor) -> Tensor:
        codes = self._rows.to(down.dtype) @ down.T
        return codes.T @ codes

    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        # there are few rows, so that the best precision costs little
        add_product(total, *(moved(part, self.device, torch.float64) for part in (student, codes)))

    def bytes(self) -> int:
        return 8 * self.capacity * self.d_in
