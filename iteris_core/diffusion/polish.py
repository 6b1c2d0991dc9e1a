"""A polish of the merged LoRA at the model's output.

The sweep solves layer by layer, but the output of the whole model decides what a picture shows.
Where text and picture share a stream, that is still off by half of what the LoRAs do, though each
layer is near its optimum. Gradient steps from the closed form lower this error:

    min over B_l, A_l of  sum over tasks of  weight * mean over samples of
                          ||m (f(x; B A) - teacher(x))||^2 / mean ||m (teacher(x) - base(x))||^2

with the mask m of a scene's region, and the factors B_l A_l of every layer, whose ranks stay. Each
step (Adam, Kingma and Ba 2015, arXiv:1412.6980) takes a batch of samples, drawn by the weights of
their tasks. They are made in whitened inputs, ``A = D G^(-1/2)`` with G the Gram matrix of what the
layer reads, so that one size suits all directions. G is known from a random sketch (Nystroem, as in
Frangella, Tropp and Udell 2023, arXiv:2110.02820).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta
from ..devices import exact_products
from ..errors import CalibrationError
from ..layers import add_to_output, codes_of, input_tokens
from ..memory import calls_that_fit, with_smaller_calls
from ..network import IMAGE_STREAM, Network, in_calls
from ..progress import Progress, nobody
from ..rows.frames import held_by, tensors_in
from ..rows.outputs import Rows, outputs_of
from ..rows.wearing import DeltaCache, layer_hooks, wearing
from ..svd import svd
from ..tasks import Sample, Task
from .gradients import blocks_called, frozen, kept_as_copies, mapped, recomputed, usable
from .regions import Region

POLISH_BATCH = 16  # samples of a step

# Size of the first steps, relative to the factors' own. 0.02 needs three times the steps, and 0.1
# makes merges worse ("The polish" in docs/method.md).
_RATE = 0.05
_BETAS = (0.9, 0.99)
_WARMUP = 10  # steps
# Factor of the error, since its gradients would vanish in float16; and what this factor is
# multiplied by when they overflow. Powers of two change no digit.
_SCALE = 2.0**12
_SMALLER = 2.0**-4
# The share of layers that may get no gradient: some of the last block do nothing for the output.
_UNREACHED = 0.25
_DIRECTIONS = 64  # of a layer's inputs that are whitened one by one
_DAMPING = 0.01  # added to the eigenvalues of a Gram matrix, whose mean is 1


@dataclass(frozen=True)
class _Target:
    """What the merged model reads, and what its output should be.

    Args:
        reads: What the student row reads.
        output: Output of the teacher, (channels, ..., height, width).
        mask: Its weight at each place, (height, width).
        share: Its share of its task's weight.
        effect: What its task's LoRAs do to an output, squared, on average.
    """

    reads: Any
    output: Tensor
    mask: Tensor
    share: float
    effect: float


def polish(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    merged: Adapter,
    steps: int,
    rows_per_call: int = 8,
    progress: Progress = nobody,
) -> Adapter:
    """Return a merged adapter after gradient steps that lower the error at the network's output.

    Args:
        network: The diffusion model; its output is (rows, channels, ..., height, width).
        adapters: Adapters that the mixes of the tasks number.
        tasks: The tasks of a merge; at least one wears something.
        merged: The merged adapter; its ranks stay.
        rows_per_call: Most rows of a forward call; a step may need several calls. Calls with
            gradients have fewer rows if only these fit, or once memory has run out.

    Raises:
        CalibrationError: An output without a gradient, or an error that is not finite.
        OutOfMemoryError: Even gradients of a single row do not fit.
    """
    targets = _targets(network, adapters, tasks, rows_per_call)
    with torch.inference_mode(False), ExitStack() as stack:
        targets = mapped(targets, usable)
        with blocks_called(network.modules, merged.deltas) as blocks:
            whitenings = _whitenings(network, merged, targets, rows_per_call)
        layers = {path: _Layer.of(merged.deltas[path], root) for path, root in whitenings.items()}
        weights = stack.enter_context(frozen(network.modules))
        stack.enter_context(_worn(network.modules, layers))
        stack.enter_context(recomputed(blocks, weights))
        with torch.enable_grad(), kept_as_copies(weights):
            device = next(iter(layers.values())).up.device
            largest = max(targets, key=_size)
            gradients_of_one = partial(_add_gradients, network, [largest], _SCALE, 1)
            rows = calls_that_fit(gradients_of_one, device, rows_per_call, network.evictable)
            _descend(partial(_add_gradients, network), targets, layers, steps, rows, progress)
    deltas = dict(merged.deltas)
    for path, layer in layers.items():
        up, down = (factor.detach() for factor in layer.factors)
        deltas[path] = LowRankDelta(up.to(deltas[path].up), down.to(deltas[path].down))
    return replace(merged, deltas=deltas)


# (targets, scale, rows of a forward call): see `_add_gradients`.
_AddGradients = Callable[[Sequence[_Target], float, int], None]


def _descend(
    add_gradients: _AddGradients,
    targets: Sequence[_Target],
    layers: Mapping[str, _Layer],
    steps: int,
    rows: int,
    progress: Progress,
) -> None:
    """Change the factors of layers by steps of Adam, whose size rises over the first steps, and
    falls along half a cosine to a twentieth.

    Args:
        rows: Most rows of a forward call.
    """
    factors = [factor for layer in layers.values() for factor in (layer.up, layer.down)]
    rates = [_RATE * float(factor.detach().square().mean().sqrt()) for factor in factors]
    optimiser = torch.optim.Adam([{"params": [factor]} for factor in factors], betas=_BETAS)
    shares = torch.tensor([target.share for target in targets], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    count = min(POLISH_BATCH, len(targets))
    scale = _SCALE
    for step in range(steps):
        progress(step, steps)
        height = 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * height * min(1.0, (step + 1) / _WARMUP)
        # drawn by their shares, so that all that are drawn count alike
        numbers = torch.multinomial(shares, count, generator=generator).tolist()
        batch = [targets[i] for i in numbers]
        scale, rows = _take_gradients(batch, factors, add_gradients, scale, rows)
        if not step:
            _check_reached(layers)
        optimiser.step()
    progress(steps, steps)


def _take_gradients(
    targets: Sequence[_Target],
    factors: Sequence[Tensor],
    add_gradients: _AddGradients,
    scale: float,
    rows: int,
) -> tuple[float, int]:
    """Give factors the gradients of a step, and return the scale of the error at which none of
    them overflowed, and the rows of a call at which memory was enough.
    """

    def attempt(rows_per_call: int) -> int:
        for factor in factors:
            factor.grad = None
        add_gradients(targets, scale, rows_per_call)
        return rows_per_call

    while scale >= 1:
        rows = with_smaller_calls(attempt, rows, "the polish")
        found = [factor.grad for factor in factors if factor.grad is not None]
        if _are_finite(found):
            for gradient in found:
                gradient.div_(scale)
            return scale, rows
        scale *= _SMALLER
    raise CalibrationError(
        "a gradient of the polished LoRA is not finite: a precision that overflows. Load the model "
        "in a wider precision, or switch the polish off"
    )


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
    network: Network, targets: Sequence[_Target], scale: float, rows_per_call: int
) -> None:
    """Add up the gradients of the targets' mean error, times a scale; the layers wear the factors
    already.
    """
    for of_call in _calls(network, targets, rows_per_call):
        with _naming_what_only_draws():
            errors = _errors(network, of_call)
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
            torch.autograd.backward(errors.sum() * (scale / len(targets)))


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


def _errors(network: Network, targets: Sequence[_Target]) -> Tensor:
    """Return the squared relative error of each target of one call, (n,)."""
    found = network.forward([target.reads for target in targets])
    wanted = torch.stack([target.output for target in targets]).to(found.device)
    masks = torch.stack([target.mask.expand_as(target.output) for target in targets])
    differences = (found.float() - wanted) * masks.to(found.device)
    effects = torch.tensor([target.effect for target in targets], device=found.device)
    squares: Tensor = differences.square().flatten(1).sum(1) / effects
    return squares


def _calls(network: Network, targets: Sequence[_Target], most: int) -> Iterator[list[_Target]]:
    """Yield targets that share a forward call, at most so many at once."""
    for numbers in in_calls([network.call_key(target.reads) for target in targets], most):
        yield [targets[i] for i in numbers]


def _size(target: _Target) -> int:
    """Return how many numbers the model reads of a target: texts differ in length."""
    return sum(tensor.numel() for tensor in tensors_in(target.reads, held_by))


@torch.no_grad()
def _targets(
    network: Network, adapters: Sequence[Adapter], tasks: Sequence[Task], size: int
) -> list[_Target]:
    """Return what the merged model should answer to every sample of the tasks; those whose region
    is empty are left out.
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
    return [
        _Target(
            sample.student_reads, outputs[row], mask, task.weight / len(of_task), effect or mean
        )
        for task, of_task, of_masks, effect in zip(tasks, taught, masks, effects, strict=True)
        for sample, row, mask in zip(task.samples, of_task, of_masks, strict=True)
        if task.weight and mask.any()
    ]


