"""What a merged diffusion model should answer to the samples of a merge, and how far off it is.

The LoRAs of a scene teach one row of the student, each in its part of the picture. Their errors add
up at each place, to that of the mean of what they answer, but for a constant:

    sum_k w_k |f - t_k|^2  =  w |f - t|^2 + const,   w = sum_k w_k,   t = sum_k w_k t_k / w
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..adapters import Adapter
from ..network import IMAGE_STREAM, Network, in_calls
from ..progress import Progress, nobody
from ..rows.parking import held_by, tensors_in
from ..rows.wearing import Rows, outputs_of
from ..tasks import Sample, Task
from .regions import Region

T = TypeVar("T")
# Rows of a lesson that are kept out of the gradients, spread so that they are of all noise levels.
_KEPT_OUT = 12


@dataclass(frozen=True)
class Target:
    """What the merged model reads, and what its output should be.

    Args:
        reads: What the student row reads.
        output: What it should answer, (channels, ..., height, width).
        weights: What a squared error counts at each place, (height, width), relative to what the
            LoRAs do to an output, squared, on average.
        share: How often it is taught: its share of its task's weight.
    """

    reads: Any
    output: Tensor
    weights: Tensor
    share: float


class Lesson(NamedTuple):
    """The targets of a task, or of all scenes: those that gradients are taken of, and those that no
    gradient sees.
    """

    taught: Sequence[Target]
    kept_out: Sequence[Target]


def parted(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return the rows of a lesson that are taught, and those that are kept out, at most half of
    them; a single one is both.
    """
    count = min(_KEPT_OUT, max(1, len(rows) // 2))
    every = len(rows) // count
    is_out = [i % every == every - 1 and i < count * every for i in range(len(rows))]
    taught, kept_out = (
        [row for row, out in zip(rows, is_out, strict=True) if out == wanted]
        for wanted in (False, True)
    )
    return taught or kept_out, kept_out


def rows_of_lessons(
    tasks: Sequence[Sequence[T]], key: Callable[[T], Hashable]
) -> list[list[list[tuple[int, T]]]]:
    """Return the rows of each lesson, with the samples that are in each and the numbers of their
    tasks: tasks that share rows of the student are one lesson.

    Args:
        tasks: Samples of each task.
        key: Sample -> a key of the student's row.
    """
    readers = Counter(map(key, itertools.chain.from_iterable(tasks)))
    lessons: list[dict[Hashable, list[tuple[int, T]]]] = []
    of_scenes: dict[Hashable, list[tuple[int, T]]] = {}
    for number, samples in enumerate(tasks):
        rows = of_scenes if any(readers[key(sample)] > 1 for sample in samples) else {}
        for sample in samples:
            rows.setdefault(key(sample), []).append((number, sample))
        if rows is not of_scenes:
            lessons.append(rows)
    return [list(rows.values()) for rows in (*lessons, of_scenes) if rows]


@torch.no_grad()
def lessons_of(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    size: int,
    progress: Progress = nobody,
) -> list[Lesson]:
    """Return what the merged model should answer to the samples of tasks that count. What a task's
    LoRAs do is measured on samples that are kept out.

    Args:
        size: Most rows of a forward call.
        progress: Listener for the rows.
    """
    tasks = [task for task in tasks if task.weight]
    samples = [task.samples for task in tasks]
    read = rows_of_lessons(samples, lambda sample: id(sample.student_reads))
    lessons = [parted(of_lesson) for of_lesson in read]
    rows = Rows(id)
    for task in tasks:
        for sample in task.samples:
            rows.add(sample.teacher, task.mix)
    kept_out = [member for _, out in lessons for row in out for member in row]
    for _, sample in kept_out:
        rows.add(sample.teacher, {})
    outputs = [output.float() for output in outputs_of(network, adapters, rows, size, progress)]

    def answer(sample: Sample, mix: Mapping[int, float]) -> Tensor:
        return outputs[rows.add(sample.teacher, mix)]

    squares: dict[int, list[float]] = {}  # of a preserve task 0, since the base model teaches it
    for number, sample in kept_out:
        change = answer(sample, tasks[number].mix) - answer(sample, {})
        squares.setdefault(number, []).append(
            float((change * _mask(sample, change)).square().sum())
        )
    effects = {number: sum(each) / len(each) for number, each in squares.items() if any(each)}
    mean = sum(effects.values()) / len(effects) if effects else 1.0
    counts = Counter(number for taught, _ in lessons for row in taught for number, _ in row)

    def target(row: Sequence[tuple[int, Sample]]) -> Target:
        shares = [tasks[number].weight / max(1, counts[number]) for number, _ in row]
        answers = [answer(sample, tasks[number].mix) for number, sample in row]
        weights = [
            share / max(shares) * _mask(sample, output).square() / effects.get(number, mean)
            for (number, sample), share, output in zip(row, shares, answers, strict=True)
        ]
        whole = torch.stack(weights).sum(0)
        parts = [
            output if len(row) == 1 else output * torch.where(whole > 0, weight / whole, 0.0)
            for output, weight in zip(answers, weights, strict=True)
        ]
        return Target(row[0][1].student_reads, torch.stack(parts).sum(0), whole, max(shares))

    return [Lesson(*([target(row) for row in rows] for rows in both)) for both in lessons]


def _mask(sample: Sample, output: Tensor) -> Tensor:
    weights = sample.token_weights.get(IMAGE_STREAM)
    if isinstance(weights, Region):
        return weights.mask
    height, width = output.shape[-2:]
    return sample.weights_of(IMAGE_STREAM, height * width).view(height, width)


def calls_of(network: Network, targets: Sequence[Target], most: int) -> list[list[int]]:
    """Return the numbers of targets that share a forward call, at most so many at once."""
    return in_calls([network.call_key(target.reads) for target in targets], most)


def size_of(target: Target) -> int:
    """Return how many numbers the model reads of a target: texts differ in length."""
    return sum(tensor.numel() for tensor in tensors_in(target.reads, held_by))


def squared_errors(network: Network, targets: Sequence[Target]) -> Tensor:
    """Return the squared relative error of each target of one call, (n,)."""
    found = network.forward([target.reads for target in targets])
    wanted = torch.stack([target.output for target in targets]).to(found.device)
    weights = torch.stack([target.weights.expand_as(target.output) for target in targets])
    squares: Tensor = weights.to(found.device) * (found.float() - wanted).square()
    return squares.flatten(1).sum(1)


def lesson_errors(network: Network, lessons: Sequence[Sequence[Target]], rows: int) -> list[float]:
    """Return the mean squared relative error of each lesson's targets."""
    every = [(number, target) for number, lesson in enumerate(lessons) for target in lesson]
    totals = [0.0] * len(lessons)
    for numbers in calls_of(network, [target for _, target in every], rows):
        errors = squared_errors(network, [every[i][1] for i in numbers]).cpu().tolist()
        for i, error in zip(numbers, errors, strict=True):
            totals[every[i][0]] += error
    return [total / len(lesson) for total, lesson in zip(totals, lessons, strict=True)]
