"""One layer as a rival's rule sees it, and the algebra that several rules share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..algebra.balance import TaskAtLayer
from ..algebra.layer import LayerTasks
from ..algebra.truncate import Spectrum, factored_spectrum
from ..errors import SolveError
from ..svd import numerical_rank


@dataclass(frozen=True)
class Layer(LayerTasks):
    """One target layer.

    Args:
        reads_text: Whether its input belongs to the network's text stream.
        adapters: Number of adapters, with the ones that do not change this layer.
    """

    reads_text: bool
    adapters: int

    def dense(self) -> Tensor:
        """Return the deltas as (adapters that change this layer, d_out, d_in)."""
        return torch.stack([delta.dense() for delta in self.deltas.values()])

    def taught(self, tasks: Sequence[TaskAtLayer], grams: Sequence[Tensor]) -> Tensor:
        """Return ``sum_g G_g [m_g1 down_1^T | ... ]``, (d_in, R): times
        ``together.delta.up^T`` it is ``sum_g G_g dW_g^T``.

        Args:
            grams: G_g of each of them, (d_in, d_in).
        """
        result = torch.zeros_like(self.together.delta.down.T)
        for task, gram in zip(tasks, grams, strict=True):
            for k, share in task.mix.items():
                result[:, self.together.slices[k]] += share * (gram @ self.deltas[k].down.T)
        return result


def summed(parts: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def solve_symmetric(matrix: Tensor, right: Tensor, advice: str) -> Tensor:
    """Return ``matrix^-1 right`` for a positive definite (n, n) matrix; features that are always 0
    get the answer 0.

    Raises:
        SolveError: A singular matrix; the message ends with the advice.
    """
    diagonal = matrix.diagonal()
    dead = diagonal <= 0
    scale = torch.where(dead, torch.ones_like(diagonal), diagonal).rsqrt()
    scaled = matrix * scale[:, None] * scale
    scaled.diagonal().add_(dead.to(matrix.dtype))
    factor, failed_at = torch.linalg.cholesky_ex(scaled)
    if bool(failed_at != 0) or not bool(torch.isfinite(factor).all()):
        raise SolveError(
            f"the {len(matrix)} x {len(matrix)} matrix of the inputs is not positive definite; "
            f"{advice}"
        )
    return scale[:, None] * torch.cholesky_solve(scale[:, None] * right, factor)


def singular_triplets(delta: LowRankDelta) -> Spectrum:
    """Return the singular value decomposition of a delta, without values that are rounding.

    Here ``left`` is of the weight's inputs, (d_in, n), and ``right`` of its outputs, (d_out, n).
    """
    whole = factored_spectrum(delta.down.T, delta.up)
    count = numerical_rank(whole.values)
    return Spectrum(
        whole.left[:, :count], whole.values[:count], whole.right[:, :count], whole.total
    )
