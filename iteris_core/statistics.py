"""What one layer's solve needs to know about its inputs: second moments, streamed, never the inputs themselves.

For one task: teacher inputs X and student inputs X~, (tokens, d_in); teacher codes H = X down^T, (tokens, R); and, for the
full-output target, the drift Y - Y~ of the base layer's outputs, (tokens, d_out).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens per product: short enough that float32 rounding stays near 1e-7 before the sum goes on in float64.
TOKENS_PER_PRODUCT = 2048


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which products of these activations are exact enough: float32, or float64 where needed.

    TF32, if the host has switched it on, keeps all digits of half-precision activations but not of float32 ones.
    """
    rounds_to_tf32 = x.is_cuda and x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return torch.float64 if x.dtype == torch.float64 or rounds_to_tf32 else torch.float32


def statistics_device(device: torch.device) -> torch.device:
    """Return where float64 sums of this device's activations are kept; MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a^T b`` to a float64 total, in short products of the inputs' own precision."""
    for start in range(0, a.shape[0], TOKENS_PER_PRODUCT):
        part = slice(start, start + TOKENS_PER_PRODUCT)
        total += (a[part].T @ b[part]).to(total)


def _energy(rows: Tensor) -> Tensor:
    return rows.square().sum(dtype=torch.float64)


@dataclass
class InputMoments:
    """Sums over one task's inputs, float64; layers that read the same tensor share them.

    Args:
        gram: X~^T X~, (d_in, d_in).
        energy: ||X||_F^2, 0-dim.
        cross_gram: X~^T X, (d_in, d_in); only for the paper's ridge.
        tokens: Number of tokens with a weight above 0.
    """

    gram: Tensor
    energy: Tensor
    cross_gram: Tensor | None = None
    tokens: int = 0

    @classmethod
    def empty(cls, d_in: int, device: torch.device, *, cross_gram: bool = False) -> InputMoments:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(d_in, d_in), zeros(), zeros(d_in, d_in) if cross_gram else None)

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add rows of X and X~, already multiplied by the roots of their token weights."""
        add_product(self.gram, student, student)
        self.energy += _energy(teacher).to(self.energy)
        if self.cross_gram is not None:
            add_product(self.cross_gram, student, teacher)


@dataclass
class TaskStatistics:
    """Sums of one task at one layer, float64.

    Args:
        inputs: See `InputMoments`.
        cross: X~^T H, (d_in, R).
        codes: H^T H, (R, R).
        drift: X~^T (Y - Y~), (d_in, d_out); only for the full-output target.
        target_energy: ||X dW^T + Y - Y~||_F^2, 0-dim; only for the full-output target.
        output_energy: ||X (W0 + dW)^T||_F^2, 0-dim; only for the published code's balance.
    """

    inputs: InputMoments
    cross: Tensor
    codes: Tensor
    drift: Tensor | None = None
    target_energy: Tensor | None = None
    output_energy: Tensor | None = None

    @classmethod
    def empty(
        cls, inputs: InputMoments, rank: int, *, drift_width: int | None = None, output_energy: bool = False
    ) -> TaskStatistics:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=inputs.gram.device)

        d_in = inputs.gram.shape[0]
        return cls(
            inputs=inputs,
            cross=zeros(d_in, rank),
            codes=zeros(rank, rank),
            drift=None if drift_width is None else zeros(d_in, drift_width),
            target_energy=None if drift_width is None else zeros(),
            output_energy=zeros() if output_energy else None,
        )

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
        add_product(self.cross, student, codes)
        add_product(self.codes, codes, codes)
        if self.drift is not None and drift is not None:
            add_product(self.drift, student, drift)
            self.target_energy += _energy(drift if added is None else drift + added).to(self.target_energy)
        if self.output_energy is not None and outputs is not None:
            self.output_energy += _energy(outputs).to(self.output_energy)
