"""What a rival method sees of one layer, and the algebra that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import LowRankDelta, stack
from ..algebra.solve import TaskAtLayer
from ..algebra.truncate import Spectrum, factored_spectrum
from ..config import BaselineOptions
from ..errors import SolveError
from ..network import Network

# Singular values below this share of the first are rounding: their directions mean nothing.
RELATIVE_ZERO = 1e-6
# The same for eigenvalues of a Gram matrix, which is summed up from products in float32.
GRAM_ZERO = 1e-6
TEXT_STREAM = "text"


@dataclass(frozen=True)
class Layer:
    """One target layer.

    Args:
        path: Of the module.
        reads_text: Whether its input belongs to the network's text stream.
        deltas: Adapter index -> delta, float64, on the statistics' device; only adapters that
            change this layer.
        adapters: How many adapters there are, with those that do not change this layer.
        tasks: Every task of the merge, with its statistics of this layer.
        options: What the user asked for.
        coefficients: One per adapter; only of methods that have some, see `methods.Method`.
    """

    path: str
    reads_text: bool
    deltas: Mapping[int, LowRankDelta]
    adapters: int
    tasks: Sequence[TaskAtLayer]
    options: BaselineOptions
    coefficients: Sequence[float] = ()

    @property
    def together(self) -> LowRankDelta:
        """All deltas stacked, with coefficient 1."""
        return stack(list(self.deltas.values()), [1.0] * len(self.deltas))

    @property
    def counted(self) -> list[TaskAtLayer]:
        """The tasks that have a say here."""
        return [task for task in self.tasks if task.counts]

    def columns(self) -> dict[int, slice]:
        """Return where each adapter's factors are in `together`."""
        start = 0
        found = {}
        for k, delta in self.deltas.items():
            found[k] = slice(start, start := start + delta.rank)
        return found

    def dense(self) -> Tensor:
        """Return the deltas as (adapters that change this layer, d_out, d_in)."""
        return torch.stack([delta.dense() for delta in self.deltas.values()])

    def wanted(self, tasks: Sequence[TaskAtLayer], grams: Sequence[Tensor]) -> Tensor:
        """Return ``sum_g G_g [m_g1 down_1^T | ... ]``, (d_in, R): times ``together.up^T`` it is
        ``sum_g G_g dW_g^T``.

        Args:
            tasks: Some of `tasks`.
            grams: A (d_in, d_in) matrix for each of them.
        """
        total = torch.zeros_like(self.together.down.T)
        columns = self.columns()
        for task, gram in zip(tasks, grams, strict=True):
            for k, share in task.mix.items():
                total[:, columns[k]] += share * (gram @ self.deltas[k].down.T)
        return total


def layers_that_read_text(network: Network) -> frozenset[str]:
    """Return the paths of cross-attention's keys and values: layers of the text stream in a network
    that has others, too.
    """
    streams = {
        path: network.stream(path)
        for path, module in network.modules.items()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    text = frozenset(path for path, stream in streams.items() if stream == TEXT_STREAM)
    return text if len(text) < len(streams) else frozenset()


Rule = Callable[[Layer], "LowRankDelta | Tensor"]


def solve_symmetric(matrix: Tensor, right: Tensor, advice: str) -> Tensor:
    """Return ``matrix^-1 right`` for a positive definite (n, n) matrix; features that are always 0
    get the answer 0.

    Raises:
        SolveError: The matrix is singular; ends with the advice.
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
    """Return the singular value decomposition of a delta, without those values that are rounding.

    Here ``left`` is of the weight's inputs, (d_in, n), and ``right`` of its outputs, (d_out, n).
    """
    whole = factored_spectrum(delta.down.T, delta.up)
    count = max(1, int((whole.values > RELATIVE_ZERO * whole.values[0]).sum()))
    return Spectrum(
        whole.left[:, :count], whole.values[:count], whole.right[:, :count], whole.total
    )
