"""Unit gain: no layer does less of a LoRA than the LoRA alone.

Ridge, preserve task and conflict all shrink an answer, layer upon layer. The answer is linear in
what the adapters teach, so each adapter's part can be scaled until the layer does as much of it, on
the adapter's own task, as the adapter would:

    dW^T = rest + sum_j c_j P_j up_j^T,   P_j = S^-1 D_j,   rest = S^-1 sum_g lam_g drift_g
    gain_k = <X~_k dW^T, X_k dW_k^T> / ||X_k dW_k^T||^2 = r_k + sum_j M_kj c_j
    M_kj = tr( up_k^T up_j P_j^T C_k ) / E_k,   r_k = tr( up_k^T rest^T C_k ) / E_k
    C_k = X~_k^T X_k down_k^T,   E_k = ||X_k dW_k^T||^2

c minimises ``||r + M c - 1||`` over the adapters that have a task of their own, between 1 and a
setting. All of it comes from the sums that are there already.

A cut to a lower rank keeps a subspace of the inputs, and loses some of the gain. Within that
subspace the answer is as linear as before. So the factors are found once more there, and the gain
belongs to the saved delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .layer import LayerProblem, TaskAtLayer

# Slope of ``||M c - b||^2 / 2`` that counts as 0; gains are about 1.
_EXACT = 1e-13


def own_tasks(layer: LayerProblem) -> dict[int, TaskAtLayer]:
    """Return adapter index -> the first task whose teacher wears this adapter alone, of the tasks
    that count at this layer.
    """
    tasks: dict[int, TaskAtLayer] = {}
    for task in layer.counted:
        if len(task.mix) == 1 and task.worn is not None:
            tasks.setdefault(next(iter(task.mix)), task)
    return tasks


@dataclass(frozen=True)
class LinearAnswer:
    """A layer's answer as a linear function of c: ``half(c) = (thin * c) up^T + drift``.

    Args:
        layer: The layer; its setting `MergeConfig.unit_gain` bounds c.
        halved: Right side (d_in, n) -> ``L^-1`` of it, with S = L L^T; or its coordinates ``V^T``
            of it, with ``V^T S V = 1``, for the best answer that V spans.
        thin: That of ``[D_1 | ... | D_K]``, (d_in, R).
        drift: That of ``sum_g lam_g drift_g``, (d_in, d_out); None with the delta target.
    """

    layer: LayerProblem
    halved: Callable[[Tensor], Tensor]
    thin: Tensor
    drift: Tensor | None

    @cached_property
    def taught(self) -> dict[int, tuple[TaskAtLayer, Tensor]]:
        """Adapter index -> its own task, and ``L^-1 C_k``, (d_in, rank of the task's mix)."""
        return {
            k: (task, self.halved(task.statistics.cross))
            for k, task in own_tasks(self.layer).items()
        }

    def scales(self, basis: Tensor | None = None) -> Tensor:
        """Return c for every column of `thin`, (R,), 1 where nothing is to be scaled.

        Args:
            basis: Orthonormal columns (d_in, r) that the answer is cut to; None: it is not cut.
        """
        columns = self.layer.together.delta.up.new_ones(self.thin.shape[1])
        most = self.layer.config.largest_gain
        if not self.taught or most == 1:
            return columns
        thin = _within(basis, self.thin)
        drift = None if self.drift is None else _within(basis, self.drift)
        rows = []
        acts = []
        for task, seen in self.taught.values():
            parts, rest = self._effects(task, _within(basis, seen), thin, drift)
            energy = task.delta_energy()
            does = energy > 0
            safe = torch.where(does, energy, 1.0)
            others = sum((parts[j] for j in parts if j not in self.taught), start=rest)
            rows.append(torch.stack([*(parts[j] for j in self.taught), safe - others]) / safe)
            acts.append(does)
        # an adapter that does nothing here is left as it is
        acting = torch.stack(acts)
        equations = torch.where(acting[:, None], torch.stack(rows), 0.0)
        equations[:, :-1] = torch.where(acting, equations[:, :-1], 0.0)
        numbers = equations.tolist()
        if not all(math.isfinite(number) for row in numbers for number in row):
            return columns  # an overflow: the solver of the layer names the cause
        found = bounded_solution([row[:-1] for row in numbers], [row[-1] for row in numbers], most)
        for k, scale in zip(self.taught, found, strict=True):
            columns[self.layer.together.slices[k]] = scale
        return columns

    def half(self) -> Tensor:
        """Return ``L^T dW^T`` of the uncut answer at its gain, (d_in, d_out)."""
        return self._half(self.scales(), self.thin, self.drift)

    def cut_to(self, basis: Tensor) -> Tensor:
        """Return ``basis^T L^T dW^T`` of the answer that is cut to a basis, at its gain there, (r,
        d_out).
        """
        drift = None if self.drift is None else _within(basis, self.drift)
        return self._half(self.scales(basis), _within(basis, self.thin), drift)

    def _half(self, scales: Tensor, thin: Tensor, drift: Tensor | None) -> Tensor:
        scaled = thin * scales.to(thin.dtype)
        up = self.layer.together.delta.up.to(thin.dtype)
        return scaled @ up.T if drift is None else torch.addmm(drift, scaled, up.T)

    def _effects(
        self, task: TaskAtLayer, seen: Tensor, thin: Tensor, drift: Tensor | None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Return ``<X~ dW_j*^T, X dW_g^T>`` of each adapter's part of the answer, by its index, and
        of the rest, 0-dim each.
        """
        assert task.worn is not None  # see `own_tasks`
        up = task.worn.delta.up
        parts = {}
        for j, delta in self.layer.deltas.items():
            codes = thin[:, self.layer.together.slices[j]].T @ seen
            parts[j] = (codes * (up.T @ delta.up).T).sum()
        rest = seen.new_zeros(()) if drift is None else ((drift.T @ seen) * up).sum()
        return parts, rest


def _within(basis: Tensor | None, columns: Tensor) -> Tensor:
    """Return the coordinates of columns in an orthonormal basis; None: as they are."""
    return columns if basis is None else basis.T @ columns


def bounded_solution(
    matrix: Sequence[Sequence[float]], right: Sequence[float], most: float
) -> list[float]:
    """Return the c between 1 and `most` that minimises ``||M c - b||``, by an active set (Stark and
    Parker 1995, BVLS).

    Of several, it is one that is as near to 1 as it can be; an unknown without influence stays 1.

    Args:
        matrix: M, n rows of n numbers.
        right: b, n numbers.
        most: Upper bound, above 1.
    """
    from scipy.optimize import lsq_linear  # slow to import

    more = [b - sum(row) for row, b in zip(matrix, right, strict=True)]
    found = lsq_linear(matrix, more, (0.0, most - 1), "bvls", _EXACT, max_iter=100 * len(right))
    return [1.0 + scale for scale in found.x.tolist()]
