"""The single sweep: one forward pass that solves every target layer when the network reaches it.

A layer's student inputs depend only on the layers before it. So when teacher rows and student rows
go through the network in one batch, each layer can be solved the moment all rows have reached it,
and the student rows go on wearing the answer. That is the fixed point of the paper's Algorithm 1
(arXiv:2411.15231), in one pass instead of many.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..adapters import LowRankDelta
from ..devices import memory_in_use, with_smaller_calls
from ..rows.chunks import Chunk, split_into_chunks
from ..rows.lockstep import pause, run_in_lockstep
from ..rows.parking import Parking
from ..rows.wearing import Worn, dress, layer_hooks, worn_at
from .common import (
    check_all_reached,
    check_problem,
    outputs_by_task,
    reached_twice,
    run_chunk,
    seen_by_hook,
)
from .measure import Measurement
from .problem import NOBODY, EngineResult, Listener, Problem, SolvedLayer, SolverAt, iteris_at
from .shared_inputs import SharedInputs

logger = logging.getLogger("iteris")


def sweep(
    problem: Problem,
    solver_at: SolverAt = iteris_at,
    listener: Listener = NOBODY,
    *,
    parking: Parking | None = None,
) -> EngineResult:
    """Solve all target layers in one forward pass.

    If the device runs out of memory, the sweep goes on from the layer that it has reached, with
    half as many samples in a call.

    Args:
        problem: Network, adapters, tasks and settings of the merge. The network is untouched
            afterwards, also after an exception.
        solver_at: Module path -> solver of that layer; a rival method has other solvers.
        listener: Callbacks that follow the merge.
        parking: Parking of the tensors of paused chunks; None: as ``waiting_bytes`` says.

    Raises:
        AdapterError: A delta that does not fit its module.
        ConfigError: A setting that reads the weight of a quantised layer.
        CalibrationError: A target layer that is reached twice, never, or not by every row.
        SolveError: A layer without a usable solution; its name and the cause are in the message.
    """
    check_problem(problem)
    budget = problem.config.waiting_bytes
    if parking is None and budget is not None:
        parking = Parking(problem.network.modules.values(), budget=budget)
    if parking is not None:
        parking.keep(*(sample for task in problem.tasks for sample in task.samples))
    solved: dict[str, SolvedLayer] = {}

    def attempt(samples_per_chunk: int) -> EngineResult:
        chunks = split_into_chunks(problem.tasks, samples_per_chunk, problem.network)
        own = problem.processes.share(chunks)
        state = _Sweep(
            problem, solver_at, listener, parking if len(own) > 1 else None, solved, bool(own)
        )
        with problem.processes.together():
            return state.run(chunks, own)

    return with_smaller_calls(attempt, problem.config.samples_per_chunk, "the sweep")


@dataclass
class _Stop:
    """The layer at which the chunks gather, with its measurement and then the deltas that they
    wear.

    Each chunk that waits holds the stop at which it waits; the measurement is dropped as soon as
    the layer is solved.
    """

    path: str
    worn: Worn
    measurement: Measurement | None

    def measured(self) -> Measurement:
        """Return the measurement, of a layer that is not solved yet."""
        assert self.measurement is not None, f"{self.path} is solved already"
        return self.measurement


@dataclass
class _Sweep:
    """One pass over all chunks.

    Lifecycle:
        1. `run` lets all chunks go.
        2. `at_layer` measures each chunk's rows at a layer, and lets the chunk wait there.
        3. `solve` solves the layer once all chunks wait; they go on to the next layer.

    Args:
        problem: Network, adapters, tasks and settings of the merge.
        solver_at: Module path -> solver of that layer.
        listener: Callbacks that follow the merge.
        parking: Parking of the tensors of paused chunks; None: they stay on the device.
        solved: Layers that are solved already, by a pass that ran out of memory; this one adds to
            them.
        counts: Whether the rows count. A process without rows of its own comes along with those of
            the first.
    """

    problem: Problem
    solver_at: SolverAt
    listener: Listener
    parking: Parking | None
    solved: dict[str, SolvedLayer]
    counts: bool = True
    _solved_before: frozenset[str] = field(init=False)
    _reached: set[tuple[int, str]] = field(default_factory=set, init=False)
    _inputs: SharedInputs = field(default_factory=SharedInputs, init=False)
    _stop: _Stop | None = field(default=None, init=False)
    _memory_bytes: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._solved_before = frozenset(self.solved)

    def run(self, chunks: list[Chunk], own: list[Chunk]) -> EngineResult:
        """Run chunks through the network, and solve every layer on the way.

        Args:
            chunks: All chunks.
            own: Those of this process.
        """
        network = self.problem.network
        paths = self.problem.paths
        modules = {path: network.modules[path] for path in paths}
        workers = [partial(run_chunk, network, chunk) for chunk in own or chunks[:1]]
        with torch.no_grad(), layer_hooks(modules, self.at_layer):
            answers = run_in_lockstep(workers, self.solve, self.parking)
        check_all_reached(paths, self.solved)
        answers = self.problem.processes.gather(answers if own else [])
        outputs = outputs_by_task(self.problem.tasks, chunks, answers)
        return EngineResult(self.solved, outputs, memory_bytes=self._memory_bytes)

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure one chunk's rows at one layer, wait until the layer is solved, dress the rows."""
        seen = seen_by_hook(self.problem.network, path, x, y)
        if seen is None:
            return y
        chunk = seen.chunk
        x = seen.x
        y = seen.y
        if (id(chunk), path) in self._reached:
            raise reached_twice(path)
        self._reached.add((id(chunk), path))
        if path in self._solved_before:
            merged = self.solved[path].saved
            worn = worn_at(path, self.problem.adapters, self.problem.tasks, merged, x)
            return dress(module, chunk, x, y, worn).reshape(seen.shape)
        stop = self._stop_at(path, module, x)
        codes = stop.measured().add(chunk, x, y)
        pause(path)
        return dress(module, chunk, x, y, stop.worn, codes).reshape(seen.shape)

    def _stop_at(self, path: str, module: nn.Module, x: Tensor) -> _Stop:
        """Return the stop at a layer, which the first chunk opens."""
        if self._stop is None or self._stop.path != path:
            measurement = Measurement.open(self.problem, path, module, x, self._inputs)
            self._stop = _Stop(path, Worn(measurement.teachers, None), measurement)
            if self.parking is not None:
                self.parking.rows_run_on(x.device)
            self._keep(*measurement.teachers)
        return self._stop

    def solve(self, path: str) -> None:
        """Solve the layer at which all chunks have arrived."""
        stop = self._stop
        assert stop is not None  # all chunks wait there
        place = stop.measured().place
        in_use = memory_in_use(place.device)
        if in_use is not None:
            self._memory_bytes = max(in_use, self._memory_bytes or 0)
        start = time.perf_counter()
        stop.measured().add_up(counts=self.counts)
        with self.problem.processes.together():  # so that a layer is solved in all, or in none
            solved = stop.measured().solve(self.solver_at(path))
            merged = solved.saved.to(device=place.device, dtype=place.dtype)
        self._keep(merged)
        stop.worn = replace(stop.worn, merged=merged)
        stop.measurement = None  # one layer's sums at a time
        self.solved[path] = replace(solved, saved=solved.saved.to(device="cpu"))
        total = len(self.problem.paths)
        seconds = time.perf_counter() - start
        logger.debug("%s solved in %.3f s, %d of %d", path, seconds, len(self.solved), total)
        self.listener.layer_solved(solved, len(self.solved), total)

    def _keep(self, *shared: LowRankDelta | None) -> None:
        """Let deltas stay on the device while chunks are parked: all of them wear the same."""
        if self.parking is not None:
            self.parking.keep(*shared)
