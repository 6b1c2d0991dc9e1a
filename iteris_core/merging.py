"""Merge adapters into one: check, sweep, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from .adapters import Adapter, mean_vectors, target_layers
from .algebra.solve import LayerSolver
from .algebra.truncate import share_out_size
from .config import MergeConfig
from .engines.iterate import iterate
from .engines.sweep import EngineResult, Progress, Watch, sweep
from .errors import AdapterError, ConfigError
from .network import Network
from .report.records import MergeReport
from .rivals import METHODS, best_scale, layers_that_read_text
from .rivals.output_error import OutputError
from .rows.chunks import worn_delta
from .tasks import Task, check_tasks, without_idle_adapters

Engine = Callable[..., EngineResult]  # takes what `sweep.sweep` takes, but for the solver


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
    watch: Watch | None = None,
) -> MergeResult:
    """Merge adapters into the one that does, on the inputs that the merged model sees, what each of
    them does on its own.

    Args:
        network: The base model.
        adapters: One or more. Adapters without deltas are left out, with the tasks that only they
            teach.
        tasks: What to reproduce; usually one per adapter, and a preserve task.
        config: See `MergeConfig`; None: its defaults.
        progress: Called as ``progress(layers solved, layers in all)``; may raise to cancel.
        watch: Told each layer's report the moment it is solved; again where layers are solved
            again.

    Raises:
        AdapterError, CalibrationError, SolveError: See `sweep.sweep`.
    """
    check_tasks(adapters, tasks)
    kept, kept_tasks = without_idle_adapters(adapters, tasks)
    if not target_layers(kept):
        raise AdapterError(
            "none of the adapters changes anything: every strength is 0, or the files hold no "
            "deltas"
        )
    check_tasks(kept, kept_tasks)
    config = config or MergeConfig()
    _check_ranks(config, kept)
    if config.method == "iteris":
        engine = sweep if config.engine == "sweep" else iterate
        notes = []
    else:
        engine, notes = _Rival(network, kept, kept_tasks, config, progress).engine()
    result = _solve(partial(engine, watch=watch), network, kept, kept_tasks, config, progress)
    names = [adapter.name for adapter in kept]
    idle = [adapter.name for adapter in adapters if adapter.is_idle]
    if idle:
        notes.append(f"left out, since they change nothing here: {', '.join(idle)}")
    report = MergeReport(
        layers=tuple(layer.report() for layer in result.layers.values()),
        changes=result.changes,
        memory_bytes=result.memory_bytes,
        unmatched={adapter.name: adapter.unmatched for adapter in adapters if adapter.unmatched},
        notes=tuple(notes),
    )
    deltas = {path: layer.saved for path, layer in result.layers.items()}
    return MergeResult(
        Adapter(" + ".join(names), deltas, vectors=mean_vectors(kept)), report, result.outputs
    )


def _check_ranks(config: MergeConfig, adapters: Sequence[Adapter]) -> None:
    shapes = {path: delta.shape for adapter in adapters for path, delta in adapter.deltas.items()}
    unknown = (
        [path for path in config.rank if path not in shapes]
        if isinstance(config.rank, Mapping)
        else []
    )
    if unknown:
        raise ConfigError(
            f"rank names {unknown[0]!r}, which no adapter changes; the layers are "
            f"{', '.join(list(shapes)[:3])}, ..."
        )
    least = sum(sum(shape) for shape in shapes.values())
    if config.size is not None and config.size < least:
        raise ConfigError(
            f"size is {config.size}; {len(shapes)} layers of rank 1 take {least} weights already. "
            "Allow more"
        )


def _solve(
    engine: Engine,
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig,
    progress: Progress | None,
) -> EngineResult:
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


@dataclass(frozen=True)
class _Rival:
    """A merge by a rival method, with the arguments of `merge`."""

    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    config: MergeConfig
    progress: Progress | None

    @cached_property
    def output_error(self) -> OutputError:
        """What scales are searched by; measured when it is first asked for."""
        layers = len(target_layers(self.adapters))
        tell = (lambda: None) if self.progress is None else partial(self.progress, 0, layers)
        return OutputError(
            self.network, self.adapters, self.tasks, self.config.samples_per_chunk, tell
        )

    def engine(self) -> tuple[Engine, list[str]]:
        """Return what merges, once all that the method has to search is found; and what was found,
        for the user.
        """
        method = METHODS[self.config.method]
        name = self.config.method
        notes = []
        coefficients: Sequence[float] = ()
        if method.coefficients is not None:
            coefficients = method.coefficients(
                self.tasks, len(self.adapters), self.error_of_coefficients
            )
            if method.searches_coefficients:
                shares = ", ".join(f"{c:.3f}" for c in coefficients)
                notes.append(
                    f"{name}: coefficients {shares}, which gave the smallest output error on the "
                    "calibration samples"
                )
        scale = self.config.baseline.scale
        if scale is None:
            scale = "search" if method.searches_scale else 1.0
        if scale == "search":
            scale = best_scale(self.error_of_scale(self.engine_at(coefficients, 1.0)))
            notes.append(
                f"{name}: scale {scale:.3f}, which gave the smallest output error on the "
                "calibration samples"
            )
        if method.only_text:
            paths = target_layers(self.adapters)
            solved = layers_that_read_text(self.network).intersection(paths)
            notes.append(
                f"{name}: solved at {len(solved)} layers that read text, averaged at "
                f"{len(paths) - len(solved)} others"
            )
        return self.engine_at(coefficients, scale), notes

    def engine_at(self, coefficients: Sequence[float], scale: float) -> Engine:
        method = METHODS[self.config.method]
        text = layers_that_read_text(self.network)

        def solver_at(path: str) -> LayerSolver:
            return method.solver_of(path, path in text, len(self.adapters), coefficients, scale)

        def run(
            network: Network,
            adapters: Sequence[Adapter],
            tasks: Sequence[Task],
            config: MergeConfig,
            progress: Progress | None,
            watch: Watch | None = None,
        ) -> EngineResult:
            once = replace(config, ridge="consistent", alpha_cross=None, input_mix=0.0, max_iter=1)
            engine = iterate if method.inputs == "teacher" else sweep
            return replace(
                engine(network, adapters, tasks, once, progress, solver_at, watch), changes=()
            )

        return run

    def error_of_scale(self, engine: Engine) -> Callable[[float], float]:
        """Return the output's error as a function of the scale of what an engine merges."""
        found = _solve(engine, self.network, self.adapters, self.tasks, self.config, self.progress)
        unscaled = Adapter("merged", {path: layer.saved for path, layer in found.layers.items()})
        return lambda scale: self.output_error(unscaled.scaled(scale))

    def error_of_coefficients(self, coefficients: Sequence[float]) -> float:
        """Return the output's error with a weighted sum of the adapters."""
        worn = {
            path: worn_delta(path, self.adapters, dict(enumerate(coefficients)))
            for path in target_layers(self.adapters)
        }
        return self.output_error(
            Adapter("sum", {path: delta for path, delta in worn.items() if delta is not None})
        )
