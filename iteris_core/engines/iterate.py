"""The paper's engine, Algorithm 1 (arXiv:2411.15231): infer, solve all layers, and repeat.

It ends when nothing changes any more, with the answer that the sweep finds in one pass. It is here
to reproduce the paper, and to test the sweep.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import LowRankDelta, stack
from ..errors import ConfigError
from ..memory import solving, with_smaller_calls
from ..progress import Progress, nobody
from ..rows.chunks import Chunk, split_into_chunks
from ..rows.wearing import Worn, add_deltas, layer_hooks, worn_at
from .measure import Measurement
from .problem import (
    EngineResult,
    Problem,
    SolvedLayer,
    SolverAt,
    check_all_reached,
    check_problem,
    iteris_at,
    outputs_by_task,
    reached_twice,
    run_chunk,
    seen_by_hook,
)
from .shared_inputs import SharedInputs

logger = logging.getLogger("iteris")
Deltas = Mapping[str, LowRankDelta]
_TOLERANCE = 1e-6  # relative change of a layer, below which nothing changes any more
_STATISTICS_BYTES = 4 << 30  # of what is measured in one pass


def iterate(
    problem: Problem, solver_at: SolverAt = iteris_at, progress: Progress = nobody
) -> EngineResult:
    """Solve all target layers again and again, each time on the inputs that the last answer leads
    to.

    The first solve uses ``X~ = X``. Solve number n settles all layers with at most n - 1 measured
    inputs before them, so there are never more solves than different inputs; fewer if no layer
    changes by more than `_TOLERANCE`, or if ``config.max_iter`` is reached. Activations are
    never stored: layers whose statistics do not fit into `_STATISTICS_BYTES` together are
    measured in another pass over the same rows, with the same result.

    Args, Raises: See `sweep.sweep`.
    """
    check_problem(problem)
    if not problem.processes.is_alone:
        raise ConfigError(
            "the engine 'iterate', and rivals that look at the teachers' inputs, run in one "
            f"process, and this merge has {problem.processes.size}; use the engine 'sweep', or "
            "start one process"
        )

    def attempt(samples_per_chunk: int) -> EngineResult:
        room = replace(problem.room, samples_per_chunk=samples_per_chunk)
        with torch.inference_mode(False), torch.no_grad():
            return _iterate(replace(problem, room=room), solver_at, progress)

    return with_smaller_calls(attempt, problem.room.samples_per_chunk, "the iteration")


def _iterate(problem: Problem, solver_at: SolverAt, progress: Progress) -> EngineResult:
    config = problem.config
    chunks = split_into_chunks(problem.tasks, problem.room.samples_per_chunk, problem.network)
    solved: dict[str, SolvedLayer] = {}
    merged: Deltas | None = None
    changes: list[float] = []
    while len(changes) < config.max_iter:
        before = merged
        solved, different_inputs = _solve_all(
            problem, chunks, before, solver_at, progress, len(changes)
        )
        merged = {path: layer.saved for path, layer in solved.items()}
        changes.append(_largest_change(before, merged))
        logger.info("solve %d changed a layer by up to %.2e", len(changes), changes[-1])
        if changes[-1] <= _TOLERANCE or len(changes) >= different_inputs:
            break
    answers = _Pass(problem, chunks, merged).run()
    return EngineResult(solved, outputs_by_task(problem.tasks, chunks, answers), tuple(changes))


def _solve_all(
    problem: Problem,
    chunks: Sequence[Chunk],
    merged: Deltas | None,
    solver_at: SolverAt,
    progress: Progress,
    solves: int,
) -> tuple[dict[str, SolvedLayer], int]:
    """Measure and solve every layer once, in as many passes over the rows as the statistics need.

    Args:
        merged: Deltas of the last solve, which student rows wear; None: the mixes of their
            teachers.
        solves: Number of solves of all layers before this one.

    Returns:
        The layers as the network reaches them, and the number of different inputs that they read.
    """
    paths = problem.paths
    total = problem.config.max_iter * len(paths)
    solved: dict[str, SolvedLayer] = {}
    order: Sequence[str] = ()
    inputs = 0
    while len(solved) < len(paths):
        one_pass = _Pass(problem, chunks, merged, [path for path in paths if path not in solved])
        one_pass.run()
        order = one_pass.order
        measurements = one_pass.measurements
        for path in list(measurements):
            measurement = measurements.pop(path)  # its sums go as soon as it is solved
            inputs += measurement.arrivals.is_first
            with solving(path):
                measurement.finish()
                solved[path] = measurement.solve(solver_at(path))
            progress(solves * len(paths) + len(solved), total)
    return {path: solved[path] for path in order}, inputs


def _largest_change(before: Deltas | None, after: Deltas) -> float:
    """Return the largest ``||new - old|| / ||new||`` of a layer; 1 without an old one."""
    if before is None:
        return 1.0
    changes = []
    for path, delta in after.items():
        new = delta.to(dtype=torch.float64)
        old = before[path].to(dtype=torch.float64)
        difference = stack({"new": new, "old": old}, {"new": 1.0, "old": -1.0}).delta
        changes.append(
            (difference.squared_norm().clamp_min(0) / new.squared_norm().clamp_min(1e-300)).sqrt()
        )
    return torch.stack([change.cpu() for change in changes]).max().item()


@dataclass
class _Pass:
    """One pass over all rows, which measures as many layers as there is room for.

    Lifecycle:
        1. `run`, once: every chunk goes through the network, one after the other.
        2. `order` and `measurements` are read.

    Args:
        merged: Deltas that student rows wear, by layer; None: the mixes of their teachers.
        waiting: Layers that are still to be measured; empty: the rows only run.

    Attributes:
        order: Layers as the network reaches them.
        measurements: Path -> measurement of the layers that had room.
    """

    problem: Problem
    chunks: Sequence[Chunk]
    merged: Deltas | None
    waiting: Collection[str] = ()
    order: list[str] = field(default_factory=list, init=False)
    measurements: dict[str, Measurement] = field(default_factory=dict, init=False)
    _inputs: SharedInputs = field(default_factory=SharedInputs, init=False)
    _worn: dict[str, Worn] = field(default_factory=dict, init=False)

    def run(self) -> list[Any]:
        """Run all chunks, and return the network's output of each."""
        network = self.problem.network
        paths = self.problem.paths
        answers = []
        modules = {path: network.modules[path] for path in paths}
        with layer_hooks(modules, self.at_layer):
            for chunk in self.chunks:
                self.order = []
                answers.append(contextvars.copy_context().run(run_chunk, network, chunk))
        check_all_reached(paths, self.order)
        return answers

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure a chunk's rows if it is this layer's turn, and add the last answer to them."""
        seen = seen_by_hook(self.problem.network, path, x, y)
        if seen is None:
            return y
        shape = y.shape
        chunk, x, y = seen
        if path in self.order:
            raise reached_twice(path)
        self.order.append(path)
        if path in self.waiting and chunk is self.chunks[0] and self._has_room():
            self.measurements[path] = Measurement.open(
                self.problem, path, module, x, y, self._inputs
            )
        measurement = self.measurements.get(path)
        codes = None if measurement is None else measurement.add(chunk, x, y)
        if path not in self._worn:
            merged = None if self.merged is None else self.merged[path]
            self._worn[path] = worn_at(path, self.problem.adapters, self.problem.tasks, merged, x)
        return add_deltas(module, chunk, x, y, self._worn[path], codes).reshape(shape)

    def _has_room(self) -> bool:
        taken = sum(measurement.sum_bytes() for measurement in self.measurements.values())
        return taken < _STATISTICS_BYTES
