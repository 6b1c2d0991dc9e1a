"""Merge adapters into one: check, solve, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .adapters import (
    Adapter,
    check_adapters,
    mean_vectors,
    merged_adapter,
    target_layers,
    target_shapes,
)
from .config import BaselineOptions, MergeConfig
from .engines.problem import EngineResult, Outputs, Problem
from .engines.sweep import sweep
from .errors import ConfigError
from .memory import UNLIMITED, Room
from .network import Network
from .processes import Processes
from .progress import Progress, nobody
from .report.records import LayerReport, MergeReport, Note
from .settings import label, value_label
from .tasks import Task, check_tasks, without_idle_adapters

logger = logging.getLogger("iteris")
_MUCH_UNREAD = 0.05  # of a file's keys: no longer a stray one or two


@dataclass(frozen=True)
class MergeResult:
    """What comes out of a merge.

    Args:
        outputs: Output rows of every teacher and student, see `engines.problem.EngineResult`.
    """

    adapter: Adapter
    report: MergeReport
    outputs: Outputs | None = None


def merge(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig | None = None,
    *,
    room: Room = UNLIMITED,
    progress: Progress = nobody,
) -> MergeResult:
    """Merge adapters into the one that does, on the inputs that the merged model sees, what each of
    them does on its own.

    Inside a process group of `torch.distributed`, every process is given the same, and measures a
    share of the samples; see `processes`. The result is the same in all.

    Args:
        adapters: One or more. Adapters without deltas are left out, with the tasks that only they
            teach.
        tasks: What to reproduce; usually one task per adapter, and a preserve task.
        room: What the machine allows: rows of a forward call, and of those that wait.
        progress: Called as ``progress(layers solved, layers in all)``; may raise to cancel.

    Raises:
        AdapterError: Adapters that change no layer's weight, hold NaN or infinity, or do not fit
            the model.
        CalibrationError: Tasks or a network that cannot be measured.
        ConfigError: Settings that do not fit the adapters or the method.
        SolveError: A layer without a usable solution; with its path.
        OutOfMemoryError: The device has too little memory even for a single sample, or for a
            layer's solve.
        PeerError: Another process failed.
    """
    config = config or MergeConfig()
    check_adapters(adapters)
    check_tasks(adapters, tasks)
    if config.method != "iteris" or config.baseline != BaselineOptions():
        from .rivals.methods import check_options  # loaded only where rivals come in

        check_options(config)
    check_ranks(config, adapters)
    if not config.measured:
        return merge_files(adapters, config, progress)
    processes = Processes.current()
    check_given_the_same(processes, adapters, tasks, (config.to_dict(), room))
    problem = Problem(network, *without_idle_adapters(adapters, tasks), config, processes, room)
    logger.info("merging %d layers by %s", len(problem.paths), config.method)
    notes: list[Note] = []
    if config.method != "iteris":
        from .rivals.methods import merge_by_rival

        result, notes = merge_by_rival(problem, progress)
    elif config.engine == "iterate":
        from .engines.iterate import iterate  # loaded only where the paper's loop is asked for

        result = iterate(problem, progress=progress)
    else:
        result = sweep(problem, progress=progress)
    deltas = {path: layer.saved for path, layer in result.layers.items()}
    merged = merged_adapter(problem.adapters, deltas)
    return MergeResult(merged, _report(problem, adapters, result, notes), result.outputs)


def merge_files(
    adapters: Sequence[Adapter], config: MergeConfig, progress: Progress = nobody
) -> MergeResult:
    """Merge adapters by their deltas alone, without a model; see `rivals.methods`.

    Args:
        adapters: Adapters of one model, at least one that changes something; by the method np_lora,
            the directions that the first one reads are kept free of the others.
        config: Settings with a method of `config.DATA_FREE`.

    Raises:
        AdapterError: Adapters that do not fit each other.
        SolveError: A result that is not finite.
    """
    from .rivals.methods import merge_deltas

    adapters = [adapter for adapter in adapters if not adapter.is_idle]
    deltas, layers = merge_deltas(adapters, config, progress)
    report = MergeReport(
        layers=layers,
        notes=(*notes_about_unread(adapters), *notes_about_vectors(adapters)),
        method=config.method,
        is_measured=False,
    )
    return MergeResult(merged_adapter(adapters, deltas), report)


def _report(
    problem: Problem, adapters: Sequence[Adapter], result: EngineResult, notes: Sequence[Note]
) -> MergeReport:
    config = problem.config
    layers = tuple(layer.report for layer in result.layers.values())
    idle = ", ".join(adapter.name for adapter in adapters if adapter.is_idle)
    left_out = f"left out, since they change nothing here: {idle}"
    return MergeReport(
        layers=layers,
        notes=(
            *notes,
            *notes_about_unread(adapters),
            *([Note("left_out", left_out)] if idle else []),
            *notes_about_precision(result),
            *(notes_about_tasks(problem.tasks, layers) if config.method == "iteris" else []),
            *notes_about_vectors(adapters),
        ),
        changes=result.changes,
        method=config.method,
    )


def check_given_the_same(
    processes: Processes, adapters: Sequence[Adapter], tasks: Sequence[Task], settings: object
) -> None:
    """Refuse processes that were given different things to merge.

    Raises:
        ConfigError: Says what differs.
        PeerError: Another process failed.
    """
    if processes.is_alone:
        return
    processes.check_same("settings", repr(settings))
    described = [(task.name, dict(task.mix), task.weight, len(task.samples)) for task in tasks]
    processes.check_same("tasks", repr(described))
    digests = [(adapter.name, adapter.digest()) for adapter in adapters]
    processes.check_same("adapters", repr(digests))


def notes_about_unread(adapters: Sequence[Adapter]) -> list[Note]:
    """Return a note about each adapter's keys that belong to no module of the model."""
    notes = []
    for adapter in adapters:
        keys = adapter.unmatched
        if adapter.unread > _MUCH_UNREAD:
            text = (
                f"{adapter.name}: {100 * adapter.unread:.0f} % of its file was not read, since "
                f"{len(keys)} keys belong to no module of this model, such as {keys[0]}. The merge "
                "is without that part of it: use a LoRA made for this model, or one in the names "
                "of another trainer"
            )
            notes.append(Note("unread", text))
        elif keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            text = f"{adapter.name}: {len(keys)} keys belong to no module of this model: {shown}"
            notes.append(Note("unmatched", text))
    return notes


