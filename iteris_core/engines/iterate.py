"""The paper's own engine, Algorithm 1: infer, solve all layers, repeat, until nothing changes
(arXiv:2411.15231).

It reaches what the sweep gives at once. It is here to reproduce the paper, and to test the sweep.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, stack, target_layers
from ..algebra.solve import solve_layer
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..network import Network
from ..rows.chunks import Chunk, at_hand, dress, layer_hooks, split_into_chunks
from ..tasks import Task
from .measure import Measurement, SolvedLayer
from .shared_inputs import SharedInputs
from .sweep import (
    EngineResult,
    Progress,
    SolverAt,
    Watch,
    check_all_reached,
    check_targets,
    current_chunk,
    outputs_by_task,
    reached_twice,
    run_chunk,
)


def iterate(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig,
    progress: Progress | None = None,
    solver_at: SolverAt = lambda path: solve_layer,
    watch: Watch | None = None,
) -> EngineResult:
    """Solve all target layers again and again, each time on the inputs that the last answer leads
    to.

    The first solve uses ``X~ = X``. Solve number n settles all layers with at most n - 1 measured
    inputs before them, so there are never more solves than different inputs; fewer if no layer
    changes by more than ``config.tolerance``, or if ``config.max_iter`` is reached. Activations are
    never stored: layers whose statistics do not fit into ``config.statistics_bytes`` together are
    measured in another pass over the same rows, with the same result.

    Args, Raises: See `sweep.sweep`.
    """
    check_targets(network, adapters)
    return with_smaller_calls(
        lambda size: _iterate(
            network,
            adapters,
            tasks,
            replace(config, samples_per_chunk=size),
            progress,
            solver_at,
            watch,
        ),
        config.samples_per_chunk,
        "the iteration",
    )


def _iterate(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig,
    progress: Progress | None,
    solver_at: SolverAt,
    watch: Watch | None,
) -> EngineResult:
    state = _Iteration(
        network,
        adapters,
        tasks,
        config,
        solver_at,
        watch,
        split_into_chunks(tasks, config.samples_per_chunk),
    )
    paths = target_layers(adapters)
    modules = {path: network.modules[path] for path in paths}
    changes: list[float] = []
    with torch.no_grad(), layer_hooks(modules, state.at_layer):
        for number in range(config.max_iter):
            solved = state.solve_all(
                paths, partial(_tell, progress, number * len(paths), config.max_iter * len(paths))
            )
            changes.append(_largest_change(state.merged, solved))
            state.merged = {path: layer.saved for path, layer in solved.items()}
            state.on_device.clear()
            if changes[-1] <= config.tolerance or number + 1 >= state.different_inputs:
                break
        answers = state.run_all()
    cpu = {
        path: replace(layer, saved=layer.saved.to(device="cpu")) for path, layer in solved.items()
    }
    return EngineResult(cpu, outputs_by_task(tasks, state.chunks, answers), tuple(changes))


def _tell(progress: Progress | None, start: int, total: int, done: int) -> None:
    if progress is not None:
        progress(start + done, total)


def _largest_change(before: dict[str, LowRankDelta] | None, after: dict[str, SolvedLayer]) -> float:
    if before is None:
        return 1.0  # everything is new
    changes = []
    for path, layer in after.items():
        new = layer.saved.to(dtype=torch.float64)
        difference = stack([new, before[path].to(dtype=torch.float64)], [1.0, -1.0])
        changes.append(
            (difference.squared_norm().clamp_min(0) / new.squared_norm().clamp_min(1e-300)).sqrt()
        )
    return torch.stack([change.cpu() for change in changes]).max().item()


@dataclass
class _Iteration:
    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    config: MergeConfig
    solver_at: SolverAt
    watch: Watch | None
    chunks: list[Chunk]
    merged: dict[str, LowRankDelta] | None = None
    different_inputs: int = 0
    waiting: set[str] = field(default_factory=set)
    open: dict[str, Measurement] = field(default_factory=dict)
    inputs: SharedInputs = field(default_factory=SharedInputs)
    reached: list[str] = field(default_factory=list)
    on_device: dict[str, tuple[list[LowRankDelta | None], LowRankDelta | None]] = field(
        default_factory=dict
    )
    first_chunk: bool = True

    def solve_all(self, paths: Sequence[str], tell: Any) -> dict[str, SolvedLayer]:
        """Measure and solve every layer on the present rows, in as many passes as the statistics
        need.
        """
        self.waiting = set(paths)
        solved = {}
        inputs = 0
        while self.waiting:
            self.open = {}
            self.inputs = SharedInputs()
            self.run_all()
            check_all_reached(paths, self.reached)
            for path, measurement in self.open.items():
                solved[path] = measurement.solve(self.config.rank_at(path), self.solver_at(path))
                inputs += measurement.first_of_its_input
                tell(len(solved))
                if self.watch is not None:
                    self.watch(solved[path].report())
            self.waiting -= set(self.open)
        self.open = {}
        self.different_inputs = inputs
        return {path: solved[path] for path in self.reached}

    def run_all(self) -> list[Any]:
        """Run all chunks, one after the other."""
        answers = []
        for number, chunk in enumerate(self.chunks):
            self.first_chunk = number == 0
            self.reached = []
            answers.append(contextvars.copy_context().run(run_chunk, self.network, chunk))
        return answers

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure a chunk's rows if it is this layer's turn, and dress them in the last answer."""
        chunk = current_chunk(path, x)
        if chunk is None:
            return y
        if path in self.reached:
            raise reached_twice(path)
        self.reached.append(path)
        if path in self.waiting and self.first_chunk and self._has_room():
            self.open[path] = Measurement.open(
                path,
                self.network.stream(path),
                module,
                x,
                self.adapters,
                self.tasks,
                self.config,
                self.inputs,
            )
        codes = self.open[path].add(module, chunk, x, y, self.inputs) if path in self.open else None
        if path not in self.on_device:
            merged = self.merged and self.merged[path]
            self.on_device[path] = at_hand(path, self.adapters, self.tasks, merged, x)
        return dress(module, chunk, x, y, *self.on_device[path], codes)

    def _has_room(self) -> bool:
        return (
            sum(measurement.sum_bytes() for measurement in self.open.values())
            < self.config.statistics_bytes
        )
