"""What a rival method is to the merge: its rule for one layer, and what the rule needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..algebra.answer import LayerSolution, dense_answer, is_left_whole, thin_answer
from ..algebra.solve import LayerSolver, TaskAtLayer, balance_weight, inputs_by_name, normal_matrix
from ..algebra.system import System, factorise
from ..config import MergeConfig
from ..errors import SolveError
from ..tasks import Task
from .layer import Layer, Rule

Coefficients = Callable[[Sequence[Task], int, Callable[[Sequence[float]], float]], Sequence[float]]


@dataclass(frozen=True)
class Method:
    """A rival.

    Args:
        rule: Layer -> its merged delta; a dense one is cut to the sum of the adapters' ranks, or
            what was asked for.
        inputs: Whose inputs the layer's statistics are of: of the ``teacher``s (X~ = X), or of
            ``student``s that wear what was merged before. For rules that use no statistics it
            decides on what the residuals of the report are measured.
        coefficients: (tasks, number of adapters, error of the network's output with such
            coefficients) -> one per adapter.
        searches_coefficients: Whether those depend on the error.
        searches_scale: Whether the scale is searched if the user names none.
        only_text: Whether the rule is for layers that read text, and averages at others.
        plain_cut: Whether a cut to a lower rank is a plain SVD, and not made by its effect on the
            measured inputs.
    """

    rule: Rule
    inputs: Literal["teacher", "student"] = "student"
    coefficients: Coefficients | None = None
    searches_coefficients: bool = False
    searches_scale: bool = False
    only_text: bool = False
    plain_cut: bool = False

    def solver_of(
        self,
        path: str,
        reads_text: bool,
        adapters: int,
        coefficients: Sequence[float],
        scale: float,
    ) -> LayerSolver:
        """Return what solves one layer, for `Measurement.solve`."""

        def solve(
            deltas: dict[int, LowRankDelta],
            tasks: Sequence[TaskAtLayer],
            config: MergeConfig,
            rank: int | str,
            base: None,
        ) -> LayerSolution:
            _check_inputs(tasks)
            layer = Layer(path, reads_text, deltas, adapters, tasks, config.baseline, coefficients)
            merged = self.rule(layer)
            merged = merged.scaled(scale) if isinstance(merged, LowRankDelta) else scale * merged
            return _cut(merged, layer, config, rank, self.plain_cut)

        return solve


def _check_inputs(tasks: Sequence[TaskAtLayer]) -> None:
    """Refuse inputs of which no report could be true, whether or not the rule looks at them."""
    counted = [task for task in tasks if task.counts]
    if not counted:
        raise SolveError(
            "no task has tokens that count here; give at least one of them token weights above 0"
        )
    for task in counted:
        if not torch.isfinite(task.statistics.inputs.size() + task.statistics.inputs.energy):
            raise SolveError(
                f"the inputs of task {task.name!r} hold NaN or infinite numbers; a method that adds "
                "too much makes a half precision overflow: run the model in bfloat16 or float32, "
                "or set a smaller scale"
            )


def _cut(
    merged: LowRankDelta | Tensor, layer: Layer, config: MergeConfig, rank: int | str, plain: bool
) -> LayerSolution:
    """Cut a method's answer to the rank that was asked for, by what it does on the measured
    inputs.
    """
    lambdas = torch.stack([balance_weight(task, config.balance) for task in layer.tasks])
    if isinstance(merged, LowRankDelta):
        if is_left_whole(merged, config, rank):
            return LayerSolution(merged, lambdas)
        system = _metric(layer, lambdas, config, plain, merged.down)
        return thin_answer(system, system.metric(merged.down.T), merged, lambdas, config, rank)
    system = _metric(layer, lambdas, config, plain, merged)
    return dense_answer(system, system.metric(merged.T), layer.together.rank, lambdas, config, rank)


def _metric(
    layer: Layer, lambdas: Tensor, config: MergeConfig, plain: bool, like: Tensor
) -> System:
    if plain:
        return System(like.new_ones(like.shape[1]), torch.eye(like.shape[1]).to(like))
    return factorise(
        normal_matrix(layer.tasks, lambdas, config.alpha),
        [like],
        inputs_by_name(layer.tasks),
        config.alpha,
    )