def notes_about_precision(result: EngineResult) -> list[Note]:
    """Return notes about layers that need more precision than usual, or have less."""
    layers = result.layers
    coarse = [path for path, layer in layers.items() if layer.was_too_coarse]
    rounded = [path for path, layer in layers.items() if layer.drift_is_rounded]
    said = (
        (coarse, "were solved in float64, since float32 is too coarse for their inputs", ""),
        (
            rounded,
            "have no weight that can be read",
            ": how far their inputs have drifted was measured as the difference of outputs in half "
            "precision, whose rounding may outweigh it. Merge on the model in float32, or set "
            f"{label('target')} to {value_label('target', 'delta')!r}",
        ),
    )
    return [
        Note("method", f"{len(paths)} of {len(layers)} layers {what}, such as {paths[0]!r}{more}")
        for paths, what, more in said
        if paths
    ]


def notes_about_tasks(tasks: Sequence[Task], layers: Sequence[LayerReport]) -> list[Note]:
    """Return notes about tasks that have no say at some layers, and those that hardly do anything
    on their own inputs there.
    """
    unheard = {
        task.name: [
            layer.path for layer in layers if task.name not in {e.task for e in layer.tasks}
        ]
        for task in tasks
        if task.weight
    }
    blind = {
        task.name: [
            layer.path for layer in layers for e in layer.tasks if e.task == task.name and e.limited
        ]
        for task in tasks
    }
    said = (
        (unheard, "these have no say, since none of their words or regions count"),
        (blind, "these change almost nothing on their own prompts, and count for less"),
    )
    return [
        Note(
            "method",
            f"at some layers {what}: "
            + ", ".join(
                f"{name} at {len(paths)} of {len(layers)} layers"
                for name, paths in found.items()
                if paths
            ),
        )
        for found, what in said
        if any(found.values())
    ]


def notes_about_vectors(adapters: Sequence[Adapter]) -> list[Note]:
    """Return a note about changes of biases and norms, which no figure of a report sees.

    It tells how far their mean is from each adapter's own: ``||v_k - mean|| / ||v_k||``.
    """
    used = [adapter for adapter in adapters if not adapter.is_idle]
    mean = mean_vectors(used)
    if not mean:
        return []
    losses = []
    for adapter in used:
        own = {path: vector.double() for path, vector in adapter.vectors.items()}
        size = sum(vector.square().sum().item() for vector in own.values())
        lost = sum((v - mean[path].double()).square().sum().item() for path, v in own.items())
        if size:
            losses.append(f"{adapter.name} {(lost / size) ** 0.5:.0%}")
    lost_by = f" (distance of the mean: {', '.join(losses)})" if losses else ""
    return [
        Note(
            "vectors",
            f"{len(mean)} bias and norm changes are merged by their mean{lost_by}; the "
            "calibration ran without them, and no figure here counts them",
        )
    ]


def check_ranks(config: MergeConfig, adapters: Sequence[Adapter]) -> None:
    """Refuse ranks of layers that no adapter changes.

    Raises:
        ConfigError: Names the layer.
    """
    shapes = target_shapes(adapters)
    named = config.rank if isinstance(config.rank, Mapping) else {}
    unknown = [path for path in named if path not in shapes]
    if unknown:
        raise ConfigError(
            f"rank names {unknown[0]!r}, which no adapter changes; the layers are "
            f"{', '.join(list(shapes)[:3])}, ..."
        )


def config_of_part(config: MergeConfig, part: Sequence[Adapter]) -> MergeConfig:
    """Return the settings for one part of the model, with the ranks of its layers alone."""
    if not isinstance(config.rank, Mapping):
        return config
    paths = target_layers(part)
    return replace(config, rank={path: r for path, r in config.rank.items() if path in paths})
