"""A polish of the merged LoRA at the model's output.

The sweep solves layer by layer, but the output of the whole model decides what a picture shows.
Where text and picture share a stream, that is still off by half of what the LoRAs do, though each
layer is near its optimum. Gradient steps from the closed form lower this error:

    e = ||m (f(x; B A) - teacher(x))||^2 / mean ||m (teacher(x) - base(x))||^2

with the mask m of a scene's region, and the factors B_l A_l of every layer, whose ranks stay. Each
step takes a batch of rows, drawn by the weights of their tasks, in whitened inputs (see
`whitening`). Some rows of each lesson, a task or all scenes, are kept out: their error decides what
is kept (see `descent`), so that the result is at worst the closed form. Errors count less where a
lesson would begin above 1, as do scenes in whose regions LoRAs do little: they would drown the
others. Gradients are those of the root of e, since of squares a few rows would decide each step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta
from ..devices import exact_products
from ..errors import CalibrationError
from ..layers import add_to_output, codes_of
from ..memory import calls_that_fit, with_smaller_calls
from ..network import Network
from ..progress import Progress, nobody
from ..rows.wearing import layer_hooks
from ..tasks import Task
from .descent import Lowest, descend
from .gradients import blocks_called, frozen, kept_as_copies, mapped, recomputed, usable
from .runs import GOLDEN_RATIO
from .targets import (
    Lesson,
    Target,
    calls_of,
    lesson_errors,
    lessons_of,
    size_of,
    squared_errors,
)
from .whitening import Whitening, whitenings

PER_LESSON = 2  # rows of a step

# Factor of the error, since its gradients would vanish in float16; and what this factor is
# multiplied by when they overflow. Powers of two change no digit.
_SCALE = 2.0**12
_SMALLER = 2.0**-4
# The share of layers that may get no gradient: some of the last block do nothing for the output.
_UNREACHED = 0.25
_SMALLEST = 1e-3  # error of a row, or of a lesson at the start; below it nothing is left to lower


@dataclass(frozen=True)
class Polished:
    """A merged adapter after its polish.

    Args:
        lowest: The error of the rows that were kept out, the mean over lessons of their error
            relative to that of the start.
    """

    adapter: Adapter
    lowest: Lowest


def polish(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    merged: Adapter,
    steps: int,
    rows_per_call: int = 8,
    progress: Progress = nobody,
) -> Polished:
    """Return a merged adapter after gradient steps that lower the error at the network's output;
    the adapter itself if no step lowers the error of the samples that are kept out.

    Args:
        network: The diffusion model; its output is (rows, channels, ..., height, width).
        adapters: Adapters that the mixes of the tasks number.
        tasks: The tasks of a merge; at least one wears something.
        merged: The merged adapter; its ranks stay.
        steps: Gradient steps, at most.
        rows_per_call: Most rows of a forward call; a step may need several calls. Calls with
            gradients have fewer rows if only these fit, or once memory has run out.

    Raises:
        CalibrationError: An output without a gradient, or an error that is not finite.
        OutOfMemoryError: Even gradients of a single row do not fit.
    """
    begun = lambda *_: progress(0, steps)  # noqa: E731, which may cancel
    lessons = lessons_of(network, adapters, tasks, rows_per_call, begun)
    with torch.inference_mode(False), ExitStack() as stack:
        lessons = mapped(lessons, usable)
        kept_out = [target for lesson in lessons for target in lesson.kept_out]
        with blocks_called(network.modules, merged.deltas) as blocks:
            calls = calls_of(network, kept_out, rows_per_call)
            reads = ([kept_out[i].reads for i in numbers] for numbers in calls)
            roots = whitenings(network, merged, reads)
        layers = {path: _Layer.of(merged.deltas[path], root) for path, root in roots.items()}
        weights = stack.enter_context(frozen(network.modules))
        stack.enter_context(_worn(network.modules, layers))
        stack.enter_context(recomputed(blocks, weights))
        with torch.no_grad():
            teaching = _Teaching.of(network, layers, lessons, rows_per_call)
        with torch.enable_grad(), kept_as_copies(weights):
            factors = teaching.factors
            largest = max([*teaching.taught, *kept_out], key=size_of)
            one = partial(_add_gradients, network, [largest], _SCALE, 1)
            rows = calls_that_fit(one, factors[0].device, rows_per_call, network.evictable)
            teaching.rows = rows
            lowest = descend(factors, steps, teaching.take_gradients, teaching.level, progress)
    if not lowest.step:
        return Polished(merged, lowest)
    deltas = dict(merged.deltas)
    for path, layer in layers.items():
        up, down = (factor.detach() for factor in layer.factors)
        deltas[path] = LowRankDelta(up.to(deltas[path].up), down.to(deltas[path].down))
    return Polished(replace(merged, deltas=deltas), lowest)


@dataclass
class _Teaching:
    """Gradients and errors of the layers' factors, which all rows wear.

    Args:
        taught: Targets that gradients are taken of, those of a lesson in random order.
        kept_out: Each lesson's targets that no gradient sees.
        first: Error of each lesson's `kept_out` at the start.
        rows: Most rows of a forward call; fewer once memory has run out.
        scale: What the error is multiplied by; less once a gradient has overflowed.
    """

    network: Network
    layers: Mapping[str, _Layer]
    taught: Sequence[Target]
    kept_out: Sequence[Sequence[Target]]
    first: Sequence[float]
    rows: int
    scale: float = _SCALE
    steps: int = 0

    @classmethod
    def of(
        cls,
        network: Network,
        layers: Mapping[str, _Layer],
        lessons: Sequence[Lesson],
        rows: int,
    ) -> _Teaching:
        kept_out = [lesson.kept_out for lesson in lessons]
        first = lesson_errors(network, kept_out, rows)
        chance = random.Random(0)
        taught = [
            replace(target, weights=target.weights / max(1.0, error))
            for lesson, error in zip(lessons, first, strict=True)
            for target in chance.sample(lesson.taught, len(lesson.taught))
        ]
        return cls(network, layers, taught, kept_out, first, rows)

    @property
    def factors(self) -> list[Tensor]:
        return [factor for layer in self.layers.values() for factor in (layer.up, layer.down)]

    @torch.no_grad()
    def level(self) -> float:
        """Return the mean over lessons of the kept-out error, relative to that at the start."""
        now = lesson_errors(self.network, self.kept_out, self.rows)
        levels = [a / max(b, _SMALLEST) for a, b in zip(now, self.first, strict=True)]
        return sum(levels) / len(levels)

    def batch(self) -> list[Target]:
        """Return the targets of the next step, at even distances along their shares, so that tasks
        take part by their weights; each step begins where others have left the largest gap.
        """
        count = PER_LESSON * len(self.kept_out)
        ends = torch.tensor([target.share for target in self.taught], dtype=torch.float64).cumsum(0)
        start = self.steps * GOLDEN_RATIO % 1
        self.steps += 1
        places = (torch.arange(count, dtype=torch.float64) + start) * (ends[-1] / count)
        return [self.taught[i] for i in torch.searchsorted(ends, places, right=True).tolist()]

    def take_gradients(self) -> None:
        """Give the factors the gradients of the mean error of a batch."""
        batch = self.batch()
        while self.scale >= 1:
            self.rows = with_smaller_calls(partial(self._attempt, batch), self.rows, "the polish")
            found = [factor.grad for factor in self.factors if factor.grad is not None]
            if _are_finite(found):
                for gradient in found:
                    gradient.div_(self.scale)
                return _check_reached(self.layers)
            self.scale *= _SMALLER
        raise CalibrationError(
            "a gradient of the polished LoRA is not finite: a precision that overflows. Load the "
            "model in a wider precision, or switch the polish off"
        )

    def _attempt(self, batch: Sequence[Target], rows: int) -> int:
        for factor in self.factors:
            factor.grad = None
        _add_gradients(self.network, batch, self.scale, rows)
        return rows


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all numbers are, with one wait for their device."""
    found = [tensor.isfinite().all().to(tensors[0].device) for tensor in tensors]
    return not found or bool(torch.stack(found).all())


