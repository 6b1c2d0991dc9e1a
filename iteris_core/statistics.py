"""What one layer's solve needs to know about its inputs: second moments, streamed, never the inputs themselves.

For one task with teacher inputs X and student inputs X~, both (tokens, d_in), and teacher codes H = X down^T (tokens, R).
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


@dataclass
class TaskStatistics:
    """Streamed sums of one task at one layer, float64.

    Args:
        gram: X~^T X~, (d_in, d_in).
        cross: X~^T H, (d_in, R).
        codes: H^T H, (R, R).
        input_energy: ||X||_F^2, 0-dim.
        cross_gram: X~^T X, (d_in, d_in); only for the paper's ridge.
        output_energy: ||X (W0 + dW)^T||_F^2, 0-dim; only for the published code's balance.
        tokens: Number of tokens with a weight above 0.
    """

    gram: Tensor
    cross: Tensor
    codes: Tensor
    input_energy: Tensor
    cross_gram: Tensor | None = None
    output_energy: Tensor | None = None
    tokens: int = 0

    @classmethod
    def empty(
        cls, d_in: int, rank: int, device: torch.device, *, cross_gram: bool = False, output_energy: bool = False
    ) -> TaskStatistics:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            gram=zeros(d_in, d_in),
            cross=zeros(d_in, rank),
            codes=zeros(rank, rank),
            input_energy=zeros(),
            cross_gram=zeros(d_in, d_in) if cross_gram else None,
            output_energy=zeros() if output_energy else None,
        )

    def add(
        self,
        teacher: Tensor,
        student: Tensor,
        codes: Tensor,
        weights: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Add rows.

        Args:
            teacher: X, (tokens, d_in), in the precision of the products.
            student: X~, (tokens, d_in).
            codes: H, (tokens, R).
            weights: (tokens,) or None for 1 each.
            outputs: X (W0 + dW)^T, (tokens, d_out); where the balance asks for it.
        """
        self.tokens += teacher.shape[0]
        if weights is not None:
            self.tokens += int(torch.count_nonzero(weights)) - teacher.shape[0]
            root = weights.to(teacher).sqrt()[:, None]
            teacher, student, codes = teacher * root, student * root, codes * root
            outputs = None if outputs is None else outputs * root
        add_product(self.gram, student, student)
        add_product(self.cross, student, codes)
        add_product(self.codes, codes, codes)
        self.input_energy += teacher.square().sum(dtype=torch.float64).to(self.input_energy)
        if self.cross_gram is not None:
            add_product(self.cross_gram, student, teacher)
        if self.output_energy is not None and outputs is not None:
            self.output_energy += outputs.square().sum(dtype=torch.float64).to(self.output_energy)
