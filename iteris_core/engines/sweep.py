"""The single sweep: one forward pass that solves every target layer in the order in which the
network reaches it.

A layer's student inputs depend only on the layers before it. So when teacher rows and student rows
go through the network in one batch, each layer can be solved the moment all rows have reached it,
and the student rows go on wearing the answer. That is the fixed point of the paper's Algorithm 1
(arXiv:2411.15231), in one pass instead of many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, target_layers
from ..algebra.solve import LayerSolver, solve_layer
from ..config import MergeConfig
from ..devices import memory_in_use, with_smaller_calls
from ..errors import AdapterError, CalibrationError
from ..layers import weight_shape
from ..network import Network
from ..report.records import LayerReport
from ..rows.chunks import Chunk, at_hand, check_rows, dress, layer_hooks, split_into_chunks
from ..rows.lockstep import pause, run_in_lockstep
from ..rows.parking import Parking
from ..tasks import Task
from .measure import Measurement, SolvedLayer
from .shared_inputs import SharedInputs

Progress = Callable[[int, int], None]
SolverAt = Callable[[str], LayerSolver]  # module path -> what solves that layer
Watch = Callable[[LayerReport], None]  # told about every layer the moment it is solved
_current_chunk: ContextVar[Chunk | None] = ContextVar("iteris_chunk", default=None)


@dataclass(frozen=True)
class EngineResult:
    """Solved layers in the order in which the network reached them, the rows' outputs, and the
    changes per iteration.

    ``outputs[g][s]`` is (teacher's, student's) output row of sample s of task g, if the network
    returns one. ``changes[i]`` is the largest relative change of a layer in iteration i; only of
    ``engine="iterate"``. ``memory_bytes`` is the most that was in use on the device when a layer
    was solved, if the device tells.
    """

    layers: dict[str, SolvedLayer]
    outputs: tuple[tuple[tuple[Tensor, Tensor], ...], ...] | None
    changes: tuple[float, ...] = ()
    memory_bytes: int | None = None


def sweep(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig,
    progress: Progress | None = None,
    solver_at: SolverAt = lambda path: solve_layer,
    watch: Watch | None = None,
) -> EngineResult:
    """Solve all target layers in one forward pass.

    If the device runs out of memory, it goes on with half as many samples a call, from the layer it
    had reached.

    Args:
        network: Runs the rows; untouched afterwards, also after an exception.
        adapters: At least one target layer among them.
        tasks: Checked by `tasks.check_tasks`.
        config: See `MergeConfig`.
        progress: Called as ``progress(layers solved, layers in all)``; may raise to cancel.
        solver_at: What solves each layer; a rival method is another solver.
        watch: Told each layer's report as soon as it is solved, which waits for the device once
            more a layer.

    Raises:
        AdapterError: A delta that does not fit its module.
        CalibrationError: A target layer that is reached twice, never, or not by every row.
        SolveError: A layer without a usable solution; its name and the cause are in the message.
    """
    check_targets(network, adapters)
    paths = target_layers(adapters)
    solved: dict[str, SolvedLayer] = {}
    parking = Parking(network.modules.values()) if config.park_on_host else None

    def attempt(samples_per_chunk: int) -> EngineResult:
        state = _Sweep(
            network, adapters, tasks, config, progress, watch, solver_at, len(paths), solved
        )
        chunks = split_into_chunks(tasks, samples_per_chunk)
        workers = [partial(run_chunk, network, chunk) for chunk in chunks]
        with (
            torch.no_grad(),
            layer_hooks({path: network.modules[path] for path in paths}, state.at_layer),
        ):
            answers = run_in_lockstep(workers, state.solve, parking if len(chunks) > 1 else None)
        check_all_reached(paths, solved)
        return EngineResult(
            solved, outputs_by_task(tasks, chunks, answers), memory_bytes=state.memory_bytes
        )

    return with_smaller_calls(attempt, config.samples_per_chunk, "the sweep")


def check_targets(network: Network, adapters: Sequence[Adapter]) -> None:
    """Refuse deltas that have no module, or whose shape is not the module's.

    Raises:
        AdapterError: Names adapter, layer, both shapes.
    """
    for adapter in adapters:
        for path, delta in adapter.deltas.items():
            if path not in network.modules:
                raise AdapterError(
                    f"adapter {adapter.name!r} changes {path!r}, which this model does not have"
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


def check_all_reached(paths: Sequence[str], reached: Sequence[str]) -> None:
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
    """Run one forward call, in a context of its own in which hooks know whose rows they see."""
    _current_chunk.set(chunk)
    return network.forward(chunk.inputs)


def current_chunk(path: str, x: Tensor) -> Chunk | None:
    """Return the chunk whose rows a hook sees; None in somebody else's forward call."""
    chunk = _current_chunk.get()
    if chunk is not None:
        check_rows(path, x, 2 * len(chunk.samples))
    return chunk


@dataclass
class _Sweep:
    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    config: MergeConfig
    progress: Progress | None
    watch: Watch | None
    solver_at: SolverAt
    total: int
    solved: dict[str, SolvedLayer]
    known: frozenset[str] = frozenset()  # solved before this pass began
    reached: set[tuple[int, str]] = field(default_factory=set)
    inputs: SharedInputs = field(default_factory=SharedInputs)
    measurement: Measurement | None = None
    merged: LowRankDelta | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        self.known = frozenset(self.solved)

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure one chunk's rows at one layer, wait until the layer is solved, dress the rows."""
        chunk = current_chunk(path, x)
        if chunk is None:
            return y
        if (id(chunk), path) in self.reached:
            raise reached_twice(path)
        self.reached.add((id(chunk), path))
        if path in self.known:
            return dress(
                module,
                chunk,
                x,
                y,
                *at_hand(path, self.adapters, self.tasks, self.solved[path].saved, x),
            )
        if self.measurement is None or self.measurement.path != path:
            stream = self.network.stream(path)
            self.measurement = Measurement.open(
                path, stream, module, x, self.adapters, self.tasks, self.config, self.inputs
            )
        # no tensor that chunks share may be a local variable here: it would be parked with the
        # first of them
        measurement = self.measurement
        codes = measurement.add(module, chunk, x, y, self.inputs)
        pause(path)
        return dress(module, chunk, x, y, measurement.worn, self.merged, codes)

    def solve(self, path: str) -> None:
        """Solve the layer at which all chunks have arrived."""
        in_use = memory_in_use(self.measurement.device)
        if in_use is not None:
            self.memory_bytes = max(in_use, self.memory_bytes or 0)
        solved = self.measurement.solve(self.config.rank_at(path), self.solver_at(path))
        self.merged = solved.saved.to(device=self.measurement.device, dtype=self.measurement.dtype)
        self.solved[path] = replace(solved, saved=solved.saved.to(device="cpu"))
        self.measurement = None  # one layer's sums at a time
        if self.progress is not None:
            self.progress(len(self.solved), self.total)
        if self.watch is not None:
            self.watch(solved.report())


def outputs_by_task(tasks: Sequence[Task], chunks: Sequence[Chunk], answers: Sequence[Any]) -> Any:
    """Return each sample's (teacher's, student's) output row, by task; None if the network returns
    no tensor.
    """
    if not all(isinstance(answer, Tensor) for answer in answers):
        return None
    outputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tasks]
    for chunk, answer in zip(chunks, answers, strict=True):
        for block in chunk.blocks:
            outputs[block.task].extend(
                zip(answer[block.teacher], answer[block.student], strict=True)
            )
    return tuple(tuple(rows) for rows in outputs)
