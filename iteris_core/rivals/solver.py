"""The solver of one layer by a rival's rule, with the cut to the requested rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from ..algebra.answer import Cut, LayerSolution, dense_answer, is_left_whole, thin_answer
from ..algebra.layer import LayerProblem
from ..algebra.system import System, factorise
from ..errors import SolveError
from .layer import Layer

# A rule with all its options filled in.
LayerRule = Callable[[Layer], LowRankDelta | Tensor]


@dataclass(frozen=True)
class RivalSolver:
    """Solves one layer, in the place of `algebra.solve.solve_layer`.

    Args:
        path: Path of the layer.
        reads_text: Whether its input belongs to the network's text stream.
        adapters: Number of adapters, with those that do not change this layer.
        rule: Rule that merges the layer.
        scale: Factor of the rule's answer.
        plain_cut: See `registry.Method`.
    """

    path: str
    reads_text: bool
    adapters: int
    rule: LayerRule
    scale: float
    plain_cut: bool

    def __call__(self, layer: LayerProblem) -> LayerSolution:
        """Merge the layer.

        Raises:
            SolveError: Inputs that are not finite, or a system of the rule that cannot be solved.
        """
        _check_inputs(layer)
        rank = _rank(layer)
        merged = self.rule(
            Layer(self.path, self.reads_text, layer.deltas, self.adapters, layer.tasks, rank)
        )
        lambdas = layer.lambdas()
        if isinstance(merged, LowRankDelta):
            scaled = merged.scaled(self.scale)
            if is_left_whole(scaled, layer.config, layer.rank):
                return LayerSolution(scaled, lambdas)
            cut = Cut(self._metric(layer, lambdas, scaled.down), lambdas, layer.config, layer.rank)
            return thin_answer(cut, cut.system.metric(scaled.down.T), scaled)
        dense = self.scale * merged
        cut = Cut(self._metric(layer, lambdas, dense), lambdas, layer.config, layer.rank)
        return dense_answer(cut, cut.system.metric(dense.T), layer.together.delta.rank)

    def _metric(self, layer: LayerProblem, lambdas: Tensor, answer: Tensor) -> System:
        """Return the metric in which the answer is cut."""
        if self.plain_cut:
            width = answer.shape[1]
            return System(answer.new_ones(width), torch.eye(width).to(answer))
        matrix = layer.normal_matrix(lambdas)
        return factorise(matrix, [answer], layer.inputs_by_name(), layer.config.alpha)


def _rank(layer: LayerProblem) -> int | None:
    """Return the rank that is requested of the answer; None: no number is. Before a size is shared
    out over the layers, all directions are to be seen.
    """
    if layer.config.size is not None:
        return layer.together.delta.rank
    return None if isinstance(layer.rank, str) else layer.rank


def _check_inputs(layer: LayerProblem) -> None:
    """Refuse inputs of which no report could be true, even if the rule does not use them."""
    if not layer.counted:
        raise SolveError(
            "no task has tokens that count here; give at least one of them token weights above 0"
        )
    for name, inputs in layer.inputs_by_name().items():
        if not torch.isfinite(inputs.size() + inputs.energy):
            raise SolveError(
                f"the inputs of task {name!r} hold NaN or infinite numbers; a method that adds "
                "too much makes a half precision overflow: run the model in bfloat16 or float32, "
                "or set a smaller scale"
            )
