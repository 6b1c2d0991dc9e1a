"""The input and the result of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..adapters import Adapter, LowRankDelta, target_layers
from ..algebra.layer import LayerSolver
from ..algebra.solve import solve_layer
from ..config import MergeConfig
from ..memory import UNLIMITED, Room
from ..network import Network
from ..processes import Processes
from ..progress import Progress
from ..report.records import LayerReport
from ..tasks import Task

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

    def with_settings(self, **settings: Any) -> Problem:
        """Return the same problem with other fields of its `MergeConfig`."""
        return replace(self, config=replace(self.config, **settings))


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
# Brings every layer of a problem to its solver, with the statistics of its inputs.
Engine = Callable[[Problem, SolverAt, Progress], EngineResult]


def iteris_at(_path: str) -> LayerSolver:
    """Return the closed form of IterIS, which is the same at every layer."""
    return solve_layer
