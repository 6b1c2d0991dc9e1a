"""The table of rivals, and whole merges by one of them: measured, after the search of its free
scale or coefficients, or by the deltas alone, without a model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta, target_layers
from ..algebra.answer import Cut, LayerSolution, dense_answer, is_left_whole, thin_answer
from ..algebra.layer import LayerProblem, LayerSolver
from ..algebra.system import factorise
from ..config import ITERIS_ONLY, BaselineOptions, MergeConfig
from ..engines.iterate import iterate
from ..engines.problem import EngineResult, Problem, check_problem
from ..engines.sweep import sweep
from ..errors import AdapterError, ConfigError, SolveError
from ..layers import layer_shapes
from ..network import TEXT_STREAM, Network
from ..progress import Progress
from ..report.records import LayerReport, Note
from ..settings import label
from ..tasks import Task
from .data_free import average, linear, np_lora, stacked_sum, ties, user_weights
from .layer import Layer
from .measured import custom_diffusion, mix_of_show, regmean
from .search import OutputError, best_coefficients, best_scale

_FOR_ALL = "scale"


# Merges one `Layer`: a delta, dense where it is not low rank. The user's options of a method are
# its rule's keyword arguments with a default.
Rule = Callable[..., LowRankDelta | Tensor]


@dataclass(frozen=True)
class Method:
    """A rival.

    Args:
        rule: Rule that merges one layer. A dense answer is cut to the sum of the adapters' ranks,
            or to the requested rank.
        inputs: Rows whose inputs are measured: the ``teacher``'s (X~ = X), or the ``student``'s,
            which wears the layers merged so far. For rules without statistics it decides which
            inputs the residuals of the report are measured on.
        searches: Value that is searched on the error of the network's output, unless the user names
            it: one ``scale``, or the rule's ``coefficients``.
        coefficients: Function that returns the rule's ``coefficients`` from the tasks and the
            number of adapters.
        only_text: Whether the rule is for layers that read text, and averages at others.
    """

    rule: Rule
    inputs: Literal["teacher", "student"] = "student"
    searches: Literal["scale", "coefficients"] | None = None
    coefficients: Callable[[Sequence[Task], int], Sequence[float]] | None = None
    only_text: bool = False

    @property
    def options(self) -> list[str]:
        """Names of the `BaselineOptions` that the method takes."""
        parameters = inspect.signature(self.rule).parameters.values()
        return [_FOR_ALL, *(p.name for p in parameters if p.default is not p.empty)]


METHODS: Mapping[str, Method] = {
    "average": Method(average),
    "sum": Method(stacked_sum),
    "weighted": Method(linear, coefficients=user_weights),
    "task_arithmetic": Method(stacked_sum, searches="scale"),
    "hyper_linear": Method(linear, searches="coefficients"),
    "ties": Method(ties),
    "np_lora": Method(np_lora),
    "regmean": Method(regmean, inputs="teacher"),
    "regmean_pp": Method(regmean),
    "mix_of_show": Method(mix_of_show, inputs="teacher"),
    "custom_diffusion": Method(custom_diffusion, inputs="teacher", only_text=True),
}


def rule_options(config: MergeConfig) -> dict[str, Any]:
    """Return the keyword arguments of the rule of a configured rival."""
    options = METHODS[config.method].options
    return {name: getattr(config.baseline, name) for name in options if name != _FOR_ALL}


# settings that are IterIS's own, at values that switch them off
_OFF = {"unit_gain": 1.0}


def check_used(config: MergeConfig) -> None:
    """Refuse settings that a user has changed and that the method or the engine would not look at.

    Raises:
        ConfigError: Names the setting, and says what it is for.
    """
    check_options(config)
    unchanged = MergeConfig().to_dict()
    changed = [
        name
        for name, value in config.to_dict().items()
        if value not in (unchanged[name], _OFF.get(name))
    ]
    for name in changed:
        if config.method != "iteris" and name in ITERIS_ONLY:
            raise ConfigError(
                f"{label(name)} is for the method iteris; {config.method} does not use it. Leave "
                "it out"
            )
        if config.engine == "sweep" and name == "max_iter":
            raise ConfigError(
                f"{label(name)} is for the engine iterate; the sweep solves every layer once. "
                "Leave it out"
            )


def check_options(config: MergeConfig) -> None:
    """Refuse an option of rivals that the method would not look at.

    Raises:
        ConfigError: Names the options that the method takes.
    """
    taken = [] if config.method == "iteris" else METHODS[config.method].options
    for item in fields(BaselineOptions):
        if item.name in taken or getattr(config.baseline, item.name) == item.default:
            continue
        takes = f"takes {_listed(taken)}" if taken else "takes none of the rivals' options"
        raise ConfigError(
            f"{label(item.name)} is not an option of {config.method}; {config.method} {takes}"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# A rule with all its options filled in.
LayerRule = Callable[[Layer], LowRankDelta | Tensor]
_SEARCHED = "which gave the smallest output error on the calibration samples"


def solve_by_rule(
    layer: LayerProblem,
    *,
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
    merged = rule(Layer(layer.deltas, layer.tasks, reads_text, adapters))

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
    config = replace(
        problem.config, ridge="consistent", alpha_cross=None, input_mix=0.0, max_iter=1
    )
    once = replace(problem, config=config)
    check_problem(once)

    @functools.cache
    def output_error() -> OutputError:
        return OutputError(problem, partial(progress, 0, len(problem.paths)))

    def solve(scale: float) -> EngineResult:
        rule = partial(method.rule, **options)

        def solver_at(path: str) -> LayerSolver:
            return partial(
                solve_by_rule,
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


def merge_deltas(
    adapters: Sequence[Adapter], config: MergeConfig, progress: Progress
) -> tuple[dict[str, LowRankDelta], tuple[LayerReport, ...]]:
    """Return the merged deltas in the precision to save, and each layer's rank.

    Raises:
        AdapterError: Adapters whose changes of a layer have several shapes.
    """
    rule = partial(METHODS[config.method].rule, **rule_options(config))
    given = config.baseline.scale
    scale = 1.0 if given is None else float(given)  # MergeConfig refuses a search
    paths = target_layers(adapters)
    merged = {}
    reports = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        deltas = {
            k: adapter.deltas[path].to(dtype=torch.float32)
            for k, adapter in enumerate(adapters)
            if path in adapter.deltas
        }
        shapes = {delta.shape for delta in deltas.values()}
        if len(shapes) > 1:
            raise AdapterError(
                f"the LoRAs change {path!r} in {len(shapes)} shapes, {sorted(shapes)}: they were "
                "made for different models. Leave one of them out"
            )
        answer = rule(Layer(deltas, (), False, len(adapters)))
        assert isinstance(answer, LowRankDelta)  # by DATA_FREE
        answer = answer.scaled(scale)
        merged[path] = answer.balanced().to(dtype=config.output_dtype)
        reports.append(LayerReport(path, answer.rank, ()))
    progress(len(paths), len(paths))
    return merged, tuple(reports)
