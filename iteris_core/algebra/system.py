"""A layer's linear system: a symmetric positive definite matrix, factorised once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import to_cpu
from ..errors import SolveError
from ..settings import label, value_label
from .moments import InputMoments


@dataclass(frozen=True)
class System:
    """S = L L^T, factorised after scaling to a unit diagonal: ``L = factor / scale``.

    Args:
        scale: (n,), float64.
        factor: (n, n), lower triangular, float64 or, of a coarse one, float32.
    """

    scale: Tensor
    factor: Tensor

    def solve_lower(self, right: Tensor) -> Tensor:
        """Return ``L^-1 right``, in the factor's precision."""
        scaled = (self.scale[:, None] * right).to(self.factor.dtype)
        half: Tensor = torch.linalg.solve_triangular(self.factor, scaled, upper=False)
        return half

    def solve_upper(self, right: Tensor) -> Tensor:
        """Return ``L^-T right``, float64."""
        right = right.to(self.factor.dtype)
        half: Tensor = torch.linalg.solve_triangular(self.factor.T, right, upper=True)
        return self.scale[:, None] * half

    def times_upper(self, right: Tensor) -> Tensor:
        """Return ``L^T right``, in the factor's precision."""
        return self.factor.T @ (right / self.scale[:, None]).to(self.factor.dtype)


class Check(NamedTuple):
    """Tells whether a factor is usable. Its numbers can be read together with others, since each
    reading waits for the device.

    Args:
        judge: Function of the numbers, on the CPU, that raises if the factor is not usable.
    """

    numbers: Sequence[Tensor]
    judge: Callable[[Sequence[Tensor]], None]


def factorise(
    matrix: Tensor, right_sides: Sequence[Tensor], inputs: Mapping[str, InputMoments], alpha: float
) -> System:
    """Return the Cholesky factor of a matrix, checked, see `factorise_unchecked`."""
    system, check = factorise_unchecked(matrix, right_sides, inputs, alpha)
    check.judge(to_cpu(*check.numbers))
    return system


def factorise_unchecked(
    matrix: Tensor, right_sides: Sequence[Tensor], inputs: Mapping[str, InputMoments], alpha: float
) -> tuple[System, Check]:
    """Return the Cholesky factor of a matrix scaled to a unit diagonal, and its check, which raises
    a SolveError with the cause if the factor is not usable.

    Args:
        matrix: Symmetric, (n, n), float64; overwritten, since a wide one is large.
        right_sides: Right sides of the system, checked to be finite.
        inputs: Task name -> the inputs that the matrix was made of, to explain a failure.
        alpha: Ridge, to explain a failure.
    """
    diagonal = matrix.diagonal().clone()
    scale = diagonal.rsqrt()
    factor, failed_at = cholesky(matrix.mul_(scale).mul_(scale[:, None]))
    # one number that is not finite makes a sum so
    sums = [side.sum() for side in right_sides]

    def judge(numbers: Sequence[Tensor]) -> None:
        failed_at, pivot, *sums = numbers
        # rounding lets a singular matrix through, with pivots of the size of that rounding: such a
        # factor holds no digits of the answer; this is false for one that is not finite, too
        is_regular = pivot**2 >= 1000 * len(matrix) * torch.finfo(matrix.dtype).eps
        if failed_at or not is_regular or not all(math.isfinite(part) for part in sums):
            raise SolveError(_why_unsolvable(diagonal, right_sides, inputs, int(failed_at), alpha))

    return System(scale, factor), Check([failed_at, factor.diagonal().min(), *sums], judge)


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower Cholesky factor of a matrix, and the number of the row where it stopped,
    0-dim; 0 where it did not.

    Args:
        matrix: Symmetric, (n, n), row by row; overwritten.
    """
    factor, failed_at = matrix.T, torch.zeros((), dtype=torch.int32, device=matrix.device)
    # in place, since LAPACK reads a matrix column by column
    torch.linalg.cholesky_ex(factor, out=(factor, failed_at))
    return factor, failed_at


def _why_unsolvable(
    diagonal: Tensor,
    right_sides: Sequence[Tensor],
    inputs: Mapping[str, InputMoments],
    failed_at: int,
    alpha: float,
) -> str:
    for name, moments in inputs.items():
        if not (torch.isfinite(moments.size) and torch.isfinite(moments.energy)):
            return (
                f"the inputs of task {name!r} hold NaN or infinite numbers, most likely an "
                "overflow of half precision in the layers before; run the model in bfloat16 or "
                "float32, or lower the strength of its adapter"
            )
        if not moments.energy > 0:
            return f"all inputs of task {name!r} are zero here; use other samples for it"
    # a positive semidefinite matrix has its largest number on the diagonal
    if not (torch.isfinite(diagonal).all() and diagonal.any()):
        return (
            "the tasks' weights cannot be held as numbers, since the adapters' changes are far too "
            "large; lower their strengths"
        )
    if not all(bool(torch.isfinite(part).all()) for part in right_sides):
        return (
            "the layer's outputs hold NaN or infinite numbers though its inputs do not, most "
            "likely an overflow of half precision in the layer itself; run the model in bfloat16 "
            f"or float32, or set {label('target')} to {value_label('target', 'delta')!r}"
        )
    tokens = sum(moments.tokens for moments in inputs.values())
    where = f" (Cholesky stopped at row {failed_at})" if failed_at else ""
    return (
        f"the Gram matrix ({len(diagonal)} x {len(diagonal)}) of {tokens} tokens is not positive "
        f"definite{where} with {label('alpha')} = {alpha:g}; set {label('alpha')} to 1e-6 or "
        "more, or use more samples"
    )