def _check_reached(layers: Mapping[str, _Layer]) -> None:
    """Refuse gradients that do not reach many of the layers.

    Raises:
        CalibrationError: They do not.
    """
    missing = [path for path, layer in layers.items() if layer.up.grad is None]
    if len(missing) > _UNREACHED * len(layers):
        raise CalibrationError(
            f"{len(missing)} of {len(layers)} layers, such as {missing[0]}, get no gradient: the "
            "model has a part that only draws, such as SageAttention. Take it off the model, or "
            "switch the polish off"
        )


def _add_gradients(
    network: Network, targets: Sequence[Target], scale: float, rows_per_call: int
) -> None:
    """Add up the gradients of the mean root of the targets' errors, times a scale; the layers wear
    the factors already.
    """
    for numbers in calls_of(network, targets, rows_per_call):
        of_call = [targets[i] for i in numbers]
        with _naming_what_only_draws():
            errors = squared_errors(network, of_call)
        if not errors.requires_grad:
            raise CalibrationError(
                "the output of this model has no gradient, so that no LoRA on it can be polished: "
                "it is compiled, or quantised in a way that only draws. Switch the polish off, or "
                "load the model in 16 bits"
            )
        if not torch.isfinite(errors).all():
            raise CalibrationError(
                "the error of the polished LoRA is not finite: a precision that overflows. Load "
                "the model in a wider precision, or switch the polish off"
            )
        with _naming_what_only_draws():
            roots = (errors + _SMALLEST).sqrt()
            torch.autograd.backward(roots.sum() * (scale / len(targets)))


# What torch says of operations that have no gradient.
_NO_GRADIENT = ("no autograd formula", "automatic differentiation", "derivative for")


@contextmanager
def _naming_what_only_draws() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_GRADIENT):
            raise
        raise CalibrationError(
            "a layer of this model has no gradient, so that no LoRA on it can be polished: "
            f"{error} Switch the polish off, or choose another preset than Polished"
        ) from error


@dataclass(frozen=True)
class _Layer:
    """The factors of one layer, float32: ``up`` and the whitened ``down``, of one size."""

    up: Tensor
    down: Tensor
    whitening: Whitening

    @classmethod
    def of(cls, delta: LowRankDelta, whitening: Whitening) -> _Layer:
        near = delta.to(device=whitening.basis.device, dtype=torch.float32)
        balanced = LowRankDelta(near.up, whitening.into(near.down)).balanced()
        up, down = (factor.clone().requires_grad_() for factor in (balanced.up, balanced.down))
        return cls(up, down, whitening)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``up`` and ``down`` of the layer's delta."""
        return self.up, self.whitening.back(self.down)


@contextmanager
def _worn(modules: Mapping[str, nn.Module], layers: Mapping[str, _Layer]) -> Iterator[None]:
    """Let every row wear the factors of layers, through which gradients flow."""

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with exact_products(x.device):
            up, down = (factor.to(x.device) for factor in layers[path].factors)
            add_to_output(module, y, codes_of(module, x, down), up)
        return y

    with layer_hooks({path: modules[path] for path in layers}, hook):
        yield
