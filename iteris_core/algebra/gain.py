"""Unit gain: no layer does less of a LoRA than the LoRA alone.

Ridge, preserve task and conflict all shrink an answer, layer upon layer. The answer is linear in
what the adapters teach, so each adapter's part can be scaled until the layer does as much of it, on
the adapter's own task, as the adapter would:

    dW^T = rest + sum_j c_j P_j up_j^T,   P_j = S^-1 D_j,   rest = S^-1 sum_g lam_g drift_g
    gain_k = <X~_k dW^T, X_k dW_k^T> / ||X_k dW_k^T||^2 = r_k + sum_j M_kj c_j
    M_kj = tr( up_k^T up_j P_j^T C_k ) / E_k,   r_k = tr( up_k^T rest^T C_k ) / E_k
    C_k = X~_k^T X_k down_k^T,   E_k = ||X_k dW_k^T||^2

c solves ``M c = 1 - r`` for the adapters that have a task of their own, and is bounded by 1 from
below and a setting from above. All of it comes from the sums that are there already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layer import LayerProblem, TaskAtLayer
from .system import System


def own_tasks(layer: LayerProblem) -> dict[int, TaskAtLayer]:
    """Return adapter index -> the first task whose teacher wears this adapter alone, of the tasks
    that count at this layer and whose teacher does anything there.
    """
    tasks: dict[int, TaskAtLayer] = {}
    for task in layer.counted:
        if len(task.mix) == 1 and task.worn is not None:
            tasks.setdefault(next(iter(task.mix)), task)
    return tasks


def gain_scales(
    layer: LayerProblem, system: System, half_thin: Tensor, half_drift: Tensor | None
) -> Tensor:
    """Return c_j for every column of ``[D_1 | ... | D_K]``, (R,): 1 where nothing is to be scaled.

    Args:
        layer: The layer; its setting `MergeConfig.unit_gain` bounds c.
        system: The factorised system, S = L L^T.
        half_thin: ``L^-1 [D_1 | ... | D_K]``, (d_in, R).
        half_drift: ``L^-1 sum_g lam_g drift_g``, (d_in, d_out); None with the delta target.
    """
    columns = half_thin.new_ones(half_thin.shape[1])
    tasks = own_tasks(layer)
    if not tasks:
        return columns
    rows = []
    right = []
    for number, task in enumerate(tasks.values()):
        parts, rest = _effects(layer, system, task, half_thin, half_drift)
        energy = task.delta_energy()
        own = torch.stack([parts[j] for j in tasks])
        others = [parts[j] for j in parts if j not in tasks]
        outside = rest + sum(others, start=torch.zeros_like(rest))
        alone = torch.zeros_like(own)
        alone[number] = 1.0
        does = energy > 0  # an adapter that does nothing here is left as it is
        safe = torch.where(does, energy, 1.0)
        rows.append(torch.where(does, own / safe, alone))
        right.append(torch.where(does, 1 - outside / safe, 1.0))
    scales = torch.linalg.pinv(torch.stack(rows)) @ torch.stack(right)
    scales = scales.clamp(1.0, layer.config.unit_gain)
    for k, scale in zip(tasks, scales, strict=True):
        columns[layer.together.slices[k]] = scale
    return columns


def _effects(
    layer: LayerProblem,
    system: System,
    task: TaskAtLayer,
    half_thin: Tensor,
    half_drift: Tensor | None,
) -> tuple[dict[int, Tensor], Tensor]:
    """Return ``<X~ dW_j*^T, X dW_g^T>`` of each adapter's part of the answer, by its index, and of
    the rest, 0-dim each.
    """
    assert task.worn is not None  # see `own_tasks`
    up = task.worn.delta.up
    seen = system.half(task.statistics.cross)
    parts = {}
    for j, delta in layer.deltas.items():
        codes = half_thin[:, layer.together.slices[j]].T @ seen
        parts[j] = (codes * (up.T @ delta.up).T).sum()
    rest = seen.new_zeros(())
    if half_drift is not None:
        rest = ((half_drift.T @ seen) * up).sum()
    return parts, rest
