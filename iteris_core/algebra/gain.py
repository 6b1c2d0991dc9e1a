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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters import sums_of_parts
from ..devices import to_cpu
from .layer import LayerProblem
from .system import Check

# Slope of ``||M c - b||^2 / 2`` that counts as 0; gains are about 1.
_EXACT = 1e-13
_CHECKED = Check((), lambda _: None)


@dataclass(frozen=True)
class RightSides:
    """The right sides of a layer's system, side by side, or their image under a linear map.

    Args:
        whole: ``[thin | drift | seen]``, (d_in, columns).
        ranks: Columns of `thin`.
        outputs: Columns of `drift`, d_out; 0 with the delta target.
    """

    whole: Tensor
    ranks: int
    outputs: int

    @property
    def thin(self) -> Tensor:
        """``[D_1 | ... | D_K]``, (d_in, R)."""
        return self.whole[:, : self.ranks]

    @property
    def drift(self) -> Tensor | None:
        """``sum_g lam_g drift_g``, (d_in, d_out); None with the delta target."""
        if not self.outputs:
            return None
        return self.whole[:, self.ranks : self.ranks + self.outputs]

    @property
    def seen(self) -> Tensor:
        """C_k of all `LayerProblem.own_tasks`, side by side, (d_in, n)."""
        return self.whole[:, self.ranks + self.outputs :]

    def mapped(self, linear: Callable[[Tensor], Tensor]) -> RightSides:
        """Return their image under a linear map."""
        return replace(self, whole=linear(self.whole))


@dataclass(frozen=True)
class LinearAnswer:
    """A layer's answer as a linear function of c: ``half(c) = (thin * c) up^T + drift``.

    Args:
        layer: The layer; its setting `MergeConfig.unit_gain` bounds c.
        sides: The right sides under ``L^-1``, with S = L L^T; or under ``V^T``, with ``V^T S V =
            1``, for the best answer in the span of V.
        check: Check of the factor, read together with c, to wait for the device only once.
    """

    layer: LayerProblem
    sides: RightSides
    check: Check = _CHECKED

    def within(self, basis: Tensor) -> LinearAnswer:
        """Return the answer in the span of orthonormal columns (d_in, r), in their coordinates."""
        return LinearAnswer(self.layer, self.sides.mapped(lambda side: basis.T @ side))

    def scales(self) -> Tensor:
        """Return c for every column of `thin`, (R,), 1 where nothing is to be scaled.

        Raises:
            SolveError: The factor is not usable.
            TooCoarseError: It is not exact enough, see `coarse`.
        """
        layer = self.layer
        tasks = layer.own_tasks
        columns = torch.ones(self.sides.ranks, dtype=torch.float64)
        most = layer.config.largest_gain
        if not tasks or most == 1:
            self._read()
            return columns.to(self.sides.whole)
        parts, rest = self._effects()
        energy = layer.taught[list(tasks.values())]
        is_active = energy > 0  # an adapter that does nothing here is left as it is
        places = {k: place for place, k in enumerate(layer.deltas)}
        own = parts[:, [places[k] for k in tasks]]
        unscaled = parts.sum(1) - own[:, is_active].sum(1) + rest
        matrix = torch.where(is_active[:, None] & is_active, own / energy[:, None], 0.0)
        right = torch.where(is_active, (energy - unscaled) / energy, 0.0)
        if math.isfinite((matrix.sum() + right.sum()).item()):  # else the solver names the cause
            scales = bounded_solution(matrix.tolist(), right.tolist(), most)
            for k, scale in zip(tasks, scales, strict=True):
                columns[layer.together.slices[k]] = scale
        return columns.to(self.sides.whole)

    def _read(self, *numbers: Tensor) -> list[Tensor]:
        """Return tensors on the CPU, and raise where the check does."""
        found = to_cpu(*self.check.numbers, *numbers)
        count = len(self.check.numbers)
        self.check.judge(found[:count])
        return found[count:]

    def half(self) -> Tensor:
        """Return the answer at its gain, (rows of `thin`, d_out)."""
        scaled = self.sides.thin * self.scales()
        up = self.layer.together.delta.up.to(scaled.dtype)
        drift = self.sides.drift
        return scaled @ up.T if drift is None else torch.addmm(drift, scaled, up.T)

    def _effects(self) -> tuple[Tensor, Tensor]:
        """Return ``<X~ dW_j*^T, X dW_g^T>`` of each adapter's part of the answer, (own tasks,
        adapters), and of the rest, (own tasks,), on the CPU.
        """
        layer = self.layer
        seen = self.sides.seen
        tasks = layer.own_tasks
        ranks = [layer.deltas[k].rank for k in tasks]
        codes = (seen.T @ self.sides.thin) * layer.own_products
        parts = sums_of_parts(sums_of_parts(codes, layer.ranks, 1), ranks, 0)
        drift = self.sides.drift
        rest = [] if drift is None else [((drift.T @ seen) * layer.own_up).sum(0)]
        parts, *rest = (part.double() for part in self._read(parts, *rest))
        shares = parts.new_tensor([layer.tasks[g].mix[k] for k, g in tasks.items()])
        of_rest = sums_of_parts(rest[0], ranks, 0) if rest else torch.zeros_like(shares)
        return shares[:, None] * parts, shares * of_rest


def bounded_solution(
    matrix: Sequence[Sequence[float]], right: Sequence[float], most: float
) -> list[float]:
    """Return the c between 1 and `most` that minimises ``||M c - b||``, by an active set (Stark and
    Parker 1995, BVLS).

    If there are several, it is one as near to 1 as possible; an unknown without influence stays 1.

    Args:
        matrix: M, n rows of n numbers.
        right: b, n numbers.
        most: Upper bound, above 1.
    """
    from scipy.optimize import lsq_linear  # slow to import

    more = [b - sum(row) for row, b in zip(matrix, right, strict=True)]
    found = lsq_linear(matrix, more, (0.0, most - 1), "bvls", _EXACT, max_iter=100 * len(right))
    return [1.0 + scale for scale in found.x.tolist()]
