"""What one layer's solve needs to know about its inputs: second moments, summed up row by row.

Of one task: teacher inputs X and student inputs X~, (tokens, d_in); teacher codes H = X down^T,
(tokens, R); and, for the full-output target, the drift Y - Y~ of the base layer's outputs, (tokens,
d_out).

Inputs are kept in one of two forms with one interface: as `Sums`, or, where there are fewer tokens
than the layer is wide, as `KeptRows`, which are smaller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..devices import moved
from ..processes import Processes

# Tokens per product: short enough that float32 rounding stays near 1e-7 before the sum goes on in
# float64.
TOKENS_PER_PRODUCT = 2048
# Columns of a symmetric product that a CPU computes together: wide enough for a fast product,
# narrow enough to skip much. A GPU is faster with whole products.
BLOCK = 256
# Entries of a product that a CPU makes at once: few enough that caches hold them until they are
# added.
_ENTRIES_AT_ONCE = 1 << 20


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a^T b`` to a float64 total, from short products in the precision of a and b."""
    step = max(BLOCK, _ENTRIES_AT_ONCE // max(1, b.shape[1]))
    if a.device.type != "cpu":
        step = max(1, a.shape[1])
    for start in range(0, a.shape[0], TOKENS_PER_PRODUCT):
        part = slice(start, start + TOKENS_PER_PRODUCT)
        for first in range(0, a.shape[1], step):
            some = slice(first, first + step)
            total[some] += moved(a[part, some].T @ b[part], total.device, total.dtype)


def add_square(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the blocks on and above the diagonal of a float64 total; `mirror`
    fills in the rest.

    Blocks are `BLOCK` columns wide. With many of them that is half the work of the whole product.
    """
    if rows.device.type != "cpu":
        add_product(total, rows, rows)
        return
    for start in range(0, rows.shape[1], BLOCK):
        add_product(
            total[start : start + BLOCK, start:], rows[:, start : start + BLOCK], rows[:, start:]
        )


def mirror(total: Tensor) -> Tensor:
    """Complete, in place, a symmetric matrix that `add_square` has filled by half."""
    for start in range(0, len(total), BLOCK):
        total[start + BLOCK :, start : start + BLOCK] = total[
            start : start + BLOCK, start + BLOCK :
        ].T
    return total


def product_of_rows(rows: Tensor) -> Tensor:
    """Return ``Z Z^T``, (rows, rows), float64 from short products of the rows' own precision."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    add_square(total, rows.T)
    return mirror(total)


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
        if self._tokens + tokens > TOKENS_PER_PRODUCT:
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
    norms = moved(torch.linalg.vector_norm(rows, dim=1), device, torch.float64)
    return norms.square().sum()


class InputMoments(ABC):
    """Second moments of one task's inputs, float64; layers that read the same tensor share them.

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

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add rows of X and X~, (tokens, d_in), each times the root of its token's weight."""
        self.tokens += student.shape[0]
        self.energy += _energy(teacher, self.device)
        self._add_products(teacher, student)

    @abstractmethod
    def _add_products(self, teacher: Tensor, student: Tensor) -> None: ...

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """X~^T X~, (d_in, d_in); not to be modified."""

    @abstractmethod
    def size(self) -> Tensor:
        """Return ``||X~^T X~||_F``, 0-dim."""

    def cross_size(self) -> Tensor:
        """Return ``||X~^T X||_F``, 0-dim, where it was measured; else `size`."""
        return self.size()

    @abstractmethod
    def form(self, down: Tensor) -> Tensor:
        """Return ``down X~^T X~ down^T``, (r, r), for a down of (r, d_in)."""

    @abstractmethod
    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        """Add ``X~^T H`` of rows of both to a total, (d_in, R)."""

    @abstractmethod
    def bytes(self) -> int:
        """Return the memory that the moments take."""


def add_up_moments(
    moments: Sequence[InputMoments],
    others: Sequence[Tensor],
    processes: Processes,
    *,
    counts: bool,
) -> None:
    """Add moments that are sums, and other sums, up over several processes, in place.

    Args:
        counts: Whether this process's sums count.
    """
    sums = [part for part in moments if isinstance(part, Sums)]
    assert len(sums) == len(moments)  # only a process that is alone keeps rows
    tokens = [torch.tensor(float(part.tokens), dtype=torch.float64) for part in sums]
    totals = [*tokens, *(total for part in sums for total in part.totals()), *others]
    if not counts:
        for total in totals:
            total.zero_()
    processes.add_up(totals)
    for part, count in zip(sums, tokens, strict=True):
        part.tokens = int(count)


def _waiting_bytes(width: int) -> int:
    """Return the memory that gathered rows of a width take at most."""
    return 8 * TOKENS_PER_PRODUCT * width


class Sums(InputMoments):
    """Moments as sums: any number of tokens in the room of a (d_in, d_in) matrix.

    Args:
        cross_gram: Whether X~^T X is summed up, too: for the paper's ridge.
    """

    def __init__(self, d_in: int, device: torch.device, *, cross_gram: bool = False) -> None:
        super().__init__(d_in, device)
        self._gram = self.zeros(d_in, d_in)
        self._is_whole = True  # or only filled in on and above its diagonal
        self._size: Tensor | None = None
        self._cross_gram = self.zeros(d_in, d_in) if cross_gram else None
        self._rows = Gathered()

    def _add_products(self, teacher: Tensor, student: Tensor) -> None:
        self._rows.add(self._use, *([student] if self._cross_gram is None else [student, teacher]))

    def _use(self, student: Tensor, *teacher: Tensor) -> None:
        add_square(self._gram, student)
        self._is_whole = False
        self._size = None
        if self._cross_gram is not None:
            add_product(self._cross_gram, student, *teacher)

    def totals(self) -> list[Tensor]:
        """Return the sums themselves, to be added to."""
        self._rows.finish(self._use)
        self._is_whole = False
        self._size = None
        totals = [self.energy, self._gram]
        return totals if self._cross_gram is None else [*totals, self._cross_gram]

    @property
    def gram(self) -> Tensor:
        self._rows.finish(self._use)
        if not self._is_whole:
            mirror(self._gram)
            self._is_whole = True
        return self._gram

    def size(self) -> Tensor:
        gram = self.gram  # which forgets the size where rows still waited
        if self._size is None:
            self._size = gram.norm()
        return self._size

    def cross_size(self) -> Tensor:
        self._rows.finish(self._use)
        return self.size() if self._cross_gram is None else self._cross_gram.norm()

    def form(self, down: Tensor) -> Tensor:
        return down @ self.gram @ down.T

    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        add_product(total, student, codes)

    def bytes(self) -> int:
        count = 1 if self._cross_gram is None else 2
        return count * (8 * self._gram.numel() + _waiting_bytes(self.d_in))


class KeptRows(InputMoments):
    """Moments as the rows themselves, in the precision of their products; sums are made when they
    are asked for.

    Args:
        capacity: Number of rows that will come at most.
    """

    def __init__(self, d_in: int, device: torch.device, *, capacity: int) -> None:
        super().__init__(d_in, device)
        self.capacity = capacity
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None

    def _add_products(self, teacher: Tensor, student: Tensor) -> None:
        # a copy: the forward call goes on with the tensor that is added, or lets it wait elsewhere
        self._rows.append(student.to(device=self.device, copy=True))

    def rows(self) -> Tensor:
        """X~, (tokens, d_in)."""
        if not self._rows:
            # the least precision of products, so that the rows of other tasks next to it keep
            # theirs
            return torch.zeros(0, self.d_in, dtype=torch.float32, device=self.device)
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows)]
        return self._rows[0]

    @property
    def gram(self) -> Tensor:
        if self._gram is None:
            total = self.zeros(self.d_in, self.d_in)
            add_square(total, self.rows())
            self._gram = mirror(total)
        return self._gram

    def size(self) -> Tensor:
        gram = product_of_rows(self.rows()) if self._gram is None else self._gram
        size: Tensor = gram.norm()
        return size

    def form(self, down: Tensor) -> Tensor:
        if self._gram is not None:
            return down @ self._gram @ down.T
        codes = self.rows().to(down.dtype) @ down.T
        return codes.T @ codes

    def add_cross(self, total: Tensor, student: Tensor, codes: Tensor) -> None:
        # there are few rows, so that the best precision costs little
        add_product(total, *(moved(part, self.device, torch.float64) for part in (student, codes)))

    def bytes(self) -> int:
        made = 0 if self._gram is None else self._gram.numel()
        return 8 * (made + self.capacity * self.d_in)


