"""What the layers of a merge do worse than something simpler would do, told in words: for merges
that are not checked on unseen samples.

A merge that solved every layer may still have failed: LoRAs that want opposite things, a ridge that
is far too small or too large, too few samples. The figures that a report has anyway show it. Where
there is a check, the verdict judges by that alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..layers import OTHER, block_of
from ..settings import called

# What does better: the base model alone; the LoRAs' average; all LoRAs stacked.
Simpler = Literal["nothing", "average", "stack"]

# An error counts as larger than another from this factor on, and only if it is worth a word.
_MARGIN = 1.02
# Unit gain makes the residuals of layers larger on purpose: merges that hold on unseen samples have
# 1.1 and more. So only this much more than nothing is an alarm.
_NOTHING = 1.5
_SMALLEST = 0.05


@dataclass(frozen=True)
class Alarm:
    """A task that something simpler does better than the merged adapter.

    Args:
        task: Name of the task.
        than: What does better.
        error: Error of the merged adapter, the median of the layers' residuals.
        other: The same error of what does better.
        layers: The layers where the task suffers most, the worst first.
    """

    task: str
    than: Simpler
    error: float
    other: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class TaskErrors:
    """The errors of one task, medians over layers.

    Args:
        task: Name of the task.
        error: That of the merged adapter; that of the base model is 1, or of all adapters stacked
            where the teacher wears nothing.
        averaged: That of the adapters' average; None where it was not measured, or where an adapter
            is alone, since it is its own average.
        wears: Whether the teacher wears anything.
        layers: The layers where the task suffers most, the worst first.
    """

    task: str
    error: float
    averaged: float | None
    wears: bool
    layers: tuple[str, ...]


def alarms_of(errors: Sequence[TaskErrors]) -> tuple[Alarm, ...]:
    """Return the tasks that something simpler does better, of the errors of all tasks."""
    loses = _loses_to_average(errors)
    alarms = []
    for found in errors:
        if _is_larger(found.error, _NOTHING):
            than: Simpler = "nothing" if found.wears else "stack"
            other = 1.0
        elif (
            loses
            and found.wears
            and found.averaged is not None
            and _is_larger(found.error, found.averaged)
        ):
            than = "average"
            other = found.averaged
        else:
            continue
        alarms.append(Alarm(found.task, than, found.error, other, found.layers))
    return tuple(alarms)


def warnings_of(alarms: Sequence[Alarm]) -> list[str]:
    """Return the alarms in sentences for the user, and last what to try; empty without any."""
    if not alarms:
        return []
    kinds = {alarm.than for alarm in alarms}
    names = {name: called(name) for name in ("alpha", "unit_gain", "preserve_weight")}
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


def _loses_to_average(errors: Sequence[TaskErrors]) -> bool:
    """Whether the average has the smaller errors over all tasks together. A task alone does not
    show it: the base model's is one of them, and the average is far from that.
    """
    both = [(e.error, e.averaged) for e in errors if e.averaged is not None]
    merged, averaged = (math.hypot(*side) for side in zip(*both, strict=True)) if both else (0, 0)
    return _is_larger(merged, averaged)


def _is_larger(error: float, other: float) -> bool:
    return not error <= max(_MARGIN * other, _SMALLEST)  # NaN is not a good error either
