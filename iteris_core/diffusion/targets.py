"""What a merged diffusion model should answer to the samples of a merge, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..network import IMAGE_STREAM, Network, in_calls
from ..progress import nobody
from ..rows.frames import held_by, tensors_in
from ..rows.outputs import Rows, outputs_of
from ..tasks import Sample, Task
from .regions import Region


@dataclass(frozen=True)
class Target:
    """What the merged model reads, and what its output should be.

    Args:
        reads: What the student row reads.
        output: Output of the teacher, (channels, ..., height, width).
        mask: Its weight at each place, (height, width).
        share: How much it counts: its share of its task's weight.
        effect: What its task's LoRAs do to an output, squared, on average.
    """

    reads: Any
    output: Tensor
    mask: Tensor
    share: float
    effect: float


@torch.no_grad()
def targets_of(
    network: Network, adapters: Sequence[Adapter], tasks: Sequence[Task], size: int
) -> list[list[Target]]:
    """Return what the merged model should answer to the samples of each task that counts; samples
    whose region is empty are left out.
    """
    rows = Rows(id)
    taught = [[rows.add(sample.teacher, task.mix) for sample in task.samples] for task in tasks]
    bases = [[rows.add(sample.teacher, {}) for sample in task.samples] for task in tasks]
    outputs = [output.float() for output in outputs_of(network, adapters, rows, size, nobody)]
    masks = [
        [_mask(sample, outputs[row]) for sample, row in zip(task.samples, of_task, strict=True)]
        for task, of_task in zip(tasks, taught, strict=True)
    ]
    effects = []  # 0 of a preserve task, whose teacher is the base model
    for of_task, of_base, of_masks in zip(taught, bases, masks, strict=True):
        squares = [
            float(((outputs[a] - outputs[b]) * mask).square().sum())
            for a, b, mask in zip(of_task, of_base, of_masks, strict=True)
        ]
        effects.append(sum(squares) / len(squares))
    known = [effect for effect in effects if effect]
    mean = sum(known) / len(known) if known else 1.0
    found = [
        [
            Target(sample.student_reads, outputs[row], mask, task.weight, effect or mean)
            for sample, row, mask in zip(task.samples, of_task, of_masks, strict=True)
            if task.weight and mask.any()
        ]
        for task, of_task, of_masks, effect in zip(tasks, taught, masks, effects, strict=True)
    ]
    return [of_task for of_task in found if of_task]


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
