"""The fidelity of a merged adapter: the errors of the network's output against each task's teacher.

Residuals of single layers say where a merge suffers. What counts for the user is the network's
output, on samples that the solve did not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..network import Network, in_calls
from ..processes import Processes
from ..progress import Progress, nobody
from ..rows.wearing import wearing
from ..tasks import Sample, Task
from .records import TaskFidelity


@dataclass(frozen=True)
class Comparison:
    """What teachers and students are compared with, where, and in which runs.

    Args:
        base_reads: (task, sample) -> input of the base model's row.
        average_reads: (task, sample) -> input of the row that wears the adapters' average.
        counts: (task, sample) -> how much each part of its output counts, a mask that the output
            can be multiplied by; None: all of it.
        runs: Each task's number of samples in each of its sampling runs, in the order of the
            samples; within a run they are alike. None: each sample is a run of its own.
    """

    base_reads: Callable[[int, int], object]
    average_reads: Callable[[int, int], object]
    counts: Callable[[int, int], Tensor | None] = lambda task, sample: None
    runs: Sequence[Sequence[int]] | None = None


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
    """Compare a merged adapter with each task's teacher, with the base model, and with the plain
    average of several adapters.

    Args:
        network: The base model; its forward returns one entry per row. Untouched afterwards.
        adapters: Adapters that the tasks' mixes name by their number.
        tasks: Tasks with samples that the merge did not see, for an honest figure.
        merged: The adapter that the student rows wear.
        samples_per_chunk: Number of rows of one forward call.
        comparison: What is compared; None: whole outputs, with the base model on the teachers'
            inputs, and the average on the students'.
        progress: Listener for (samples done, samples in all); may raise to cancel.

    Raises:
        CalibrationError: The network returns nothing to compare, or rows that are not finite.
        PeerError: Another process failed.
    """
    processes = Processes.current()
    worn = [*adapters, merged]
    everything = {k: 1.0 for k in range(len(adapters))}
    average = {k: 1 / len(adapters) for k in everything}
    fidelities = []
    done = 0
    total = sum(len(task.samples) for task in tasks)
    for g, task in enumerate(tasks):
        wears = any(task.mix.values())
        mixes = [task.mix, {len(adapters): 1.0}, {} if wears else everything]
        if len(adapters) > 1:
            mixes.append(average)
        known = None if comparison is None else comparison.runs
        sizes = [1] * len(task.samples) if known is None else known[g]
        run_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        sums = torch.zeros(len(sizes), 4, dtype=torch.float64)
        reads = [_reads_of(sample, g, i, comparison) for i, sample in enumerate(task.samples)]
        keys = [tuple(map(network.call_key, of_sample)) for of_sample in reads]
        calls = in_calls(keys, samples_per_chunk)
        with processes.together():
            for numbers in processes.share(calls):
                outputs = _outputs(network, worn, [reads[i] for i in numbers], mixes)
                if comparison is not None:
                    outputs = _masked(outputs, [comparison.counts(g, i) for i in numbers])
                sums.index_add_(0, run_of[list(numbers)], _squares(task, *outputs))
                done += len(numbers)
                progress(done, total)
            processes.add_up([sums])
        fidelities.append(_task_fidelity(task, wears, len(mixes) == 4, sums))
    return tuple(fidelities)


def _reads_of(
    sample: Sample, task: int, number: int, comparison: Comparison | None
) -> tuple[object, ...]:
    """Return what teacher, student, reference and average of a sample read."""
    if comparison is None:
        return sample.teacher, sample.student_reads, sample.teacher, sample.student_reads
    others = comparison.base_reads(task, number), comparison.average_reads(task, number)
    return sample.teacher, sample.student_reads, *others


def _outputs(
    network: Network,
    adapters: Sequence[Adapter],
    reads: Sequence[tuple[object, ...]],
    mixes: Sequence[Mapping[int, float]],
) -> tuple[Tensor, ...]:
    """Return the outputs of the rows of each mix, (samples, ...) each.

    Args:
        network: See `fidelity`.
        adapters: The adapters, and the merged one last.
        reads: What each sample's rows read, one for each mix; more are left out.
        mixes: What teachers, students, reference rows and, if asked for, the average wear.
    """
    outputs = []
    for mix, rows in zip(mixes, zip(*reads, strict=True), strict=False):
        worn = [mix] * len(rows)
        folds = network.folds_rows
        with torch.no_grad(), wearing(network.modules, adapters, worn, folds_rows=folds):
            output = network.forward(list(rows))
        if not isinstance(output, Tensor):
            raise CalibrationError(
                "the network's forward returns no tensor, so there is no output whose error could "
                "be measured"
            )
        # a copy: a compiled model may write its next output into the same tensor
        outputs.append(output.clone())
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


def _squares(task: Task, *outputs: Tensor) -> Tensor:
    """Return ``||student - teacher||^2, <student - reference, teacher - reference>, ||teacher -
    reference||^2, ||average - teacher||^2`` of each sample, (samples, 4).

    Args:
        task: The task, for errors.
        outputs: Those of teacher, student, reference, and the average if it was measured.
    """
    teacher, student, reference, *averages = (
        output.detach().cpu().double().flatten(1) for output in outputs
    )
    effect = teacher - reference
    average = averages[0] if averages else teacher
    sums = torch.stack(
        [
            (student - teacher).square().sum(1),
            ((student - reference) * effect).sum(1),
            effect.square().sum(1),
            (average - teacher).square().sum(1),
        ],
        dim=1,
    )
    if not torch.isfinite(sums).all():
        raise CalibrationError(
            f"task {task.name!r}: the network's output is not finite; a precision that overflows, "
            "or a NaN"
        )
    return sums


def _task_fidelity(task: Task, wears: bool, has_average: bool, sums: Tensor) -> TaskFidelity:
    """Return the figures of a task.

    Args:
        task: The task.
        wears: Whether its teacher wears anything.
        has_average: Whether the average was measured.
        sums: The sums of `_squares` over each of its sampling runs, (runs, 4).
    """
    difference, along, effect, of_average = sums.sum(0).tolist()
    return TaskFidelity(
        task.name,
        _relative(difference, effect),
        along / effect if wears and effect else None,
        len(task.samples),
        averaged=_relative(of_average, effect) if has_average else None,
        runs=len(sums),
        deviation=_deviation(sums[:, 0], sums[:, 2]),
    )


def _deviation(difference: Tensor, effect: Tensor) -> float | None:
    """Return the standard error of the relative error of all runs together, by the jackknife: from
    the errors without each of the runs. None if there are too few runs for one.

    Args:
        difference: ``||student - teacher||^2`` of each run, (runs,).
        effect: ``||teacher - reference||^2`` of each run, (runs,).
    """
    runs = len(effect)
    if runs < 2:
        return None
    left = (difference.sum() - difference).clamp_min(0), effect.sum() - effect
    deviation = float((left[0] / left[1]).sqrt().std(correction=0)) * (runs - 1) ** 0.5
    return deviation if math.isfinite(deviation) else None


def _relative(difference: float, effect: float) -> float:
    # where teacher and reference are the same, any difference is infinitely worse than none
    without_effect = math.inf if difference else 0.0
    return (difference / effect) ** 0.5 if effect else without_effect
