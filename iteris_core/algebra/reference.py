"""The method on one page: IterIS (CVPR 2025, arXiv:2411.15231), Algorithm 1, written plainly.

    minimise over dW   sum_g lam_g ||T_g - X~_g dW^T||_F^2 + ridge
    T_g = X_g dW_g^T  (target "delta"),  or  X_g (W0 + dW_g)^T - X~_g W0^T  (target "full_output")
    lam_g = ||dW_g||_F^2 / ||X_g dW_g^T||_F^2

X_g are the inputs of a layer in a model that wears adapter g, X~_g its inputs in a model that wears
what has been merged so far; both (tokens, d_in). A weight is (d_out, d_in).

It copies the model with deltas in its weights, stores all inputs, uses dense matrices, and repeats
until the answer settles. Nothing of the package is used here. The package does the same with
factors, streamed sums and a single sweep, for mixes of adapters and weighted tokens too, and cuts
the answer to a rank. Its tests compare it with this page.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Deltas = Mapping[str, Tensor]  # path of a Linear -> delta of its weight


class TaskRows(NamedTuple):
    """One task at one layer: X_g, X~_g, dW_g and lam_g."""

    teacher: Tensor
    student: Tensor
    delta: Tensor
    weight: float | Tensor


def algorithm_1(
    model: nn.Module,
    forward: Callable[[nn.Module, Any], Any],
    adapters: Sequence[Deltas],
    samples: Sequence[Sequence[Any]],
    target: str = "delta",
    **ridges: Any,
) -> Iterator[dict[str, Tensor]]:
    """Yield the merged deltas after each solve, without end; the first solve uses ``X~ = X``.

    Args:
        forward: Function that runs a model on one sample.
        adapters: Dense deltas of each adapter; all change the same Linear layers.
        samples: Samples of each adapter's task.
        target: ``delta``, what the adapters add, or ``full_output``, the layer's whole output: the
            same equation for the whole weights ``W0 + dW_g``, less W0.
        ridges: Arguments of `normal_equations`.
    """
    paths = list(adapters[0])
    pairs = list(zip(adapters, samples, strict=True))
    teachers = [inputs_of(patched(model, own), forward, rows, paths) for own, rows in pairs]
    students = teachers
    weights = {path: model.get_parameter(f"{path}.weight").detach() for path in paths}
    while True:
        merged = {}
        for path in paths:
            base = weights[path] if target == "full_output" else torch.zeros_like(weights[path])
            tasks = [
                TaskRows(x[path], x_student[path], base + own[path], balance(x[path], own[path]))
                for x, x_student, own in zip(teachers, students, adapters, strict=True)
            ]
            merged[path] = solve(*normal_equations(tasks, **ridges)) - base
        yield merged
        students = [inputs_of(patched(model, merged), forward, rows, paths) for rows in samples]


def patched(model: nn.Module, deltas: Deltas) -> nn.Module:
    """Return a copy of a model with deltas added to its weights."""
    model = copy.deepcopy(model)
    for path, delta in deltas.items():
        weight: Any = model.get_submodule(path).weight
        weight.data += delta.reshape(weight.shape).to(weight)
    return model


@torch.no_grad()
def inputs_of(
    model: nn.Module,
    forward: Callable[[nn.Module, Any], Any],
    samples: Sequence[Any],
    paths: Sequence[str],
) -> dict[str, Tensor]:
    """Return the inputs of Linear layers, (tokens of all samples, d_in)."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    for path in paths:
        layer = model.get_submodule(path)
        layer.register_forward_pre_hook(lambda _, args, p=path: seen[p].append(args[0]))
    for sample in samples:
        forward(model, sample)
    return {path: torch.cat([x.flatten(0, -2) for x in parts]) for path, parts in seen.items()}


def balance(teacher: Tensor, delta: Tensor) -> Tensor:
    """Return lam_g (equation 8). For dW_g = 0, a task that keeps the base model as it is, return
    what lam_g is on average over all directions of dW_g: d_in / ||X_g||_F^2. The package puts it on
    the scale of the tasks that teach something, see `balance.balance_weights`.
    """
    if not delta.any():
        return teacher.shape[1] / teacher.square().sum()
    return delta.square().sum() / (teacher @ delta.T).square().sum()


def normal_equations(
    tasks: Sequence[TaskRows],
    *,
    alpha: float = 1e-4,
    alpha_cross: float | None = None,
    ridge: str = "consistent",
) -> tuple[Tensor, Tensor]:
    """Return S (d_in, d_in) and S dW^T (d_in, d_out) of one layer.

    Args:
        alpha: Ridge on ``X~^T X~``, relative to its Frobenius norm (official ``alpha_2``).
        alpha_cross: Ridge on ``X~^T X`` (official ``alpha_1``); None: the same.
        ridge: Norm that scales the second ridge: ``consistent``, the norm of ``X~^T X~``, as for
            the first, so that both belong to one objective; ``paper``, the norm of ``X~^T X``.
    """
    left: Any = 0
    right: Any = 0
    for x, x_student, delta, weight in tasks:
        gram = x_student.T @ x_student
        cross = x_student.T @ x
        size = gram.norm()
        cross_size = cross.norm() if ridge == "paper" else size
        gram.diagonal().add_(alpha * size)
        cross.diagonal().add_((alpha if alpha_cross is None else alpha_cross) * cross_size)
        left = left + weight * gram
        right = right + weight * (cross @ delta.T)
    return left, right


def solve(left: Tensor, right: Tensor) -> Tensor:
    """Return dW, (d_out, d_in), float64."""
    solution: Tensor = torch.linalg.solve(left.double(), right.double())
    return solution.T
