"""Tasks of a merge: samples, and the mix of adapters that their teacher wears."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, repeated_name
from .errors import CalibrationError

PRESERVE_TASK = "base model (preserve)"  # its name, where its teacher is the base model
# A number per token, or what gives them for a layer's number of tokens: layers see a picture at
# several resolutions.
PerToken = Tensor | Callable[[int], Tensor]


@dataclass(frozen=True)
class Sample:
    """One calibration sample: a row of the batch for the teacher and one for the student.

    Args:
        teacher: Input of the teacher row, of the type that the network's ``forward`` takes for one
            row.
        student: Input of the student row, with the same number of tokens; None: the teacher's.
        token_weights: Stream of the network (``text``, ``image``, ...) -> weights (tokens,) in the
            statistics, or a function from a layer's number of tokens to them. 0 leaves a token out;
            a stream that is not named counts every token once.
        teacher_tokens: Stream -> number of the teacher's token that answers to each token of the
            student, (tokens,), or a function from a layer's number of tokens to them. In a stream
            that is not named, tokens with the same number answer to each other.
    """

    teacher: Any
    student: Any = None
    token_weights: Mapping[str, PerToken] = field(default_factory=dict)
    teacher_tokens: Mapping[str, PerToken] = field(default_factory=dict)

    @property
    def student_reads(self) -> Any:
        return self.teacher if self.student is None else self.student

    def weights_of(self, stream: str, tokens: int) -> Tensor:
        """Return the weights that a layer with this many tokens needs, (tokens,) if they fit."""
        weights = self.token_weights.get(stream, torch.ones)
        return weights(tokens) if callable(weights) else weights

    def teacher_tokens_of(self, stream: str, tokens: int) -> Tensor:
        """Return the teacher's token for each of the student's in a layer with this many, (tokens,)
        if they fit.
        """
        numbers = self.teacher_tokens.get(stream, torch.arange)
        return numbers(tokens) if callable(numbers) else numbers


@dataclass(frozen=True)
class Task:
    """A calibration group.

    Args:
        samples: Samples to measure, at least one.
        mix: Index of an adapter -> share of it that the teacher wears: {n: 1.0} is adapter n's
            task, {} a preserve task, whose teacher is the base model.
        weight: The user's weight, 0 or more; only the ratios matter.
    """

    name: str
    samples: Sequence[Sample]
    mix: Mapping[int, float]
    weight: float = 1.0


def check_tasks(adapters: Sequence[Adapter], tasks: Sequence[Task]) -> None:
    """Refuse tasks that no engine could use.

    Raises:
        CalibrationError: No task; two tasks of one name; a task without samples, with an unusable
            weight, or with a mix that names no adapter; or no task that has a say and a teacher.
    """
    if not tasks:
        raise CalibrationError(
            "there is no task: give every adapter at least one calibration sample"
        )
    if twice := repeated_name(tasks):
        raise CalibrationError(
            f"two tasks are called {twice!r}, and a report could not tell them apart. Give each "
            "one a name of its own"
        )
    for task in tasks:
        if not task.samples:
            raise CalibrationError(
                f"task {task.name!r} has no samples; give it at least one prompt or input"
            )
        if not (math.isfinite(task.weight) and task.weight >= 0):
            raise CalibrationError(
                f"task {task.name!r} has weight {task.weight}; it must be a finite number, 0 or "
                "more"
            )
        broken = [share for share in task.mix.values() if not math.isfinite(share)]
        if broken:
            raise CalibrationError(
                f"task {task.name!r} wears an adapter at {broken[0]}; a share must be a finite "
                "number"
            )
        unknown = [k for k in task.mix if not 0 <= k < len(adapters)]
        if unknown:
            raise CalibrationError(
                f"task {task.name!r} wears adapter number {unknown[0]}; there are {len(adapters)} "
                "(from 0)"
            )
    if not any(task.weight > 0 and not _is_idle(adapters, task) for task in tasks):
        raise CalibrationError(
            "every task has weight 0, or only adapters that change nothing teach it: nothing would "
            "be measured; give at least one other task a positive weight"
        )


def _is_idle(adapters: Sequence[Adapter], task: Task) -> bool:
    """Whether only adapters that change nothing teach a task; never so of a preserve task."""
    taught_by = [k for k, share in task.mix.items() if share]
    return bool(taught_by) and all(adapters[k].is_idle for k in taught_by)


def without_idle_adapters(
    adapters: Sequence[Adapter], tasks: Sequence[Task]
) -> tuple[list[Adapter], list[Task]]:
    """Leave out adapters that change nothing (strength 0), and the tasks that only they teach.

    Returns:
        The other adapters, and the other tasks, whose mixes count those adapters from 0.
    """
    numbers = [k for k, adapter in enumerate(adapters) if not adapter.is_idle]
    position = {k: i for i, k in enumerate(numbers)}
    remaining = [
        replace(task, mix={position[k]: c for k, c in task.mix.items() if k in position and c})
        for task in tasks
        if not _is_idle(adapters, task)
    ]
    return [adapters[k] for k in numbers], remaining
