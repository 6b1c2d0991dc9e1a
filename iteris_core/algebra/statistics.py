"""What one layer's solve needs to know about its inputs: second moments, streamed, never the inputs
themselves.

For one task: teacher inputs X and student inputs X~, (tokens, d_in); teacher codes H = X down^T,
(tokens, R); and, for the full-output target, the drift Y - Y~ of the base layer's outputs, (tokens,
d_out).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import moved

# Tokens per product: short enough that float32 rounding stays near 1e-7 before the sum goes on in
# float64.
TOKENS_PER_PRODUCT = 2048
# Columns of a symmetric product that are computed together: wide enough for a fast product, narrow
# enough to skip much.
BLOCK = 256


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which products on x's device are exact enough: float32, or float64
    where that means TF32.
    """
    return (
        torch.float64
        if x.dtype == torch.float64 or (x.is_cuda and _rounds_to_tf32())
        else torch.float32
    )


def _rounds_to_tf32() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except (
        RuntimeError
    ):  # set through torch's newer, per-backend switches, which this question does not cover
        return True


def statistics_device(device: torch.device) -> torch.device:
    """Return where float64 sums of this device's activations are kept: there, or on the CPU if it
    has no float64.
    """
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a^T b`` to a float64 total, in short products of the inputs' own precision."""
    for start in range(0, a.shape[0], TOKENS_PER_PRODUCT):
        part = slice(start, start + TOKENS_PER_PRODUCT)
        total += moved(a[part].T @ b[part], total.device, total.dtype)


