"""The fidelity of a merged adapter: the errors of the network's output against each task's teacher.

Residuals of single layers say where a merge suffers. What counts for the user is the network's
output, on samples that the solve did not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..network import Network
from ..progress import Progress, nobody
from ..rows.outputs import Rows, outputs_of
from ..tasks import Task
from .runs import RunFidelity, TaskFidelity


@dataclass(frozen=True)
class Compared:
    """A task, and what is compared with its teachers and students, where, and run by run.

    Args:
        task: A task with samples that the merge did not see, for an honest figure.
        base_reads: Inputs of the base model's rows, one a sample.
        runs: Number of samples in each sampling run, in the order of the samples; within a run they
            are alike.
        masks: What the outputs of its samples are multiplied by, one a sample; None: all of them
            counts.
    """

    task: Task
    base_reads: Sequence[Any]
    runs: Sequence[int]
    masks: Sequence[Tensor] | None = None


def fidelity(
    network: Network,
    adapters: Sequence[Adapter],
    compared: Sequence[Compared],
    merged: Adapter,
    *,
    row_key: Callable[[Any], Hashable],
    samples_per_chunk: int = 8,
    progress: Progress = nobody,
) -> tuple[TaskFidelity, ...]:
    """Compare a merged adapter with each task's teacher, and with the base model.

    The rows of all tasks share forward calls, and rows that are the same run once.

    Args:
        network: The base model; its forward returns a tensor. Untouched afterwards.
        merged: The adapter that the student rows wear.
        row_key: See `Rows`.
        samples_per_chunk: Samples of one forward call, two rows each.

    Raises:
        CalibrationError: The network returns rows that are not finite.
        PeerError: Another process failed.
    """
    rows = Rows(row_key)
    numbers = [_add_rows(rows, each, len(adapters)) for each in compared]
    worn = [*adapters, merged]
    outputs = outputs_of(network, worn, rows, 2 * samples_per_chunk, progress)
    return tuple(
        _task_fidelity(each.task, _sums(each, [[outputs[i] for i in mix] for mix in of_task]))
        for each, of_task in zip(compared, numbers, strict=True)
    )


def _add_rows(rows: Rows, compared: Compared, merged: int) -> list[list[int]]:
    """Add a task's rows, and return the numbers of its teachers, students and references.

    Args:
        merged: Number of the merged adapter, which follows all others.
    """
    task = compared.task
    reference = {} if _wears(task) else {k: 1.0 for k in range(merged)}
    return [
        [rows.add(sample.teacher, task.mix) for sample in task.samples],
        [rows.add(sample.student_reads, {merged: 1.0}) for sample in task.samples],
        [
            rows.add(reads, reference)
            for _, reads in zip(task.samples, compared.base_reads, strict=True)
        ],
    ]


def _wears(task: Task) -> bool:
    """Whether a task's teacher wears anything."""
    return any(task.mix.values())


def _sums(compared: Compared, outputs: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the sums of `_squares` over each of a task's sampling runs, (runs, 3).

    Args:
        outputs: Those of teachers, students and references, one a sample.
    """
    if compared.masks is not None:
        outputs = [
            [row * mask.to(row) for row, mask in zip(rows, compared.masks, strict=True)]
            for rows in outputs
        ]
    squares = _squares(compared.task, *(torch.stack(list(rows)) for rows in outputs))
    sizes = torch.tensor(compared.runs)
    run_of = torch.arange(len(sizes)).repeat_interleave(sizes)
    sums = torch.zeros(len(sizes), 3, dtype=torch.float64)
    return sums.index_add_(0, run_of, squares)


def _squares(task: Task, *outputs: Tensor) -> Tensor:
    """Return ``||student - teacher||^2, <student - reference, teacher - reference>, ||teacher -
    reference||^2`` of each sample, (samples, 3).

    Args:
        outputs: Those of teacher, student and reference.
    """
    teacher, student, reference = (output.double().flatten(1) for output in outputs)
    effect = teacher - reference
    sums = torch.stack(
        [
            (student - teacher).square().sum(1),
            ((student - reference) * effect).sum(1),
            effect.square().sum(1),
        ],
        dim=1,
    )
    if not torch.isfinite(sums).all():
        raise not_finite(task)
    return sums


def not_finite(task: Task) -> CalibrationError:
    return CalibrationError(
        f"task {task.name!r}: the network's output is not finite, most likely since half "
        "precision overflows. Run the model in bfloat16 or float32, or lower the strengths"
    )


def _task_fidelity(task: Task, sums: Tensor) -> TaskFidelity:
    """Return the figures of a task. Every run counts alike: what a picture will show is decided at
    noise levels where the squares are small.

    Args:
        sums: See `_sums`.
    """
    wears = _wears(task)
    runs = tuple(
        RunFidelity(_relative(difference, effect), along / effect if wears and effect else None)
        for difference, along, effect in sums.tolist()
    )
    return TaskFidelity.of(task.name, runs, len(task.samples))


def _relative(difference: float, effect: float) -> float:
    # where teacher and reference are the same, any difference is infinitely worse than none
    without_effect = math.inf if difference else 0.0
    return (difference / effect) ** 0.5 if effect else without_effect
