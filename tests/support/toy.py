"""Tiny networks, adapters and samples, and the published algorithm on them, dense and naive."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn

from iteris_core import (
    Adapter,
    LowRankDelta,
    MergeConfig,
    MergeResult,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.algebra import reference
from iteris_core.algebra.reference import patched
from iteris_core.config import Target
from iteris_core.memory import Room
from iteris_core.progress import nobody
from iteris_core.rows.wearing import Rows, outputs_of

TOKENS = 4
CONTEXT_TOKENS = 3


class Stack(nn.Module):
    """Linear and tanh blocks with a skip, U-shaped; every token on its own."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Linear(6, 5)
        self.down2 = nn.Linear(5, 4, bias=False)
        self.middle = nn.Linear(4, 4)
        self.up1 = nn.Linear(4 + 5, 5)
        self.up2 = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x).tanh()
        y = self.middle(self.down2(skip).tanh()).tanh()
        return x + self.up2(self.up1(torch.cat([y, skip], dim=-1)).tanh())


class Attention(nn.Module):
    """Self-attention, cross-attention that reads a context, and a feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.self_attention = nn.ModuleDict(
            {name: nn.Linear(6, 6, bias=name == "o") for name in "qkvo"}
        )
        self.cross_attention = nn.ModuleDict(
            {name: nn.Linear(5 if name in "kv" else 6, 6) for name in "qkvo"}
        )
        self.feed_forward = nn.Linear(6, 6)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + attend(self.self_attention, x, x)
        x = x + attend(self.cross_attention, x, context)
        return x + self.feed_forward(x).tanh()


def attend(layers: nn.ModuleDict, x: Tensor, context: Tensor) -> Tensor:
    q = layers["q"](x)
    k = layers["k"](context)
    v = layers["v"](context)
    return layers["o"]((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)


class Convolution(nn.Module):
    """1x1 convolutions around a 3x3 one, on pictures of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Conv2d(3, 6, 1)
        self.spatial = nn.Conv2d(6, 6, 3, padding=1)
        self.shrink = nn.Conv2d(6, 5, 1, stride=2, bias=False)
        self.outlet = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(self.shrink(self.spatial(self.inlet(x).tanh()).tanh()).tanh())