def add_square(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the blocks on and above the diagonal of a float64 total; `mirror`
    fills in the rest.

    Blocks are `BLOCK` columns wide. With many of them that is half the work of the whole product.
    """
    for start in range(0, rows.shape[1], BLOCK):
        add_product(
            total[start : start + BLOCK, start:], rows[:, start : start + BLOCK], rows[:, start:]
        )


def mirror(total: Tensor) -> Tensor:
    """Return the whole of a symmetric matrix of which `add_square` made a half; in place."""
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


def joint_product(parts: Sequence[InputMoments]) -> Tensor:
    """Return ``Z Z^T`` of several tasks' kept rows, one below the other; layers that share an input
    share it, so do not write.

    The first task's moments keep it, and are gone with the input.
    """
    first = parts[0]
    if first.joint is None or first.joint[0] != tuple(map(id, parts)):
        first.joint = (
            tuple(map(id, parts)),
            product_of_rows(torch.cat([part.student_rows() for part in parts])),
        )
    return first.joint[1]


def _energy(rows: Tensor, device: torch.device) -> Tensor:
    """Return the sum of squares, float64 on a device."""
    squares = rows.square()
    same = rows.device.type == device.type
    return squares.sum(dtype=torch.float64) if same else moved(squares.sum(), device, torch.float64)


class InputMoments:
    """Sums over one task's inputs, float64; layers that read the same tensor share them.

    With fewer tokens than the layer is wide, the rows themselves are smaller than their sums, and
    are kept instead.

    Args:
        d_in: Width of the inputs.
        device: Where sums are kept.
        cross_gram: Whether X~^T X is needed: for the paper's ridge.
        keep_rows: How many tokens to keep as rows, see above; 0: keep sums. Not with `cross_gram`.
    """

    def __init__(
        self, d_in: int, device: torch.device, *, cross_gram: bool = False, keep_rows: int = 0
    ) -> None:
        self.d_in = d_in
        self.device = device
        self.tokens = 0
        self.keep_rows = keep_rows
        self.energy = self.zeros()
        self.rows: list[Tensor] | None = [] if keep_rows else None
        self.cross_gram = self.zeros(d_in, d_in) if cross_gram else None
        self.joint: tuple[tuple[int, ...], Tensor] | None = None  # see `joint_product`
        self._gram = None if keep_rows else self.zeros(d_in, d_in)
        self._mirrored = (
            True  # whether the Gram matrix is whole, not only filled in above its diagonal
        )

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add rows of X and X~, (tokens, d_in), already multiplied by the roots of their token
        weights.
        """
        if self.rows is None:
            add_square(self._gram, student)
            self._mirrored = False
        else:
            self.rows.append(student.to(device=self.device))
        self.energy += _energy(teacher, self.device)
        if self.cross_gram is not None:
            add_product(self.cross_gram, student, teacher)

    @property
    def gram(self) -> Tensor:
        """X~^T X~, (d_in, d_in)."""
        if self._gram is None:
            self._gram = self.zeros(self.d_in, self.d_in)
            add_square(self._gram, self.student_rows())
            self._mirrored = False
        if not self._mirrored:
            mirror(self._gram)
            self._mirrored = True
        return self._gram

    def student_rows(self) -> Tensor:
        """X~, (tokens, d_in), in the precision of the products; only where rows are kept."""
        if len(self.rows) != 1:
            self.rows = [torch.cat(self.rows) if self.rows else self.zeros(0, self.d_in)]
        return self.rows[0]

    def size(self) -> Tensor:
        """Return ``||X~^T X~||_F``, 0-dim."""
        return (
            product_of_rows(self.student_rows()).norm() if self._gram is None else self.gram.norm()
        )

    def form(self, down: Tensor) -> Tensor:
        """Return ``down X~^T X~ down^T``, (r, r), for a down of (r, d_in)."""
        if self._gram is None:
            codes = self.student_rows().to(down.dtype) @ down.T
            return codes.T @ codes
        return down @ self.gram @ down.T

    def bytes(self) -> int:
        """Return the memory that the sums take."""
        sums = sum(
            8 * matrix.numel() for matrix in (self._gram, self.cross_gram) if matrix is not None
        )
        return sums + 8 * self.keep_rows * self.d_in


class TaskStatistics:
    """Sums of one task at one layer, float64.

    Args:
        inputs: See `InputMoments`.
        rank: R, of what the teacher wears.
        drift_width: d_out, for the full-output target; None: no drift is measured.
        output_energy: Whether the published code's balance needs the outputs' energy.

    Attributes:
        codes: H^T H, (R, R).
        drift: X~^T (Y - Y~), (d_in, d_out), or None.
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
        self.code_rows: list[Tensor] | None = None if inputs.rows is None else []
        self._cross = inputs.zeros(inputs.d_in, rank) if inputs.rows is None else None
        self.drift = None if drift_width is None else inputs.zeros(inputs.d_in, drift_width)
        self.target_energy = None if drift_width is None else inputs.zeros()
        self.output_energy = inputs.zeros() if output_energy else None

    def add(
        self,
        student: Tensor,
        codes: Tensor,
        *,
        drift: Tensor | None = None,
        added: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Add rows, already multiplied by the roots of their token weights.

        Args:
            student: X~, (tokens, d_in), in the precision of the products.
            codes: H, (tokens, R).
            drift: Y - Y~, (tokens, d_out); where the target asks for it.
            added: X dW^T, (tokens, d_out), with `drift`; None: zero.
            outputs: X (W0 + dW)^T, (tokens, d_out); where the balance asks for it.
        """
        if self.code_rows is None:
            add_product(self._cross, student, codes)
        else:
            self.code_rows.append(codes.to(device=self.codes.device))
        add_product(self.codes, codes, codes)
        if self.drift is not None and drift is not None:
            add_product(self.drift, student, drift)
            self.target_energy += _energy(
                drift if added is None else drift + added, self.inputs.device
            )
        if self.output_energy is not None and outputs is not None:
            self.output_energy += _energy(outputs, self.inputs.device)

    @property
    def cross(self) -> Tensor:
        """X~^T H, (d_in, R)."""
        if self._cross is None:
            return self.inputs.student_rows().to(self.codes.dtype).T @ self.all_codes()
        return self._cross

    def all_codes(self) -> Tensor:
        """H, (tokens, R); only where rows are kept."""
        return torch.cat([self.inputs.zeros(0, self.codes.shape[0]), *self.code_rows])

    def bytes(self) -> int:
        """Return the memory that the sums take, without those of the inputs."""
        return sum(
            8 * matrix.numel()
            for matrix in (self._cross, self.codes, self.drift)
            if matrix is not None
        )
