"""The figures of a merge's layers, and what the layers do worse than something simpler would do, in
words: for merges that are not checked on unseen samples.

A merge that solved every layer may still have failed: LoRAs that want opposite things, a ridge that
is far too small or too large, too few samples. The figures that a report has anyway show it. Where
there is a check, the verdict judges by that alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..blocks import OTHER, block_of
from ..settings import label

# What does better: the base model alone; the LoRAs' average; all LoRAs stacked.
Simpler = Literal["nothing", "average", "stack"]

# An error counts as larger than another from this factor on, and only if it is worth a word.
_MARGIN = 1.02
# Unit gain makes the residuals of layers larger on purpose: merges that hold on unseen samples have
# 1.1 and more. So only this much more than nothing is an alarm.
_NOTHING = 1.5
_SMALLEST = 0.05
_WORST_LAYERS = 3  # that an alarm names


@dataclass(frozen=True)
class Interference:
    """The effect of an adapter on another adapter's task, on the student's inputs.

    Args:
        stacked: ``||X~ dW_k^T|| / ||X dW_g^T||``, what it would add if the adapters were stacked,
            relative to what the task is about (see `TaskAtLayerReport.residual`).
        merged: The same after the merge: `stacked` times ``<X~ dW^T - X dW_g^T, X~ dW_k^T> / ||X~
            dW_k^T||^2``, the share that remains; below 0 if it was overcorrected.
    """

    adapter: str
    stacked: float
    merged: float


@dataclass(frozen=True)
class TaskAtLayerReport:
    """The figures of one task at one layer.

    Args:
        residual: ``||X dW_g^T - X~ dW^T|| / ||X dW_g^T||``, 0 is perfect; with the target
            ``full_output``, the drift of the inputs counts, too. It is found from sums of squares
            that cancel, so with a float32 or half-precision network a value below 3e-4 is rounding,
            and below 1e-3 where float64 is slow.
            Where the teacher wears nothing: what the merged adapter adds on the task's inputs,
            relative to what all adapters stacked would add.
        weight: lambda, the weight of the task in the solve.
        tokens: Number of tokens that were counted.
        wears: Whether the teacher wears anything here; it decides what the residual is relative to.
        interference: Interference of the adapters that the teacher does not wear.
        stacked: Residual of all adapters of this layer stacked, on the same inputs.
        averaged: Residual of their average, on the same inputs.
        energy: ``||X dW_g^T||^2``, which lambda balances between tasks.
        gain: ``<X~ dW^T, X dW_g^T> / ||X dW_g^T||^2``, how much of what the teacher adds here is
            there, 1 is all of it; None where the teacher wears nothing.
        limited: Whether lambda was limited, see `algebra.balance`: the teacher hardly acts on these
            inputs.
    """

    task: str
    residual: float
    weight: float
    tokens: int
    wears: bool = True
    interference: tuple[Interference, ...] = ()
    stacked: float | None = None
    averaged: float | None = None
    energy: float = 0.0
    gain: float | None = None
    limited: bool = False


@dataclass(frozen=True)
class LayerReport:
    """One target layer.

    Args:
        tasks: Figures of each task that counts here.
        cut: Cost of the cut to a lower rank: the part of the uncut answer's effect that is lost, 0
            to 1. As in `kept`, the rounding to the precision that is saved does not count.
        is_asked: Whether a lower rank was requested.
        kept: Share of the uncut answer's effect that a cut to rank 1, 2, ... keeps; empty where no
            cut was considered.
    """

    path: str
    rank: int
    tasks: tuple[TaskAtLayerReport, ...]
    cut: float = 0.0
    is_asked: bool = False
    kept: tuple[float, ...] = ()


@dataclass(frozen=True)
class Alarm:
    """A task that something simpler does better than the merged adapter.

    Args:
        error: Error of the merged adapter, the median of the layers' residuals.
        other: The same error of what does better.
        layers: The layers where the task suffers most, the worst first.
    """

    task: str
    than: Simpler
    error: float
    other: float
    layers: tuple[str, ...]


def alarms_of(layers: Sequence[LayerReport]) -> tuple[Alarm, ...]:
    """Return the tasks that something simpler does better, by the medians of their errors over
    layers. The base model's error is 1, as is the stack's where the teacher wears nothing.
    """
    by_task: dict[str, list[tuple[str, TaskAtLayerReport]]] = {}
    for layer in layers:
        for entry in layer.tasks:
            by_task.setdefault(entry.task, []).append((layer.path, entry))
    errors = {}
    for task, of_task in by_task.items():
        wears = any(entry.wears for _, entry in of_task)
        found = [(path, entry) for path, entry in of_task if entry.wears == wears]
        # an adapter that is alone at a layer is its own average
        averaged = [
            entry.averaged
            for _, entry in found
            if entry.averaged is not None and entry.averaged != entry.stacked
        ]
        error = _median([entry.residual for _, entry in found])
        worst = sorted(found, key=lambda place: -place[1].residual)[:_WORST_LAYERS]
        places = tuple(path for path, _ in worst)
        errors[task] = (error, _median(averaged) if averaged else None, wears, places)
    loses = _loses_to_average([both[:2] for both in errors.values()])
    alarms = []
    for task, (error, average, wears, places) in errors.items():
        if _is_larger(error, _NOTHING):
            alarms.append(Alarm(task, "nothing" if wears else "stack", error, 1.0, places))
        elif loses and wears and average is not None and _is_larger(error, average):
            alarms.append(Alarm(task, "average", error, average, places))
    return tuple(alarms)


def warnings_of(alarms: Sequence[Alarm]) -> list[str]:
    """Return the alarms in sentences for the user, and last what to try; empty without any."""
    if not alarms:
        return []
    kinds = {alarm.than for alarm in alarms}
    names = {name: label(name) for name in ("alpha", "unit_gain", "preserve_weight")}
    advice = [words.format(**names) for than, words in _ADVICE.items() if than in kinds]
    return [*map(_sentence, alarms), f"Try this: {'; '.join(advice)}."]


_ADVICE: dict[Simpler, str] = {
    "nothing": "give more prompts or samples, if there were few; then lower the strengths, merge "
    "fewer LoRAs at once, or set {alpha} to 1e-3 or {unit_gain} to 1; and check that the LoRAs "
    "were made for this model",
    "average": "the method average, or {alpha} 1e-3",
    "stack": "a larger {preserve_weight}, or lower strengths",
}
_THAN: dict[Simpler, str] = {
    # with the target full_output, what earlier layers do counts, too
    "nothing": "its layers are off by more than all that the LoRA does there",
    "average": "its layers do worse than a plain average of the LoRAs",
    "stack": "its layers do worse than all LoRAs stacked",
}


def _sentence(alarm: Alarm) -> str:
    places = dict.fromkeys(map(_place, alarm.layers))
    layers = f"; worst at {', '.join(places)}" if places else ""
    return (
        f"WARNING: the merge fails {alarm.task}: {_THAN[alarm.than]} (error "
        f"{alarm.error:.2f} instead of {alarm.other:.2f}, by the median{layers})"
    )


def _place(layer: str) -> str:
    block = block_of(layer)
    return layer if block == OTHER else block


def _loses_to_average(errors: Sequence[tuple[float, float | None]]) -> bool:
    """Whether the average has the smaller errors over all tasks together. A task alone does not
    show it: the base model's is one of them, and the average is far from that.
    """
    both = [pair for pair in errors if pair[1] is not None]
    merged, averaged = (math.hypot(*side) for side in zip(*both, strict=True)) if both else (0, 0)
    return _is_larger(merged, averaged)


def _median(errors: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, errors)) else statistics.median(errors)


def _is_larger(error: float, other: float) -> bool:
    return not error <= max(_MARGIN * other, _SMALLEST)  # NaN is not a good error either