def _mask(sample: Sample, output: Tensor) -> Tensor:
    weights = sample.token_weights.get(IMAGE_STREAM)
    if isinstance(weights, Region):
        return weights.mask
    height, width = output.shape[-2:]
    return sample.weights_of(IMAGE_STREAM, height * width).view(height, width)


@dataclass(frozen=True)
class _Whitening:
    """The square root of a Gram matrix, ``U diag(s) U^T + rest (I - U U^T)``.

    Args:
        basis: U, its largest directions, (d_in, k), float32.
        sizes: s, (k,).
        rest: The size of all others.
    """

    basis: Tensor
    sizes: Tensor
    rest: float

    @classmethod
    def of(cls, probes: Tensor, products: Tensor, trace: float) -> _Whitening:
        """Return the root of a Gram matrix G, whose mean eigenvalue is made 1.

        Args:
            probes: Orthonormal columns Q, (d_in, k).
            products: G Q.
            trace: Trace of G.
        """
        width, count = probes.shape
        products = products.double() * (width / trace)
        shift = 1e-7 * products.norm()
        products += shift * probes.double()
        core = torch.linalg.cholesky(probes.double().T @ products)
        half = torch.linalg.solve_triangular(core, products.T, upper=False).T
        basis, sizes, _ = svd(half)
        known = (sizes.square() - shift).clamp_min(0)
        rest = max(0.0, width - float(known.sum())) / max(1, width - count)
        return cls(basis.float(), (known + _DAMPING).sqrt().float(), math.sqrt(rest + _DAMPING))

    def to(self, device: torch.device) -> _Whitening:
        return _Whitening(self.basis.to(device), self.sizes.to(device), self.rest)

    def into(self, down: Tensor) -> Tensor:
        """Return ``A G^(1/2)`` of a factor A, (r, d_in)."""
        codes = down @ self.basis
        return self.rest * down + (codes * (self.sizes - self.rest)) @ self.basis.T

    def back(self, whitened: Tensor) -> Tensor:
        """Return ``D G^(-1/2)`` of a whitened factor D, (r, d_in)."""
        codes = whitened @ self.basis
        return whitened / self.rest + (codes * (1 / self.sizes - 1 / self.rest)) @ self.basis.T


