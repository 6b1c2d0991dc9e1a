"""Merge adapters into one: check, sweep, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .adapters import Adapter, mean_vectors, target_layers
from .config import MergeConfig
from .errors import AdapterError, ConfigError
from .iterate import iterate
from .network import Network
from .report import MergeReport
from .sweep import EngineResult, Progress, sweep
from .tasks import Task, check_tasks, without_idle_adapters
from .truncate import share_out_size


@dataclass(frozen=True)
class MergeResult:
    """The merged adapter, the report, and the rows' outputs (see `sweep.EngineResult`)."""

    adapter: Adapter
    report: MergeReport
    outputs: Any = None


def merge(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig | None = None,
    *,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge adapters into the one that does, on the inputs that the merged model sees, what each of them does on its own.

    Args:
        network: The base model.
        adapters: One or more. Adapters without deltas are left out, with the tasks that only they teach.
        tasks: What to reproduce; usually one per adapter, and a preserve task.
        config: See `MergeConfig`; None: its defaults.
        progress: Called as ``progress(layers solved, layers in all)``; may raise to cancel.

    Raises:
        AdapterError, CalibrationError, SolveError: See `sweep.sweep`.
    """
    check_tasks(adapters, tasks)
    kept, kept_tasks = without_idle_adapters(adapters, tasks)
    if not target_layers(kept):
        raise AdapterError("none of the adapters changes anything: every strength is 0, or the files hold no deltas")
    check_tasks(kept, kept_tasks)
    config = config or MergeConfig()
    _check_ranks(config, kept)
    result = _solve(network, kept, kept_tasks, config, progress)
    names = [adapter.name for adapter in kept]
    idle = [adapter.name for adapter in adapters if adapter.is_idle]
    report = MergeReport(
        layers=tuple(layer.report() for layer in result.layers.values()),
        changes=result.changes,
        memory_bytes=result.memory_bytes,
        unmatched={adapter.name: adapter.unmatched for adapter in adapters if adapter.unmatched},
        notes=(f"left out, since they change nothing here: {', '.join(idle)}",) if idle else (),
    )
    deltas = {path: layer.saved for path, layer in result.layers.items()}
    return MergeResult(Adapter(" + ".join(names), deltas, vectors=mean_vectors(kept)), report, result.outputs)


def _check_ranks(config: MergeConfig, adapters: Sequence[Adapter]) -> None:
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    unknown = [path for path in config.rank if path not in shapes] if isinstance(config.rank, Mapping) else []
    if unknown:
        raise ConfigError(
            f"rank names {unknown[0]!r}, which no adapter changes; the layers are {', '.join(list(shapes)[:3])}, ..."
        )
    least = sum(sum(shape) for shape in shapes.values())
    if config.size is not None and config.size < least:
        raise ConfigError(f"size is {config.size}; {len(shapes)} layers of rank 1 take {least} weights already. Allow more")


def _solve(
    network: Network, adapters: Sequence[Adapter], tasks: Sequence[Task], config: MergeConfig, progress: Progress | None
) -> EngineResult:
    engine = sweep if config.engine == "sweep" else iterate
    if config.size is None:
        return engine(network, adapters, tasks, config, progress)
    uncut = engine(network, adapters, tasks, config, progress)
    ranks = share_out_size(
        {path: layer.values for path, layer in uncut.layers.items()},
        {path: layer.saved.shape for path, layer in uncut.layers.items()},
        {path: layer.values.square().sum().item() for path, layer in uncut.layers.items()},
        config.size,
    )
    return engine(network, adapters, tasks, replace(config, size=None, rank=ranks), progress)
