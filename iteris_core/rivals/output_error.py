"""The error of the network's output as a function of the merged adapter, to search a scale.

It is the error of `fidelity` with all calibration samples as one run. Teachers run once, not once
per candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters import Adapter
from ..engines.problem import Problem
from ..errors import CalibrationError
from ..network import in_calls
from ..progress import nobody
from ..rows.wearing import wearing
from ..tasks import Sample, Task

# Samples of a task that are looked at: a scale is one number, and each try is a forward pass.
SAMPLES = 32


@dataclass(frozen=True)
class _Taught:
    """A chunk of samples with the outputs that a student should reach.

    Args:
        samples: The samples.
        teacher: Outputs of the teacher, float64 on the CPU.
        share: Factor of the squared error.
    """

    samples: Sequence[Sample]
    teacher: Tensor
    share: float


class OutputError:
    """Merged adapter -> mean over the tasks, by their weights, of ``||student - teacher||^2 /
    ||teacher - reference||^2``.

    The reference is the base model, or, where the teacher wears nothing, base + all adapters
    stacked, as in `fidelity`. A task whose teacher is the same as its reference has no such error,
    and is left out.

    Args:
        problem: The merge; its network's forward returns one entry per row.
        progress: Function that is called before every forward call; may raise to cancel.

    Raises:
        CalibrationError: The network returns no tensor or one that is not finite, or no teacher
            changes what it returns.
    """

    def __init__(self, problem: Problem, progress: Callable[[], None] = nobody) -> None:
        self.network = problem.network
        self.adapters = problem.adapters
        self.progress = progress
        self.taught: list[_Taught] = []
        self.total = 0.0
        for task in problem.tasks:
            size = problem.config.samples_per_chunk
            chunks = self._measure(task, size) if task.weight else []
            self.taught += chunks
            self.total += task.weight if chunks else 0.0
        if not self.taught:
            raise CalibrationError(
                "no task's teacher changes what the network returns, so a scale cannot be "
                "searched; set the scale to a number"
            )

    def _measure(self, task: Task, samples_per_chunk: int) -> list[_Taught]:
        """Run a task's teacher and its reference; return nothing where they are the same."""
        chosen = _some(task.samples)
        chunks = []
        scale = 0.0
        wears = any(share and self.adapters[k].deltas for k, share in task.mix.items())
        base = {} if wears else {k: 1.0 for k in range(len(self.adapters))}
        keys = [
            (self.network.call_key(sample.teacher), self.network.call_key(sample.student_reads))
            for sample in chosen
        ]
        for numbers in in_calls(keys, samples_per_chunk):
            samples = [chosen[number] for number in numbers]
            reads = [sample.teacher for sample in samples]
            teacher = self._outputs(self.adapters, reads, task.mix)
            scale += (teacher - self._outputs(self.adapters, reads, base)).square().sum().item()
            chunks.append(_Taught(samples, teacher, task.weight))
        if not math.isfinite(scale):
            raise CalibrationError(
                f"task {task.name!r}: the network's output is not finite; a precision that "
                "overflows, or a NaN"
            )
        return [replace(chunk, share=chunk.share / scale) for chunk in chunks] if scale else []

    def __call__(self, merged: Adapter) -> float:
        """Return the error; infinite if the output is not finite."""
        error = 0.0
        for chunk in self.taught:
            reads = [sample.student_reads for sample in chunk.samples]
            error += (
                chunk.share
                * (self._outputs([merged], reads, {0: 1.0}) - chunk.teacher).square().sum().item()
            )
        return error / self.total if math.isfinite(error) else math.inf

    def _outputs(
        self, adapters: Sequence[Adapter], reads: Sequence[object], mix: Mapping[int, float]
    ) -> Tensor:
        self.progress()
        network = self.network
        worn = [mix] * len(reads)
        folds = network.folds_rows
        with torch.no_grad(), wearing(network.modules, adapters, worn, folds_rows=folds):
            outputs = network.forward(reads)
        if not isinstance(outputs, Tensor):
            raise CalibrationError(
                "the network's forward returns no tensor, so there is no output to search a scale "
                "by"
            )
        return outputs.detach().cpu().double()


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Return `SAMPLES` of them at most, chosen at random: at even distances, all might be of one
    timestep.
    """
    chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return [samples[i] for i in chosen.sort().values.tolist()]
