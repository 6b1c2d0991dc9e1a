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
    worn = [*adapters, merged]
    everything = {k: 1.0 for k in range(len(adapters))}
    rows = Rows(row_key)
    numbers = []  # of the rows of each task and mix
    for each in compared:
        task = each.task
        mixes = [task.mix, {len(adapters): 1.0}, {} if any(task.mix.values()) else everything]
        reads = [
            (sample.teacher, sample.student_reads, base_reads)
            for sample, base_reads in zip(task.samples, each.base_reads, strict=True)
        ]
        numbers.append(
            [
                [rows.add(of_sample[place], mix) for of_sample in reads]
                for place, mix in enumerate(mixes)
            ]
        )
    outputs = outputs_of(network, worn, rows, 2 * samples_per_chunk, progress)
    fidelities = []
    for each, of_task in zip(compared, numbers, strict=True):
        answers = tuple(torch.stack([outputs[number] for number in of_mix]) for of_mix in of_task)
        if each.masks is not None:
            answers = tuple(
                torch.stack(
                    [row * mask.to(row) for row, mask in zip(rows_of, each.masks, strict=True)]
                )
                for rows_of in answers
            )
        sizes = torch.tensor(each.runs)
        run_of = torch.arange(len(sizes)).repeat_interleave(sizes)
        sums = torch.zeros(len(sizes), 3, dtype=torch.float64)
        sums.index_add_(0, run_of, _squares(each.task, *answers))
        fidelities.append(_task_fidelity(each.task, any(each.task.mix.values()), sums))
    return tuple(fidelities)


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
        f"task {task.name!r}: the network's output is not finite; a precision that overflows, or a "
        "NaN"
    )


def _task_fidelity(task: Task, wears: bool, sums: Tensor) -> TaskFidelity:
    """Return the figures of a task. Every run counts alike: what a picture will show is decided at
    noise levels where the squares are small.

    Args:
        wears: Whether its teacher wears anything.
        sums: The sums of `_squares` over each of its sampling runs, (runs, 3).
    """
    runs = tuple(
        RunFidelity(_relative(difference, effect), along / effect if wears and effect else None)
        for difference, along, effect in sums.tolist()
    )
    return TaskFidelity.of(task.name, runs, len(task.samples))


def _relative(difference: float, effect: float) -> float:
    # where teacher and reference are the same, any difference is infinitely worse than none
    without_effect = math.inf if difference else 0.0
    return (difference / effect) ** 0.5 if effect else without_effect