@dataclass(frozen=True)
class _Layer:
    """The factors of one layer, float32: ``up`` and the whitened ``down``, of one size."""

    up: Tensor
    down: Tensor
    whitening: _Whitening

    @classmethod
    def of(cls, delta: LowRankDelta, whitening: _Whitening) -> _Layer:
        near = delta.to(device=whitening.basis.device, dtype=torch.float32)
        balanced = LowRankDelta(near.up, whitening.into(near.down)).balanced()
        up, down = (factor.clone().requires_grad_() for factor in (balanced.up, balanced.down))
        return cls(up, down, whitening)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``up`` and ``down`` of the layer's delta."""
        return self.up, self.whitening.back(self.down)


@torch.no_grad()
def _whitenings(
    network: Network, merged: Adapter, targets: Sequence[_Target], rows_per_call: int
) -> dict[str, _Whitening]:
    """Return the root of the Gram matrix of what each layer reads in the merged model."""
    generator = torch.Generator().manual_seed(0)
    probes = {}
    products: dict[str, Tensor] = {}
    squares: dict[str, list[Tensor]] = {}  # of each call, since nothing is read before the last
    for path, delta in merged.deltas.items():
        width = delta.shape[1]
        shape = (width, min(_DIRECTIONS, width))
        probes[path] = torch.linalg.qr(torch.randn(shape, generator=generator)).Q

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        tokens = input_tokens(module, x).flatten(0, -2).float()
        probes[path] = probes[path].to(x.device)
        with exact_products(x.device):
            sketch = tokens.T @ (tokens @ probes[path])
        products[path] = products.get(path, 0) + sketch
        squares.setdefault(path, []).append(tokens.square().sum())
        return y

    modules = {path: network.modules[path] for path in merged.deltas}
    cache = DeltaCache(network.worn_bytes)
    for of_call in _calls(network, targets, rows_per_call):
        mixes: list[Mapping[int, float]] = [{0: 1.0}] * len(of_call)
        with (
            wearing(network.modules, [merged], mixes, cache, network.folds_rows),
            layer_hooks(modules, hook),
        ):
            network.forward([target.reads for target in of_call])
    traces = {
        path: reduce(add, torch.stack(found).cpu().tolist()) for path, found in squares.items()
    }
    return {
        path: _Whitening.of(probes[path].cpu(), products[path].cpu(), traces[path]).to(
            products[path].device
        )
        for path in merged.deltas
        if traces.get(path)
    }


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
