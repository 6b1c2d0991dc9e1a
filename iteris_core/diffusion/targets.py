"""What a merged diffusion model should answer to the samples of a merge, and how far off it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..adapters import Adapter
from ..network import IMAGE_STREAM, Network, in_calls
from ..progress import Progress, nobody
from ..rows.frames import held_by, tensors_in
from ..rows.outputs import Rows, outputs_of
from ..tasks import Sample, Task
from .regions import Region

T = TypeVar("T")
# Samples of a task that are kept out of the gradients, spread so that they are of all noise levels.
_KEPT_OUT = 10


@dataclass(frozen=True)
class Target:
    """What the merged model reads, and what its output should be.

    Args:
        reads: What the student row reads.
        output: Output of the teacher, (channels, ..., height, width).
        mask: Its weight at each place, (height, width).
        share: How often it is taught: its share of its task's weight.
        effect: What its task's LoRAs do to an output, squared, on average.
    """

    reads: Any
    output: Tensor
    mask: Tensor
    share: float
    effect: float


class TaskTargets(NamedTuple):
    """A task's targets: those that gradients are taken of, and those that no gradient sees."""

    taught: Sequence[Target]
    kept_out: Sequence[Target]


def parted(of_task: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return the samples of a task that are taught, and those that are kept out, at most half of
    them; a single one is both.
    """
    count = min(_KEPT_OUT, max(1, len(of_task) // 2))
    every = len(of_task) // count
    is_out = [i % every == every - 1 and i < count * every for i in range(len(of_task))]
    taught, kept_out = (
        [sample for sample, out in zip(of_task, is_out, strict=True) if out == wanted]
        for wanted in (False, True)
    )
    return taught or kept_out, kept_out


@torch.no_grad()
def targets_of(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    size: int,
    progress: Progress = nobody,
) -> list[TaskTargets]:
    """Return what the merged model should answer to the samples of each task that counts; samples
    whose region is empty are left out. What a task's LoRAs do is measured on those kept out.

    Args:
        size: Most rows of a forward call.
        progress: Listener for the rows.
    """
    tasks = [task for task in tasks if task.weight]
    parts = [parted(task.samples) for task in tasks]
    rows = Rows(id)
    for task, (_, kept_out) in zip(tasks, parts, strict=True):
        for sample in task.samples:
            rows.add(sample.teacher, task.mix)
        for sample in kept_out:
            rows.add(sample.teacher, {})
    outputs = [output.float() for output in outputs_of(network, adapters, rows, size, progress)]

    def answer(sample: Sample, mix: Mapping[int, float]) -> Tensor:
        return outputs[rows.add(sample.teacher, mix)]

    effects = []  # 0 of a preserve task, whose teacher is the base model
    for task, (_, kept_out) in zip(tasks, parts, strict=True):
        squares = [
            float((change * _mask(sample, change)).square().sum())
            for sample in kept_out
            for change in [answer(sample, task.mix) - answer(sample, {})]
        ]
        effects.append(sum(squares) / len(squares))
    known = [effect for effect in effects if effect]
    mean = sum(known) / len(known) if known else 1.0
    found = []
    for task, of_task, effect in zip(tasks, parts, effects, strict=True):
        share = task.weight / len(of_task[0])
        targets = [
            [
                Target(sample.student_reads, output, mask, share, effect or mean)
                for sample in samples
                for output in [answer(sample, task.mix)]
                for mask in [_mask(sample, output)]
                if mask.any()
            ]
            for samples in of_task
        ]
        found.append(TaskTargets(*targets))
    return [targets for targets in found if all(targets)]


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
    masks = torch.stack([target.mask.expand_as(target.output) for target in targets])
    differences = (found.float() - wanted) * masks.to(found.device)
    effects = torch.tensor([target.effect for target in targets], device=found.device)
    squares: Tensor = differences.square().flatten(1).sum(1) / effects
    return squares


def task_errors(network: Network, of_tasks: Sequence[Sequence[Target]], rows: int) -> list[float]:
    """Return the mean squared relative error of each task's targets."""
    every = [(task, target) for task, of_task in enumerate(of_tasks) for target in of_task]
    totals = [0.0] * len(of_tasks)
    for numbers in calls_of(network, [target for _, target in every], rows):
        errors = squared_errors(network, [every[i][1] for i in numbers]).cpu().tolist()
        for i, error in zip(numbers, errors, strict=True):
            totals[every[i][0]] += error
    return [total / len(of_task) for total, of_task in zip(totals, of_tasks, strict=True)]
