"""The fidelity of a merged adapter: the errors of the network's output against each task's teacher.

Residuals of single layers say where a merge suffers. What counts for the user is the network's
output, on samples that the solve did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..network import Network, in_calls
from ..progress import Progress, nobody
from ..ranks import Ranks
from ..rows.wearing import wearing
from ..tasks import Task
from .records import TaskFidelity


@dataclass(frozen=True)
class Comparison:
    """What teachers and students are compared with, and where.

    Args:
        base_reads: (task, sample) -> input of the base model's row.
        counts: (task, sample) -> how much each part of its output counts, a mask that the output
            can be multiplied by; None: all of it.
    """

    base_reads: Callable[[int, int], object]
    counts: Callable[[int, int], Tensor | None] = lambda task, sample: None


def fidelity(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    merged: Adapter,
    *,
    samples_per_chunk: int = 8,
    comparison: Comparison | None = None,
    progress: Progress = nobody,
) -> tuple[TaskFidelity, ...]:
    """Compare a merged adapter with each task's teacher, and with the base model.

    Args:
        network: The base model; its forward returns one entry per row. Untouched afterwards.
        adapters: Adapters that the tasks' mixes name by their number.
        tasks: Tasks with samples that the merge did not see, for an honest figure.
        merged: The adapter that the student rows wear.
        samples_per_chunk: Number of samples of one forward call; each is three rows.
        comparison: What is compared; None: whole outputs, with the base model on the teachers'
            inputs.
        progress: Listener for (samples done, samples in all); may raise to cancel.

    Raises:
        CalibrationError: The network returns nothing to compare, or rows that are not finite.
        PeerError: Another process failed.
    """
    ranks = Ranks.current()
    worn = [*adapters, merged]
    everything = {k: 1.0 for k in range(len(adapters))}
    fidelities = []
    done = 0
    total = sum(len(task.samples) for task in tasks)
    for g, task in enumerate(tasks):
        wears = any(task.mix.values())
        sums = torch.zeros(3, dtype=torch.float64)
        reads = [
            (
                sample.teacher,
                sample.student_reads,
                sample.teacher if comparison is None else comparison.base_reads(g, i),
            )
            for i, sample in enumerate(task.samples)
        ]
        keys = [tuple(map(network.call_key, of_sample)) for of_sample in reads]
        calls = in_calls(keys, samples_per_chunk)
        with ranks.together():
            for numbers in ranks.share(calls):
                mixes = [task.mix, {len(adapters): 1.0}, {} if wears else everything]
                outputs = _outputs(network, worn, [reads[i] for i in numbers], mixes)
                if comparison is not None:
                    outputs = _masked(outputs, [comparison.counts(g, i) for i in numbers])
                sums += _squares(task, *outputs)
                done += len(numbers)
                progress(done, total)
            ranks.add_up([sums])
        fidelities.append(_task_fidelity(task, wears, sums))
    return tuple(fidelities)


def _outputs(
    network: Network,
    adapters: Sequence[Adapter],
    reads: Sequence[tuple[object, object, object]],
    mixes: Sequence[Mapping[int, float]],
) -> tuple[Tensor, ...]:
    """Return the teachers', the students' and the reference rows' outputs, (samples, ...) each.

    Args:
        network: See `fidelity`.
        adapters: The adapters, and the merged one last.
        reads: What teacher, student and reference row of each sample read.
        mixes: What teachers, students and reference rows wear.
    """
    outputs = []
    for rows, mix in zip(zip(*reads, strict=True), mixes, strict=True):
        worn = [mix] * len(rows)
        folds = network.folds_rows
        with torch.no_grad(), wearing(network.modules, adapters, worn, folds_rows=folds):
            outputs.append(network.forward(list(rows)))
    if not all(isinstance(output, Tensor) for output in outputs):
        raise CalibrationError(
            "the network's forward returns no tensor, so there is no output whose error could be "
            "measured"
        )
    return tuple(outputs)


def _masked(outputs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the outputs, (samples, ...) each, times the masks of their samples."""
    if all(mask is None for mask in masks):
        return tuple(outputs)
    return tuple(
        torch.stack(
            [
                row if mask is None else row * mask.to(row)
                for row, mask in zip(output, masks, strict=True)
            ]
        )
        for output in outputs
    )


def _squares(task: Task, teacher: Tensor, student: Tensor, reference: Tensor) -> Tensor:
    """Return ``||student - teacher||^2, <student - reference, teacher - reference>, ||teacher -
    reference||^2``.
    """
    teacher, student, reference = (
        output.detach().cpu().double() for output in (teacher, student, reference)
    )
    effect = teacher - reference
    sums = torch.stack(
        [
            (student - teacher).square().sum(),
            ((student - reference) * effect).sum(),
            effect.square().sum(),
        ]
    )
    if not torch.isfinite(sums).all():
        raise CalibrationError(
            f"task {task.name!r}: the network's output is not finite; a precision that overflows, "
            "or a NaN"
        )
    return sums


def _task_fidelity(task: Task, wears: bool, sums: Tensor) -> TaskFidelity:
    difference, along, effect = sums.tolist()
    # where teacher and reference are the same, any difference is infinitely worse than none
    without_effect = float("inf") if difference else 0.0
    error = (difference / effect) ** 0.5 if effect else without_effect
    strength = along / effect if wears and effect else None
    return TaskFidelity(task.name, error, strength, len(task.samples))
