"""A whole merge by a rival, after the search of its free scale or coefficients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..adapters import Adapter
from ..engines.common import check_problem, within_size
from ..engines.problem import EngineResult, Listener, Problem, SolverAt
from ..engines.registry import ENGINES
from ..report.records import Note
from ..rows.wearing import worn_delta
from .layer import layers_that_read_text
from .output_error import OutputError
from .registry import METHODS, Method, rule_options
from .search import best_coefficients, best_scale
from .solver import LayerRule, RivalSolver

_SEARCHED = "which gave the smallest output error on the calibration samples"


def merge_by_rival(problem: Problem, listener: Listener) -> tuple[EngineResult, list[Note]]:
    """Merge by the method that the settings name.

    Args:
        problem: Network, adapters, tasks and settings of the merge.
        listener: Callbacks; `watch` follows the merge itself, `progress` searches too, so that it
            can cancel them.

    Returns:
        The solved layers, and the values that the method searched.

    Raises:
        AdapterError: A delta that does not fit its module.
        CalibrationError: Outputs of the network by which nothing can be searched.
        ConfigError: A setting that reads the weight of a quantised layer.
        SolveError: A layer that the rule cannot merge; with its path.
    """
    name = problem.config.method
    method = METHODS[name]
    options = rule_options(problem.config)
    notes: list[Note] = []
    engine = ENGINES["iterate" if method.inputs == "teacher" else "sweep"]
    once = problem.with_settings(ridge="consistent", alpha_cross=None, input_mix=0.0, max_iter=1)
    check_problem(once)

    @functools.cache
    def output_error() -> OutputError:
        return OutputError(problem, partial(listener.progress, 0, len(problem.paths)))

    def solve(scale: float, listener: Listener) -> EngineResult:
        rule = partial(method.rule, **options)
        return within_size(engine, once, rival_at(problem, method, rule, scale), listener)

    if method.coefficients is not None:
        options["coefficients"] = method.coefficients(problem.tasks, len(problem.adapters))
    if method.searches == "coefficients":
        coefficients = best_coefficients(
            lambda tried: output_error()(_weighted_sum(problem, tried)), len(problem.adapters)
        )
        options["coefficients"] = coefficients
        shares = ", ".join(f"{c:.3f}" for c in coefficients)
        notes.append(Note("method", f"{name}: coefficients {shares}, {_SEARCHED}"))
    scale = problem.config.baseline.scale
    if scale == "search" or (scale is None and method.searches == "scale"):
        unscaled = _adapter_of(solve(1.0, Listener(listener.progress)))
        scale = best_scale(lambda tried: output_error()(unscaled.scaled(tried)))
        notes.append(Note("method", f"{name}: scale {scale:.3f}, {_SEARCHED}"))
    if method.only_text:
        notes.append(_where_solved(problem))
    result = solve(1.0 if scale is None else float(scale), listener)
    return replace(result, changes=()), notes


def rival_at(problem: Problem, method: Method, rule: LayerRule, scale: float) -> SolverAt:
    """Return the solver of each layer by a method's rule."""
    text = layers_that_read_text(problem.network)
    adapters = len(problem.adapters)

    def solver_at(path: str) -> RivalSolver:
        return RivalSolver(path, path in text, adapters, rule, scale, method.plain_cut)

    return solver_at


def _adapter_of(result: EngineResult) -> Adapter:
    return Adapter("merged", {path: layer.saved for path, layer in result.layers.items()})


def _weighted_sum(problem: Problem, coefficients: Sequence[float]) -> Adapter:
    """Return the sum of the adapters, each times its coefficient."""
    mix = dict(enumerate(coefficients))
    worn = {path: worn_delta(path, problem.adapters, mix) for path in problem.paths}
    return Adapter("sum", {path: mix.delta for path, mix in worn.items() if mix is not None})


def _where_solved(problem: Problem) -> Note:
    paths = problem.paths
    solved = layers_that_read_text(problem.network).intersection(paths)
    return Note(
        "method",
        f"{problem.config.method}: solved at {len(solved)} layers that read text, averaged at "
        f"{len(paths) - len(solved)} others",
    )