class TaskStatistics:
    """Sums of one task at one layer, float64.

    Args:
        rank: R, the rank of what the teacher wears.
        drift_width: d_out, for the full-output target; None: no drift is measured.
        output_energy: Whether the published code's balance needs the outputs' energy.

    Attributes:
        codes: H^T H, (R, R).
        target_energy: ||X dW^T + Y - Y~||_F^2, 0-dim, or None.
        output_energy: ||X (W0 + dW)^T||_F^2, 0-dim, or None.
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
        self._cross = inputs.zeros(inputs.d_in, rank)
        self._drift = None if drift_width is None else inputs.zeros(inputs.d_in, drift_width)
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
        add_product(self.codes, codes, codes)
        self._rows.add(self._use, student, codes, *([] if drift is None else [drift]))
        if self.target_energy is not None and drift is not None:
            self.target_energy += _energy(drift if target is None else target, self.inputs.device)
        if self.output_energy is not None and outputs is not None:
            self.output_energy += _energy(outputs, self.inputs.device)

    def _use(self, student: Tensor, codes: Tensor, *drift: Tensor) -> None:
        self.inputs.add_cross(self._cross, student, codes)
        if self._drift is not None:
            add_product(self._drift, student, *drift)

    def totals(self) -> list[Tensor]:
        """Return the sums themselves, to be added to, without the inputs' sums."""
        totals = [self.codes, self.drift, self.target_energy, self.output_energy]
        return [self.cross, *(total for total in totals if total is not None)]

    @property
    def cross(self) -> Tensor:
        """X~^T H, (d_in, R)."""
        self._rows.finish(self._use)
        return self._cross

    @property
    def drift(self) -> Tensor | None:
        """X~^T (Y - Y~), (d_in, d_out); None where the target does not ask for it."""
        self._rows.finish(self._use)
        return self._drift

    def bytes(self) -> int:
        """Return the memory that the sums take, without the inputs' sums."""
        drift = 0 if self._drift is None else self._drift.numel()
        waiting = sum(self._drift.shape) if self._drift is not None else self.inputs.d_in
        sums = self.codes.numel() + self._cross.numel() + drift
        return 8 * sums + _waiting_bytes(waiting)
