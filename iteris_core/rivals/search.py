"""Searches for a rival's scale or coefficients, on the error of the network's output on the
calibration samples.
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
from ..rows.parking import tensors_in, within_reach
from ..rows.wearing import answers_of, worn_delta
from ..tasks import Sample, Task

SMALLEST = 1 / 32
LARGEST = 16.0
# Samples of a task that are looked at: a scale is one number, and each try is a forward pass.
SAMPLES = 32
_PARABOLAS = 4
_ROUNDS = 4
_STEP = 0.1
_CLOSE = 0.02


@dataclass(frozen=True)
class _Taught:
    """A chunk of samples with the outputs that a student should reach.

    Args:
        teacher: Outputs of the teacher, float64 on the CPU.
        share: Factor of the squared error.
    """

    reads: Sequence[object]
    teacher: Tensor
    share: float


class OutputError:
    """Merged adapter -> mean over the tasks, by their weights, of ``||student - teacher||^2 /
    ||teacher - reference||^2``, over all samples of a task.

    The reference is the base model, or, where the teacher wears nothing, base + all adapters
    stacked. A task whose teacher is the same as its reference has no such error, and is left out.
    Teachers run once, not once per candidate.

    Args:
        problem: The merge; its network's forward returns one entry per row, with tensors in it.
        progress: Function that is called before every forward call; may raise to cancel.

    Raises:
        CalibrationError: The network returns no tensor or one that is not finite, or no teacher
            changes what it returns.
    """

    def __init__(self, problem: Problem, progress: Callable[[], None] = nobody) -> None:
        self.problem = problem
        self.progress = progress
        self.taught: list[_Taught] = []
        self.total = 0.0
        for task in problem.tasks:
            chunks = self._measure(task) if task.weight else []
            self.taught += chunks
            self.total += task.weight if chunks else 0.0
        if not self.taught:
            raise CalibrationError(
                "no task's teacher changes what the network returns, so a scale cannot be "
                "searched; set the scale to a number"
            )

    def __call__(self, merged: Adapter) -> float:
        """Return the error; infinite if the output is not finite."""
        error = 0.0
        for chunk in self.taught:
            student = self._outputs([merged], chunk.reads, {0: 1.0})
            error += chunk.share * (student - chunk.teacher).square().sum().item()
        return error / self.total if math.isfinite(error) else math.inf

    def of_sum(self, coefficients: Sequence[float]) -> float:
        """Return the error of the sum of the adapters, each times its coefficient."""
        mix = dict(enumerate(coefficients))
        adapters = self.problem.adapters
        worn = {path: worn_delta(path, adapters, mix) for path in self.problem.paths}
        return self(
            Adapter("sum", {path: mixed.delta for path, mixed in worn.items() if mixed is not None})
        )

    def _measure(self, task: Task) -> list[_Taught]:
        """Run a task's teacher and its reference; return nothing where they are the same."""
        network = self.problem.network
        adapters = self.problem.adapters
        chosen = _some(task.samples)
        chunks = []
        scale = 0.0
        wears = any(share and adapters[k].deltas for k, share in task.mix.items())
        base = {} if wears else {k: 1.0 for k in range(len(adapters))}
        keys = [
            (network.call_key(sample.teacher), network.call_key(sample.student_reads))
            for sample in chosen
        ]
        for numbers in in_calls(keys, self.problem.room.samples_per_chunk):
            samples = [chosen[number] for number in numbers]
            reads = [sample.teacher for sample in samples]
            teacher = self._outputs(adapters, reads, task.mix)
            scale += (teacher - self._outputs(adapters, reads, base)).square().sum().item()
            chunks.append(_Taught([sample.student_reads for sample in samples], teacher, 0.0))
        if not math.isfinite(scale):
            raise CalibrationError(
                f"task {task.name!r}: the network's output is not finite, most likely since half "
                "precision overflows. Run the model in bfloat16 or float32, or lower the strengths"
            )
        return [replace(chunk, share=task.weight / scale) for chunk in chunks] if scale else []

    def _outputs(
        self, adapters: Sequence[Adapter], reads: Sequence[object], mix: Mapping[int, float]
    ) -> Tensor:
        self.progress()
        with torch.no_grad():
            outputs = answers_of(self.problem.network, adapters, [mix] * len(reads), reads)
        found = list(tensors_in(outputs, within_reach))  # a text encoder's has several
        if not found:
            raise CalibrationError(
                "the network's forward returns no tensor, so there is no output to search a scale "
                "by; choose a method, or a scale, that needs no search"
            )
        every = [tensor.detach().cpu().double() for tensor in found]
        return every[0] if len(every) == 1 else torch.cat([each.flatten() for each in every])


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Return `SAMPLES` of them at most, chosen at random: at even distances, all might be of one
    timestep.
    """
    chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return [samples[i] for i in chosen.sort().values.tolist()]


def best_scale(error: Callable[[float], float]) -> float:
    """Return the scale with the smallest error, in about 8 evaluations.

    Doubles or halves from 1 until the error rises on both sides, then goes to the lowest point of a
    parabola through the best scale and its neighbours, a few times. Finds a local minimum; in
    practice there is one, since at 0 nothing is left of the adapters, and far out nothing of the
    base model.

    Args:
        error: Error of a scale; may be infinite.

    Raises:
        CalibrationError: Every error is infinite.
    """
    known: dict[float, float] = {}

    def at(scale: float) -> float:
        if scale not in known:
            known[scale] = error(scale)
        return known[scale]

    best = 1.0
    while math.isinf(at(best)):
        if best <= SMALLEST:
            raise CalibrationError(
                f"no scale from {SMALLEST} to 1 gives a finite output of the network; use a wider "
                "precision"
            )
        best /= 2
    for factor in (0.5, 2.0):
        while SMALLEST <= best * factor <= LARGEST and at(best * factor) < at(best):
            best *= factor
    for _ in range(_PARABOLAS):
        below = max((scale for scale in known if scale < best), default=None)
        above = min((scale for scale in known if scale > best), default=None)
        if below is None or above is None:
            break
        lowest = _bottom([below, best, above], [at(below), at(best), at(above)])
        if abs(lowest - best) < _CLOSE * best:
            break
        best = min(best, lowest, key=at)
    return best


def best_coefficients(error: Callable[[Sequence[float]], float], count: int) -> list[float]:
    """Return one coefficient per adapter with a small error: the best common one, then each in turn
    by parabolas.

    Args:
        error: Error of coefficients; may be infinite.
        count: Number of coefficients; each costs 3 evaluations per round, in 4 rounds at most, on
            top of `best_scale`'s.
    """
    common = best_scale(lambda scale: error([scale] * count))
    best = [common] * count
    if count == 1:
        return best
    smallest = error(best)
    for _ in range(_ROUNDS):
        before = smallest
        for k in range(count):
            step = max(_STEP, _STEP * abs(best[k]))
            places = [best[k] - step, best[k], best[k] + step]
            values = [error(_with(best, k, places[0])), smallest, error(_with(best, k, places[2]))]
            if values[0] + values[2] > 2 * smallest:  # only then has the parabola a lowest point
                places.append(_bottom(places, values))
                values.append(error(_with(best, k, places[-1])))
            smallest, value = min(zip(values, places, strict=True))
            best = _with(best, k, value)
        if smallest > (1 - _CLOSE) * before:
            break
    return best


def _bottom(places: Sequence[float], values: Sequence[float]) -> float:
    """Return where the parabola through three points is lowest; the middle of the wider gap, if one
    of them is infinite.
    """
    (a, b, c) = places
    (u, v, w) = values
    left = (b - a) * (v - w)
    right = (b - c) * (v - u)
    if math.isfinite(u) and math.isfinite(w) and left != right:
        return b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
    return (a + b) / 2 if b - a > c - b else (b + c) / 2


def _with(values: Sequence[float], k: int, value: float) -> list[float]:
    return [*values[:k], value, *values[k + 1 :]]
