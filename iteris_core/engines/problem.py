"""The input and the result of an engine, and what both engines share: checks and forward calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..adapters import Adapter, LowRankDelta, target_layers
from ..algebra.layer import LayerSolver
from ..algebra.solve import solve_layer
from ..config import MergeConfig
from ..errors import AdapterError, CalibrationError, ConfigError
from ..layers import class_of, is_quantised, weight_shape
from ..memory import UNLIMITED, Room
from ..network import Network
from ..processes import Processes
from ..report.records import LayerReport
from ..rows.chunks import Chunk
from ..rows.wearing import check_rows, unfolded
from ..settings import label
from ..tasks import Task

_current_chunk: ContextVar[Chunk | None] = ContextVar("iteris_chunk", default=None)
# outputs[g][s]: (teacher's, student's) output row of sample s of task g.
Outputs = tuple[tuple[tuple[Any, Any], ...], ...]


@dataclass(frozen=True)
class Problem:
    """The network, the adapters, the tasks and the settings of a merge.

    Args:
        adapters: Adapters to merge; each changes something.
        tasks: Tasks to reproduce, checked by `tasks.check_tasks`.
    """

    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    config: MergeConfig
    processes: Processes = field(default_factory=Processes)
    room: Room = UNLIMITED

    @property
    def paths(self) -> list[str]:
        return target_layers(self.adapters)

    @property
    def samples(self) -> int:
        return sum(len(task.samples) for task in self.tasks)


@dataclass(frozen=True)
class SolvedLayer:
    """A solved layer.

    Args:
        saved: The merged delta, on the CPU.
        drift_is_rounded: Whether the drift was taken from outputs in half precision, since the
            layer's weight could not be read.
    """

    saved: LowRankDelta
    report: LayerReport
    was_too_coarse: bool = False
    drift_is_rounded: bool = False


@dataclass(frozen=True)
class EngineResult:
    """All layers, solved.

    Args:
        layers: Path -> solved layer, in the order that the network reached them.
        outputs: Output row of every teacher and student, by task and sample; None if the network
            returns none.
        changes: Largest relative change of a layer in each iteration; only of the paper's engine.
    """

    layers: dict[str, SolvedLayer]
    outputs: Outputs | None
    changes: tuple[float, ...] = ()


SolverAt = Callable[[str], LayerSolver]  # module path -> solver of that layer


def iteris_at(_path: str) -> LayerSolver:
    """Return the closed form of IterIS, which is the same at every layer."""
    return solve_layer


def check_problem(problem: Problem) -> None:
    """Refuse a problem that no engine could solve, before any row runs.

    Raises:
        AdapterError: See `check_targets`.
        CalibrationError: See `check_steady`.
        ConfigError: See `check_base_weights`.
    """
    check_targets(problem.network, problem.adapters)
    check_steady(problem.network)
    check_base_weights(problem)


def check_base_weights(problem: Problem) -> None:
    """Refuse settings that read the base weights, where a target layer is quantised.

    Raises:
        ConfigError: Names the setting, the layer and its class.
    """
    setting = problem.config.base_weight_setting
    if setting is None:
        return
    modules = problem.network.modules
    quantised = [path for path in problem.paths if is_quantised(modules[path])]
    if quantised:
        raise ConfigError(
            f"{label(setting)} is {getattr(problem.config, setting)!r}, which needs the base "
            f"weight of every layer; {len(quantised)} of {len(problem.paths)} layers are "
            f"quantised, such as {quantised[0]!r}, a {class_of(modules[quantised[0]])}, and may "
            f"round their weights. Leave {label(setting)} at its default, or load the model "
            "in 16 bit"
        )


def check_steady(network: Network) -> None:
    """Refuse a network whose answer to a row depends on chance or on the other rows of its batch.

    Raises:
        CalibrationError: Names a module in training mode that drops numbers, or one that normalises
            by its batch.
    """
    for path, module in network.modules.items():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            why = "normalises each row by all rows of its batch"
        elif module.training and _drops(module):
            why = "drops numbers at random, since it is in training mode"
        else:
            continue
        raise CalibrationError(
            f"{path!r} of the model, a {class_of(module)}, {why}, so that no row of a batch could "
            "be measured by itself; call eval() of the model before the merge"
        )


def _drops(module: nn.Module) -> bool:
    """Whether a module in training mode drops some numbers at random."""
    if isinstance(module, (_DropoutNd, nn.RReLU)):
        return getattr(module, "p", 1.0) > 0
    shares = (value for name, value in vars(module).items() if "drop" in name.lower())
    return any(isinstance(share, float) and share > 0 for share in shares)


def check_targets(network: Network, adapters: Sequence[Adapter]) -> None:
    """Refuse deltas that have no module, or whose shape is not the module's.

    Raises:
        AdapterError: Names adapter, layer, and both shapes.
    """
    for adapter in adapters:
        for path, delta in adapter.deltas.items():
            if path not in network.modules:
                raise AdapterError(
                    f"adapter {adapter.name!r} changes {path!r}, which this model does not have. "
                    "Choose the model that it was trained for, or leave it out"
                )
            try:
                expected = weight_shape(network.modules[path])
            except AdapterError as error:
                raise AdapterError(
                    f"adapter {adapter.name!r} changes {path!r}, which {error}"
                ) from error
            if delta.shape != expected:
                raise AdapterError(
                    f"adapter {adapter.name!r} has a delta of {delta.shape[0]} x {delta.shape[1]} "
                    f"for {path!r}, whose weight is {expected[0]} x {expected[1]}: it was trained "
                    "for another model"
                )


def check_all_reached(paths: Sequence[str], reached: Collection[str]) -> None:
    """Refuse a network that did not run every target layer."""
    never = [path for path in paths if path not in reached]
    if never:
        raise CalibrationError(
            f"the network never ran {len(never)} of {len(paths)} target layers, such as "
            f"{never[0]!r}; they cannot be measured. Leave them out, or check that the adapters "
            "belong to this model"
        )


def reached_twice(path: str) -> CalibrationError:
    return CalibrationError(
        f"layer {path!r} is reached twice in one forward pass; a layer with one weight and two "
        "inputs cannot be solved in one go. Leave it out of the merge"
    )


def run_chunk(network: Network, chunk: Chunk) -> Any:
    """Run one forward call, in a context where hooks can ask for its chunk."""
    _current_chunk.set(chunk)
    answer = network.forward(chunk.inputs)
    # a copy: the model may write its next answer into the same tensor, and answers are kept
    return answer.clone() if isinstance(answer, Tensor) else answer


def seen_by_hook(
    network: Network, path: str, x: Tensor, y: Tensor
) -> tuple[Chunk, Tensor, Tensor] | None:
    """Return the current chunk, and a layer's input and output with one entry per row; None if
    other code calls the layer.

    Raises:
        CalibrationError: The layer's rows are not the chunk's.
    """
    chunk = _current_chunk.get()
    if chunk is None:
        return None
    rows = 2 * len(chunk.samples)
    if network.folds_rows(path):
        x, y = unfolded(rows, x, y)
    check_rows(path, x, rows)
    return chunk, x, y


def outputs_by_task(
    tasks: Sequence[Task], chunks: Sequence[Chunk], answers: Sequence[Any]
) -> Outputs | None:
    """Return each sample's (teacher's, student's) output row, by task; None if the network returns
    neither a tensor nor a list.
    """
    if not all(isinstance(answer, (Tensor, list)) for answer in answers):
        return None
    outputs: list[dict[int, tuple[Any, Any]]] = [{} for _ in tasks]
    for chunk, answer in zip(chunks, answers, strict=True):
        for block in chunk.blocks:
            pairs = zip(answer[block.teacher], answer[block.student], strict=True)
            outputs[block.task] |= dict(zip(block.numbers, pairs, strict=True))
    return tuple(tuple(rows[number] for number in sorted(rows)) for rows in outputs)