class InPlace(nn.Module):
    """Two layers that read the same tensor, which is changed in place between them."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(6, 6)
        self.after = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x.square_().sub_(1)
        return self.after(x) + y


class OneLayer(nn.Module):
    """A single Linear: what teacher and student read *is* X and X~."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def run(model: nn.Module, rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
    return model(*(torch.stack(part) for part in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Toy:
    """A model in float64, its target layers, and how to make what one row reads."""

    model: nn.Module
    targets: tuple[str, ...]
    make_row: Callable[[], tuple[Tensor, ...]]

    def network(self, forward: Callable[[Sequence[Any]], Any] | None = None) -> Network:
        return Network(
            dict(self.model.named_modules()),
            forward or (lambda rows: run(self.model, rows)),
            stream_of,
        )

    def samples(self, count: int) -> list[Sample]:
        return [Sample(self.make_row()) for _ in range(count)]

    def adapter(
        self, name: str = "adapter", rank: int = 2, paths: Sequence[str] | None = None
    ) -> Adapter:
        """Return a random adapter of about the size of the weights."""
        deltas = {}
        for path in self.targets if paths is None else paths:
            d_out, d_in = self.model.get_submodule(path).weight.flatten(1).shape
            up = torch.randn(d_out, rank).double()
            down = torch.randn(rank, d_in).double()
            deltas[path] = LowRankDelta(0.4 * up, down / d_in**0.5)
        return Adapter(name, deltas)

    def dense_input(self, rows: Sequence[tuple[Tensor, ...]], path: str) -> Tensor:
        return torch.cat(layer_inputs(self.model, rows, [path])[path])


def stream_of(path: str) -> str:
    return "text" if path.startswith("cross_attention.") and path[-1] in "kv" else "image"


def build(name: str, seed: int = 0) -> Toy:
    """Return one of the toys; all that is random in and after it depends on the seed alone."""
    torch.manual_seed(seed)
    model, make_row = {
        "stack": (Stack, lambda: (torch.randn(TOKENS, 6).double(),)),
        "attention": (
            Attention,
            lambda: (torch.randn(TOKENS, 6).double(), torch.randn(CONTEXT_TOKENS, 5).double()),
        ),
        "convolution": (Convolution, lambda: (torch.randn(3, 4, 4).double(),)),
        "in place": (InPlace, lambda: (torch.randn(TOKENS, 6).double(),)),
        "one layer": (OneLayer, lambda: (torch.randn(20, 6).double(),)),
    }[name]
    model = model().double().eval().requires_grad_(False)
    skipped = ("", "self_attention", "cross_attention")
    return Toy(
        model, tuple(path for path, _ in model.named_modules() if path not in skipped), make_row
    )


def output_errors(
    network: Network, adapters: Sequence[Adapter], tasks: Sequence[Task], merged: Adapter
) -> list[Tensor]:
    """Return of each task the squares of ``student - teacher`` and of ``teacher - reference`` at the
    network's output, (samples, 2). The reference is the base model; where the teacher wears
    nothing, all adapters stacked.
    """
    rows = Rows(id)
    worn = [*adapters, merged]
    numbers = [
        [
            (
                rows.add(sample.teacher, task.mix),
                rows.add(sample.student_reads, {len(adapters): 1.0}),
                rows.add(
                    sample.teacher, {} if task.mix else dict.fromkeys(range(len(adapters)), 1.0)
                ),
            )
            for sample in task.samples
        ]
        for task in tasks
    ]
    outputs = [output.double() for output in outputs_of(network, worn, rows, 16, nobody)]
    return [
        torch.tensor(
            [
                [
                    (outputs[student] - outputs[teacher]).square().sum(),
                    (outputs[teacher] - outputs[reference]).square().sum(),
                ]
                for teacher, student, reference in of_task
            ]
        )
        for of_task in numbers
    ]


def own_tasks(toy: Toy, adapters: Sequence[Adapter], samples: int = 3) -> list[Task]:
    return [
        Task(adapter.name, toy.samples(samples), {k: 1.0}) for k, adapter in enumerate(adapters)
    ]


def pair(name: str, samples: int = 3) -> tuple[Toy, list[Adapter], list[Task]]:
    net = build(name)
    adapters = [net.adapter("a"), net.adapter("b")]
    return net, adapters, own_tasks(net, adapters, samples)


def three_adapters() -> tuple[Toy, list[Adapter], list[Task]]:
    """Return three adapters, one of which does not change every layer, and a preserve task."""
    net = build("attention")
    adapters = [net.adapter("a"), net.adapter("b", 1), net.adapter("c", 2, net.targets[:7])]
    tasks = [*own_tasks(net, adapters), Task("preserve", net.samples(3), {}, 0.5)]
    tasks[1] = replace(tasks[1], weight=2.0)
    return net, adapters, tasks


def exact(target: Target = "delta", **settings: Any) -> MergeConfig:
    """Return settings in which nothing is lost and nothing made up for."""
    exactly: dict[str, Any] = {
        "output_dtype": torch.float64,
        "unit_gain": 1.0,
        "tokens_per_dimension": None,
    }
    return MergeConfig(target=target, **{**exactly, **settings})


def factorised_in(precision: Literal["float32", "float64"]) -> AbstractContextManager[object]:
    """Let all layers, whatever their width, be factorised in a precision."""
    width = 0 if precision == "float32" else 1 << 30
    return mock.patch("iteris_core.devices._WIDE_ON_CPU", width)


def merge_toy(
    toy: Toy,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    *,
    samples_per_chunk: int = 8,
    **settings: Any,
) -> MergeResult:
    room = Room(samples_per_chunk)
    return merge(toy.network(), adapters, tasks, exact(**settings), room=room)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {path: delta.dense() for path, delta in adapter.deltas.items()}


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    assert set(found) == set(expected)
    return max(
        ((found[path] - expected[path]).norm() / expected[path].norm()).item() for path in expected
    )


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def mixed(
    adapters: Sequence[Adapter], mix: Mapping[int, float], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    total = {path: torch.zeros(shape).double() for path, shape in shapes.items()}
    for k, share in mix.items():
        for path, delta in adapters[k].deltas.items():
            total[path] = total[path] + share * (delta.up @ delta.down)
    return total


def layer_inputs(
    model: nn.Module, rows: Sequence[tuple[Tensor, ...]], paths: Sequence[str]
) -> dict[str, list[Tensor]]:
    """Run each row alone; return path -> one (tokens, d_in) matrix per row."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0]
            if isinstance(module, nn.Conv2d):
                x = nn.functional.unfold(
                    x, module.kernel_size, module.dilation, module.padding, module.stride
                ).transpose(1, 2)
            seen[path].append(x[0].clone())

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(keep(path)) for path in paths]
    for row in rows:
        run(model, [row])
    for handle in handles:
        handle.remove()
    return seen


def answering(inputs: Sequence[Tensor], samples: Sequence[Sample], path: str) -> list[Tensor]:
    """Return what a task's teachers read, in the order of their students' tokens."""
    orders = [sample.teacher_tokens.get(stream_of(path)) for sample in samples]
    return [
        x if order is None else torch.stack([x[number] for number in order])
        for x, order in zip(inputs, orders, strict=True)
    ]


def weighted(inputs: Sequence[Tensor], samples: Sequence[Sample], path: str) -> Tensor:
    """Return all tokens of a task, each times the root of its weight."""
    ones = [torch.ones(len(x)) for x in inputs]
    weights = [
        sample.token_weights.get(stream_of(path), one)
        for sample, one in zip(samples, ones, strict=True)
    ]
    return torch.cat([x * w.double().sqrt()[:, None] for x, w in zip(inputs, weights, strict=True)])


@dataclass
class DenseTask:
    """A task at one layer: X, X~ (tokens, d_in), dW_g (d_out, d_in), the user's weight."""

    x: Tensor
    x_student: Tensor
    delta: Tensor
    weight: float


def lambdas_of(
    base: Tensor, tasks: Sequence[DenseTask], config: MergeConfig
) -> list[Tensor | float]:
    """Return lambda of each task. Those that teach nothing are on the scale of the others."""
    if config.balance == "uniform":
        return [task.weight for task in tasks]
    if config.balance == "full":
        return [task.weight * reference.balance(task.x, base + task.delta) for task in tasks]
    plain = [reference.balance(task.x, task.delta) for task in tasks]
    isotropic = [reference.balance(task.x, torch.zeros_like(task.delta)) for task in tasks]
    over = [
        (own / other).item()
        for own, other, task in zip(plain, isotropic, tasks, strict=True)
        if task.delta.any() and task.weight
    ]
    factor = sum(over) / len(over) if over else 1.0
    return [
        task.weight * (own if task.delta.any() else factor * own)
        for own, task in zip(plain, tasks, strict=True)
    ]


def normal_equations(
    base: Tensor, tasks: Sequence[DenseTask], config: MergeConfig
) -> tuple[Tensor, Tensor]:
    """Return S (d_in, d_in) and S dW^T, by the reference and what it leaves out, of one layer."""
    full = config.target == "full_output"
    rows = [
        reference.TaskRows(
            task.x,
            (1 - config.input_mix) * task.x_student + config.input_mix * task.x,
            base + task.delta if full else task.delta,
            lam,
        )
        for task, lam in zip(tasks, lambdas_of(base, tasks, config), strict=True)
    ]
    left, right = reference.normal_equations(
        rows, alpha=config.alpha, alpha_cross=config.alpha_cross, ridge=config.ridge
    )
    return left, right - left @ base.T if full else right


def solve_densely(base: Tensor, tasks: Sequence[DenseTask], config: MergeConfig) -> Tensor:
    """Return the merged (d_out, d_in) delta of one layer, of whatever rank it has."""
    return reference.solve(*normal_equations(base, tasks, config))


def naive_fixed_point(
    toy: Toy, adapters: Sequence[Adapter], tasks: Sequence[Task], config: MergeConfig | None = None
) -> dict[str, Tensor]:
    """Return the deltas at which Algorithm 1 stands still: infer, solve all, repeat until unchanged."""
    config = config or MergeConfig(target="delta")
    paths = list(dict.fromkeys(path for adapter in adapters for path in adapter.deltas))
    bases = {path: toy.model.get_submodule(path).weight.flatten(1) for path in paths}
    shapes = {path: tuple(base.shape) for path, base in bases.items()}
    worn = [mixed(adapters, task.mix, shapes) for task in tasks]
    teachers = [
        layer_inputs(patched(toy.model, delta), [sample.teacher for sample in task.samples], paths)
        for task, delta in zip(tasks, worn, strict=True)
    ]
    merged = mixed(adapters, {}, shapes)
    for _ in range(len(paths) + 2):
        student = patched(toy.model, merged)
        students = [
            layer_inputs(student, [sample.student_reads for sample in task.samples], paths)
            for task in tasks
        ]
        before = merged
        merged = {}
        for path in paths:
            at_layer = [
                DenseTask(
                    weighted(answering(teachers[g][path], task.samples, path), task.samples, path),
                    weighted(students[g][path], task.samples, path),
                    worn[g][path],
                    task.weight,
                )
                for g, task in enumerate(tasks)
            ]
            merged[path] = solve_densely(bases[path], at_layer, config)
        if all(torch.equal(merged[path], before[path]) for path in paths):
            return merged
    raise AssertionError("Algorithm 1 did not settle within the depth of the network")
