"""A whole merge by a rival, after the search of its free scale or coefficients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..algebra.answer import Cut, LayerSolution, dense_answer, is_left_whole, thin_answer
from ..algebra.layer import LayerProblem, LayerSolver
from ..algebra.system import factorise
from ..engines.common import check_problem
from ..engines.iterate import iterate
from ..engines.problem import EngineResult, Problem
from ..engines.sweep import sweep
from ..errors import SolveError
from ..layers import layer_shapes
from ..network import TEXT_STREAM, Network
from ..progress import Progress
from ..report.records import Note
from .layer import Layer
from .registry import METHODS, rule_options
from .search import OutputError, best_coefficients, best_scale

# A rule with all its options filled in.
LayerRule = Callable[[Layer], LowRankDelta | Tensor]
_SEARCHED = "which gave the smallest output error on the calibration samples"


def solve_by_rule(
    layer: LayerProblem,
    *,
    path: str,
    reads_text: bool,
    adapters: int,
    rule: LayerRule,
    scale: float,
) -> LayerSolution:
    """Solve one layer, in the place of `algebra.solve.solve_layer`.

    Args:
        reads_text: Whether its input belongs to the network's text stream.
        adapters: Number of adapters, with the ones that do not change this layer.

    Raises:
        SolveError: Inputs that are not finite, or a system of the rule that cannot be solved.
    """
    _check_inputs(layer)
    merged = rule(Layer(layer.deltas, layer.tasks, path, reads_text, adapters))

    def cut_of(answer: Tensor) -> Cut:
        matrix = layer.normal_matrix()
        system = factorise(matrix, [answer], layer.inputs_by_name(), layer.config.alpha)
        return Cut(system, layer.config, layer.rank)

    if isinstance(merged, LowRankDelta):
        scaled = merged.scaled(scale)
        if is_left_whole(scaled, layer.config, layer.rank):
            return LayerSolution(scaled)
        cut = cut_of(scaled.down)
        return thin_answer(cut, cut.system.times_upper(scaled.down.T), scaled)
    dense = scale * merged
    cut = cut_of(dense)
    return dense_answer(cut, cut.system.times_upper(dense.T), layer.together.delta.rank)


def _check_inputs(layer: LayerProblem) -> None:
    """Refuse inputs that would make any report wrong, even if the rule does not use them."""
    for name, inputs in layer.inputs_by_name().items():
        if not torch.isfinite(inputs.size + inputs.energy):
            raise SolveError(
                f"the inputs of task {name!r} hold NaN or infinite numbers; a method that adds "
                "too much makes a half precision overflow: run the model in bfloat16 or float32, "
                "or set a smaller scale"
            )


def merge_by_rival(problem: Problem, progress: Progress) -> tuple[EngineResult, list[Note]]:
    """Merge by the method that the settings name.

    Args:
        progress: Listener for the layers, and for searches, so that it can cancel them, too.

    Returns:
        The solved layers, and the values that the method searched.

    Raises:
        AdapterError: A delta that does not fit its module.
        CalibrationError: Outputs of the network that a search cannot use.
        ConfigError: A setting that reads the weight of a quantised layer.
        SolveError: A layer that the rule cannot merge; with its path.
    """
    name = problem.config.method
    method = METHODS[name]
    adapters = len(problem.adapters)
    text = layers_that_read_text(problem.network)
    options = rule_options(problem.config)
    notes: list[Note] = []
    engine = iterate if method.inputs == "teacher" else sweep
    once = problem.with_settings(ridge="consistent", alpha_cross=None, input_mix=0.0, max_iter=1)
    check_problem(once)

    @functools.cache
    def output_error() -> OutputError:
        return OutputError(problem, partial(progress, 0, len(problem.paths)))

    def solve(scale: float) -> EngineResult:
        rule = partial(method.rule, **options)

        def solver_at(path: str) -> LayerSolver:
            return partial(
                solve_by_rule,
                path=path,
                reads_text=path in text,
                adapters=adapters,
                rule=rule,
                scale=scale,
            )

        return engine(once, solver_at, progress)

    if method.coefficients is not None:
        options["coefficients"] = method.coefficients(problem.tasks, adapters)
    if method.searches == "coefficients":
        coefficients = best_coefficients(lambda tried: output_error().of_sum(tried), adapters)
        options["coefficients"] = coefficients
        shares = ", ".join(f"{c:.3f}" for c in coefficients)
        notes.append(Note("method", f"{name}: coefficients {shares}, {_SEARCHED}"))
    scale = problem.config.baseline.scale
    if scale == "search" or (scale is None and method.searches == "scale"):
        layers = solve(1.0).layers
        unscaled = Adapter("merged", {path: layer.saved for path, layer in layers.items()})
        scale = best_scale(lambda tried: output_error()(unscaled.scaled(tried)))
        notes.append(Note("method", f"{name}: scale {scale:.3f}, {_SEARCHED}"))
    if method.only_text:
        solved = len(text.intersection(problem.paths))
        others = len(problem.paths) - solved
        where = f"solved at {solved} layers that read text, averaged at {others} others"
        notes.append(Note("method", f"{name}: {where}"))
    result = solve(1.0 if scale is None else float(scale))
    return replace(result, changes=()), notes


def layers_that_read_text(network: Network) -> frozenset[str]:
    """Return the paths of cross-attention's keys and values: layers of the text stream in a network
    that has others, too.
    """
    streams = {path: network.stream(path) for path in layer_shapes(network.modules)}
    text = frozenset(path for path, stream in streams.items() if stream == TEXT_STREAM)
    return text if len(text) < len(streams) else frozenset()
