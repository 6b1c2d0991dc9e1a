"""The single sweep: one forward pass that solves every target layer when the network reaches it.

A layer's student inputs depend only on the layers before it. So when teacher rows and student rows
go through the network in one batch, each layer can be solved the moment all rows have reached it,
and the student rows go on wearing the answer. That is the fixed point of the paper's Algorithm 1
(arXiv:2411.15231), in one pass instead of many.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters import LowRankDelta
from ..errors import CalibrationError
from ..memory import solving, with_smaller_calls
from ..progress import Progress, nobody
from ..rows.chunks import Chunk, split_into_chunks
from ..rows.lockstep import different_ways, pause, run_in_lockstep
from ..rows.wearing import (
    DeltaCache,
    Worn,
    add_deltas,
    as_worn,
    layer_hooks,
    unfolded,
    wearing,
    worn_at,
)
from ..settings import label, value_label
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
from .shared_inputs import Arrivals, Readers, Seen, SharedInputs

if TYPE_CHECKING:
    from ..rows.parking import Parking

logger = logging.getLogger("iteris")
# Some numbers of a row, and its shape; None if it is not a tensor of numbers.
Excerpt = tuple[Tensor, torch.Size] | None
# Numbers of a row, evenly spread, that are compared with the same row run alone.
_COMPARED = 1024
# How far apart they may be: calls of different sizes round differently, layer upon layer. Real
# faults are at 0.3 and more.
_FARTHEST = {8: 1e-4, 4: 0.05, 2: 0.2}  # by bytes of a number
_AT_THE_END = "the network's output"


def sweep(
    problem: Problem,
    solver_at: SolverAt = iteris_at,
    progress: Progress = nobody,
    *,
    parking: Parking | None = None,
) -> EngineResult:
    """Solve all target layers in one forward pass.

    If the device runs out of memory in a forward call, the sweep goes on from the layer that it has
    reached, with half as many samples in a call.

    Args:
        problem: Network, adapters, tasks and settings of the merge. The network is untouched
            afterwards, also after an exception.
        progress: Listener for (layers solved, layers in all); may raise to cancel.
        parking: Parking of the tensors of paused chunks; None: as ``waiting_bytes`` says.

    Raises:
        AdapterError: A delta that does not fit its module.
        ConfigError: A setting that reads the weight of a quantised layer.
        CalibrationError: A target layer that is reached twice, never, or not by every row; or a row
            that gets another answer when it runs alone.
        SolveError: A layer without a usable solution; its name and the cause are in the message.
    """
    check_problem(problem)
    budget = problem.room.waiting_bytes
    if parking is None and budget is not None:
        from ..rows.parking import Parking  # loaded only where rows may wait elsewhere

        parking = Parking(problem.network.modules.values(), budget=budget)
    if parking is not None:
        parking.keep(*(sample for task in problem.tasks for sample in task.samples))
    solved: dict[str, SolvedLayer] = {}

    def attempt(samples_per_chunk: int) -> EngineResult:
        chunks = split_into_chunks(problem.tasks, samples_per_chunk, problem.network)
        own = problem.processes.share(chunks)
        state = _Sweep(
            problem, solver_at, progress, parking if len(own) > 1 else None, solved, bool(own)
        )
        # inference mode has no count of in-place changes, by which shared inputs are recognised
        with problem.processes.together(), torch.inference_mode(False):
            return state.run(chunks, own)

    try:
        return with_smaller_calls(attempt, problem.room.samples_per_chunk, "the sweep")
    finally:
        if parking is not None:
            parking.close()


@dataclass
class _Stop:
    """A layer, with its measurement and then the deltas that chunks wear there.

    The measurement is dropped as soon as the layer is solved.
    """

    path: str
    worn: Worn
    arrivals: Arrivals
    measurement: Measurement | None


@dataclass
class _Sweep:
    """One pass over all chunks.

    Lifecycle:
        1. `run` lets one row run alone, see `_run_alone`, and then all chunks go.
        2. `at_layer` measures each chunk's rows at a layer, and lets the chunk wait there.
        3. `solve` solves the layer once all chunks wait; they go on to the next layer. Where an
           earlier layer has measured the same input, the first chunk solves it, and none waits.

    Args:
        solved: Layers that are solved already, by a pass that ran out of memory; this one adds to
            them.
        counts: Whether the rows count. A process without rows of its own repeats the first's.
    """

    problem: Problem
    solver_at: SolverAt
    progress: Progress
    parking: Parking | None
    solved: dict[str, SolvedLayer]
    counts: bool = True
    _chunks: Sequence[Chunk] = field(default=(), init=False)
    _alone: Mapping[str, Excerpt] = field(default_factory=dict, init=False)
    _solved_before: frozenset[str] = field(init=False)
    _reached: set[tuple[int, str]] = field(default_factory=set, init=False)
    _inputs: SharedInputs = field(default_factory=SharedInputs, init=False)
    _stops: dict[str, _Stop] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._solved_before = frozenset(self.solved)

    def run(self, chunks: list[Chunk], own: list[Chunk]) -> EngineResult:
        """Run chunks through the network, and solve every layer on the way.

        Args:
            own: Those of this process.
        """
        network = self.problem.network
        paths = self.problem.paths
        modules = {path: network.modules[path] for path in paths}
        mine = own or chunks[:1]
        self._chunks = mine
        self._inputs.widths, self._alone = _run_alone(self.problem, mine[0], modules)
        check_all_reached(paths, self._alone)
        workers = [partial(run_chunk, network, chunk) for chunk in mine]
        with torch.no_grad(), layer_hooks(modules, self.at_layer):
            answers = run_in_lockstep(workers, self.arrived, self.parking)
        self._check_all_went_the_same_way(paths)
        if isinstance(answers[0], Tensor | list):
            self._check_as_alone(_AT_THE_END, answers[0])
        answers = self.problem.processes.gather(answers if own else [])
        outputs = outputs_by_task(self.problem.tasks, chunks, answers)
        return EngineResult(self.solved, outputs)

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure a chunk's rows at a layer, wait until it is solved, add what the rows wear."""
        seen = seen_by_hook(self.problem.network, path, x, y)
        if seen is None:
            return y
        chunk, rows, outputs = seen
        if (id(chunk), path) in self._reached:
            raise reached_twice(path)
        self._reached.add((id(chunk), path))
        codes = None
        if path in self._solved_before:
            merged = self.solved[path].saved
            worn = worn_at(path, self.problem.adapters, self.problem.tasks, merged, rows)
        else:
            stop = self._stops.get(path) or self._open(path, module, rows, outputs)
            if stop.measurement is None:
                stop.arrivals.add(rows)
            elif stop.measurement.is_complete:
                stop.arrivals.add(rows)
                self.solve(path)
            else:
                codes = stop.measurement.add(chunk, rows, outputs)
                measured = Seen.of(rows)
                pause(path)
                _check_not_overwritten(path, measured, rows)
            worn = stop.worn
        outputs = add_deltas(module, chunk, rows, outputs, worn, codes)
        if chunk is self._chunks[0]:
            self._check_as_alone(path, outputs)
        return outputs.reshape(y.shape)

    def _check_as_alone(self, place: str, outputs: Tensor | list[Any]) -> None:
        """Refuse a network that answers the first chunk's last teacher differently than alone.

        Nothing else shows whether forward calls overwrite what others keep between layers, draw
        random numbers, or let rows see each other.
        """
        alone = self._alone[place]
        together = _excerpt(outputs[self._chunks[0].blocks[-1].teacher.stop - 1])
        if alone is None or together is None or alone[1] != together[1]:
            return  # rows are filled up to the longest of their call
        distance = _distance(alone[0], together[0])
        if distance <= _FARTHEST[alone[0].dtype.itemsize]:
            return
        what = place if place == _AT_THE_END else f"layer {place!r}"
        how = f"by {distance:.0%}" if math.isfinite(distance) else "and holds NaN or infinity"
        raise CalibrationError(
            f"the model answers a sample differently when it runs alone: {what} is the first that "
            f"differs, {how}. It may keep something between its layers that other samples' forward "
            "calls overwrite (a skip or a buffer), drop numbers at random, or let the rows of a "
            f"batch see each other, so that no row can be measured. {_what_helps()}"
        )

    def _open(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> _Stop:
        """Return the stop at a layer that the first chunk has reached."""
        measurement = Measurement.open(self.problem, path, module, x, y, self._inputs)
        worn = Worn(measurement.teachers(), None)
        stop = _Stop(path, worn, measurement.arrivals, measurement)
        self._stops[path] = stop
        self._keep(*worn.teachers)
        return stop

    def arrived(self, path: str) -> None:
        """Solve the layer where all chunks have arrived; all earlier layers are behind them."""
        self._check_all_went_the_same_way(self._stops)
        self._stops = {path: self._stops[path]}
        self.solve(path)

    def _check_all_went_the_same_way(self, paths: Iterable[str]) -> None:
        """Refuse chunks that skipped one of these layers."""
        for path in paths:
            for number, chunk in enumerate(self._chunks):
                if (id(chunk), path) not in self._reached:
                    what = f"chunk {number} did not reach {path!r}, which others did"
                    raise CalibrationError(different_ways(what))

    def solve(self, path: str) -> None:
        """Solve a layer whose rows have all been added."""
        stop = self._stops[path]
        assert stop.measurement is not None, f"{path} is solved already"
        place = stop.measurement.place
        start = time.perf_counter()
        stop.measurement.finish(counts=self.counts)
        # a complete measurement is solved inside the first chunk's call; and the rows of a single
        # chunk can wait elsewhere once it is cut in two
        smaller_calls_help = stop.measurement.is_complete or len(self._chunks) == 1
        named = nullcontext() if smaller_calls_help else solving(path)
        # so that a layer is solved in all processes or in none
        with self.problem.processes.together(), named:
            solved = stop.measurement.solve(self.solver_at(path))
            merged = as_worn(solved.saved, place)
        self._keep(merged)
        stop.worn = replace(stop.worn, merged=merged)
        stop.measurement = None  # one layer's sums at a time
        self.solved[path] = solved
        total = len(self.problem.paths)
        seconds = time.perf_counter() - start
        logger.debug("%s solved in %.3f s, %d of %d", path, seconds, len(self.solved), total)
        self.progress(len(self.solved), total)

    def _keep(self, *shared: LowRankDelta | None) -> None:
        """Keep deltas on the device while chunks are parked, since all chunks share them."""
        if self.parking is not None:
            self.parking.keep(*shared)


def _run_alone(
    problem: Problem, chunk: Chunk, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, int], dict[str, Excerpt]]:
    """Run the last teacher of a chunk by itself.

    Returns:
        `Readers.widths`, and the excerpt of each layer's output and of the network's, by place.
    """
    network = problem.network
    readers = Readers(network)
    excerpts: dict[str, Excerpt] = {}

    def at_layer(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if path in excerpts:
            raise reached_twice(path)
        readers.note(path, module, x)
        [row] = unfolded(1, y)[0] if network.folds_rows(path) else y
        excerpts[path] = _excerpt(row)
        return y

    block = chunk.blocks[-1]
    mixes = [problem.tasks[block.task].mix]
    nothing_kept = DeltaCache(0)  # each layer is called once
    worn = wearing(network.modules, problem.adapters, mixes, nothing_kept, network.folds_rows)
    # the hooks of what is worn come first
    with torch.no_grad(), layer_hooks(modules, at_layer), worn:
        answer = network.forward([block.samples[-1].teacher])
    if isinstance(answer, Tensor | list):
        excerpts[_AT_THE_END] = _excerpt(answer[0])
    return readers.widths(), excerpts


def _excerpt(row: Any) -> Excerpt:
    if not isinstance(row, Tensor) or not row.is_floating_point():
        return None
    flat = row.flatten()
    return flat[:: max(1, len(flat) // _COMPARED)].clone(), row.shape


def _check_not_overwritten(path: str, measured: Seen, rows: Tensor) -> None:
    """Refuse a network in which other chunks write into the input of a layer that waits."""
    if not measured.is_still(rows):
        raise CalibrationError(
            f"the input of layer {path!r} is overwritten by the forward call of other samples "
            f"before the layer has read it. {_what_helps()}"
        )


def _what_helps() -> str:
    return (
        "Remove the patch or hook that does so; for what is kept between layers alone, set "
        f"{label('engine')} to {value_label('engine', 'iterate')!r}"
    )


def _distance(alone: Tensor, together: Tensor) -> float:
    """Return ``||a - b|| / ||b||``."""
    a, b = (row.cpu().double() for row in (alone, together))
    # what is NaN or infinite in both is no difference; the solver names it
    is_same = (a == b) | (a.isnan() & b.isnan())
    difference = (a - b).masked_fill(is_same, 0.0).norm()
    size = b.nan_to_num(0.0, 0.0, 0.0).norm().clamp_min(torch.finfo(together.dtype).tiny)
    return float(difference / size)
