"""The paper's procedure, as the published code runs it, to measure the sweep against: IterIS,
arXiv:2411.15231, Algorithm 1.

Inputs of all layers stored, deltas added into the weights and taken out again, per layer products
in the inputs' own precision and a dense solve in float64 with d_out right-hand sides, and the whole
again, ten times. The formula is the one of `iteris_core.algebra.reference`; the reference itself runs
sample by sample, on copies of the model, which would not be a fair race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core.algebra.reference import TaskRows, balance, normal_equations, solve
from iteris_core.rows.wearing import layer_hooks

from .common import in_weights

Deltas = dict[str, Tensor]


def algorithm_1(
    modules: Mapping[str, nn.Module],
    forward: Callable[[Sequence[Any]], Any],
    adapters: Sequence[Mapping[str, Tensor]],
    samples: Sequence[Sequence[Any]],
    *,
    alpha: float = 1e-4,
    ridge: str = "paper",
    rows_per_call: int = 16,
) -> Iterator[Deltas]:
    """Yield the merged deltas (d_out, d_in), float64, after each solve; the first uses ``X~ = X``,
    and there is no last one.

    Args:
        modules: Module path -> Linear, or 1x1 Conv2d.
        forward: Function that runs the model on a list of samples.
        adapters: Module path -> dense delta; all of them change the same layers.
        samples: Samples of each adapter's task.
        alpha: Ridge, relative to a Frobenius norm.
        ridge: ``paper`` scales the cross ridge by ``||X^T X~||``, ``consistent`` by ``||X~^T
            X~||``.
        rows_per_call: Samples in one forward call.
    """
    paths = list(adapters[0])
    layers = {path: modules[path] for path in paths}
    teachers = []
    for adapter, rows in zip(adapters, samples, strict=True):
        with in_weights(layers, adapter):
            teachers.append(_inputs(layers, forward, rows, rows_per_call))
    students = teachers
    while True:
        merged = {}
        for path in paths:
            tasks = [
                TaskRows(x[path], x_student[path], own[path], balance(x[path], own[path]))
                for x, x_student, own in zip(teachers, students, adapters, strict=True)
            ]
            merged[path] = solve(*normal_equations(tasks, alpha=alpha, ridge=ridge))
        yield merged
        del students  # as the published code does: the old activations go before the new ones come
        with in_weights(layers, merged):
            students = [_inputs(layers, forward, rows, rows_per_call) for rows in samples]


@torch.no_grad()
def _inputs(
    layers: Mapping[str, nn.Module],
    forward: Callable[[Sequence[Any]], Any],
    rows: Sequence[Any],
    rows_per_call: int,
) -> Deltas:
    """Return every layer's input, (tokens, d_in)."""
    seen: dict[str, list[Tensor]] = {path: [] for path in layers}

    def keep(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.movedim(1, -1) if isinstance(module, nn.Conv2d) else x
        seen[path].append(x.reshape(-1, x.shape[-1]).clone())
        return y

    with layer_hooks(dict(layers), keep):
        for start in range(0, len(rows), rows_per_call):
            forward(rows[start : start + rows_per_call])
    return {path: torch.cat(seen.pop(path)) for path in layers}
