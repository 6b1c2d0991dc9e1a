"""The single sweep: one forward pass that solves every target layer in the order in which the network reaches it.

A layer's student inputs depend only on the layers before it. So when teacher rows and student rows go through the
network in one batch, each layer can be solved the moment all rows have reached it, and the student rows go on wearing
the answer. That is the fixed point of the paper's Algorithm 1 (arXiv:2411.15231), in one pass instead of many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapter, LowRankDelta, stack, target_layers
from .config import MergeConfig
from .errors import AdapterError, CalibrationError, SolveError
from .layers import add_to_output, base_weight, input_tokens, output_tokens, weight_shape
from .lockstep import pause, run_in_lockstep
from .network import Network
from .report import LayerReport, TaskAtLayerReport
from .rows import Chunk, check_rows, layer_hooks, split_into_chunks, worn_delta
from .solve import TaskAtLayer, solve_layer, squared_residual, student_energy
from .statistics import TaskStatistics, product_dtype, statistics_device
from .tasks import Task

Progress = Callable[[int, int], None]
_current_chunk: ContextVar[Chunk | None] = ContextVar("iteris_chunk", default=None)


@dataclass(frozen=True)
class SweepResult:
    """Merged deltas by module path (on the CPU, as they will be saved), the layers' reports, and the rows' outputs.

    ``outputs[g][s]`` is (teacher's, student's) output row of sample s of task g, if the network returns one.
    """

    deltas: Mapping[str, LowRankDelta]
    layers: tuple[LayerReport, ...]
    outputs: tuple[tuple[tuple[Tensor, Tensor], ...], ...] | None


def sweep(
    network: Network,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    config: MergeConfig,
    progress: Progress | None = None,
) -> SweepResult:
    """Solve all target layers in one forward pass.

    Args:
        network: Runs the rows; untouched afterwards, also after an exception.
        adapters: At least one target layer among them.
        tasks: Checked by `tasks.check_tasks`.
        config: See `MergeConfig`.
        progress: Called as ``progress(layers solved, layers in all)``; may raise to cancel.

    Raises:
        AdapterError: A delta that does not fit its module.
        CalibrationError: A target layer that is reached twice, never, or not by every row.
        SolveError: A layer without a usable solution; its name and the cause are in the message.
    """
    paths = target_layers(adapters)
    check_targets(network, adapters)
    state = _Sweep(network, adapters, tasks, config, progress, total=len(paths))
    chunks = split_into_chunks(tasks, config.samples_per_chunk)
    workers = [partial(_run_chunk, network, chunk) for chunk in chunks]
    with torch.no_grad(), layer_hooks({path: network.modules[path] for path in paths}, state.at_layer):
        answers = run_in_lockstep(workers, state.solve)
    never = [path for path in paths if path not in state.solved]
    if never:
        raise CalibrationError(
            f"the network never ran {len(never)} of {len(paths)} target layers, such as {never[0]!r}; they cannot be measured. "
            "Leave them out, or check that the adapters belong to this model"
        )
    return SweepResult(state.solved, tuple(report() for report in state.reports), _outputs_by_task(tasks, chunks, answers))


def check_targets(network: Network, adapters: Sequence[Adapter]) -> None:
    """Refuse deltas that have no module, or whose shape is not the module's.

    Raises:
        AdapterError: Names adapter, layer, both shapes.
    """
    for adapter in adapters:
        for path, delta in adapter.deltas.items():
            if path not in network.modules:
                raise AdapterError(f"adapter {adapter.name!r} changes {path!r}, which this model does not have")
            try:
                expected = weight_shape(network.modules[path])
            except AdapterError as error:
                raise AdapterError(f"adapter {adapter.name!r} changes {path!r}, which {error}") from error
            if delta.shape != expected:
                raise AdapterError(
                    f"adapter {adapter.name!r} has a delta of {delta.shape[0]} x {delta.shape[1]} for {path!r}, whose weight "
                    f"is {expected[0]} x {expected[1]}: it was trained for another model"
                )


def _run_chunk(network: Network, chunk: Chunk) -> Any:
    _current_chunk.set(chunk)
    return network.forward(chunk.inputs)


@dataclass
class _Layer:
    """The one layer that is being measured: its deltas on the device, and its tasks' statistics."""

    path: str
    deltas: dict[int, LowRankDelta]
    worn: list[LowRankDelta | None]
    statistics: list[TaskStatistics]
    full_norms: list[Tensor | None]
    bias: Tensor | None
    device: torch.device
    dtype: torch.dtype
    arrived: list[Chunk] = field(default_factory=list)
    merged: LowRankDelta | None = None


@dataclass
class _Sweep:
    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    config: MergeConfig
    progress: Progress | None
    total: int
    solved: dict[str, LowRankDelta] = field(default_factory=dict)
    reports: list[Callable[[], LayerReport]] = field(default_factory=list)
    layer: _Layer | None = None

    def at_layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Measure one chunk's rows at one layer, wait until the layer is solved, dress the rows."""
        chunk = _current_chunk.get()
        if chunk is None:  # somebody else's forward
            return y
        check_rows(path, x, 2 * len(chunk.samples))
        if path in self.solved:
            raise CalibrationError(
                f"layer {path!r} is reached twice in one forward pass; a layer with one weight and two inputs has no place in "
                "a sweep. Leave it out of the merge"
            )
        if self.layer is None or self.layer.path != path:
            self.layer = self._open(path, module, x, y)
        layer = self.layer
        tokens = input_tokens(module, x).to(layer.dtype)
        codes = self._measure(layer, module, chunk, tokens, y)
        pause(path)
        y, merged = y.clone(), layer.merged.to(device=x.device, dtype=layer.dtype)
        for block, teacher_codes in zip(chunk.blocks, codes, strict=True):
            if teacher_codes is not None:
                add_to_output(module, y[block.teacher], teacher_codes @ layer.worn[block.task].up.T)
            add_to_output(module, y[block.student], tokens[block.student] @ merged.down.T @ merged.up.T)
        return y

    def _open(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> _Layer:
        device, dtype = statistics_device(x.device), product_dtype(x)
        deltas = {k: a.deltas[path] for k, a in enumerate(self.adapters) if path in a.deltas}
        worn = [worn_delta(path, self.adapters, task.mix) for task in self.tasks]
        d_in, full = weight_shape(module)[1], self.config.balance == "full"
        statistics = [
            TaskStatistics.empty(
                d_in, delta.rank if delta else 0, device, cross_gram=self.config.ridge == "paper", output_energy=full
            )
            for delta in worn
        ]
        full_norms, bias = [None] * len(worn), None
        if full:
            weight = base_weight(module, x.device, x.dtype).to(device=device, dtype=torch.float64)
            dressed = [
                weight if delta is None else weight + delta.to(device=device, dtype=torch.float64).dense() for delta in worn
            ]
            full_norms = [matrix.square().sum() for matrix in dressed]
            bias = getattr(module, "bias", None)
        on_device = [delta and delta.to(device=x.device, dtype=dtype) for delta in worn]
        deltas = {k: delta.to(device=device, dtype=torch.float64) for k, delta in deltas.items()}
        return _Layer(path, deltas, on_device, statistics, full_norms, bias, device, dtype)

    def _measure(self, layer: _Layer, module: nn.Module, chunk: Chunk, tokens: Tensor, y: Tensor) -> list[Tensor | None]:
        layer.arrived.append(chunk)
        stream, all_codes = self.network.stream(layer.path), []
        for block in chunk.blocks:
            worn = layer.worn[block.task]
            teacher, student = tokens[block.teacher], tokens[block.student]
            codes = None if worn is None else teacher @ worn.down.T
            all_codes.append(codes)
            outputs = None
            if self.config.balance == "full":
                outputs = output_tokens(module, y[block.teacher]).to(layer.dtype)
                outputs = outputs if layer.bias is None else outputs - layer.bias.to(outputs)
                outputs = (outputs if codes is None else outputs + codes @ worn.up.T).flatten(0, 1)
            if self.config.input_mix:
                student = torch.lerp(student, teacher, self.config.input_mix)
            weights = block.token_weights(stream, teacher.shape[1], layer.path)
            layer.statistics[block.task].add(
                teacher.flatten(0, 1),
                student.flatten(0, 1),
                teacher.new_zeros(teacher.shape[0] * teacher.shape[1], 0) if codes is None else codes.flatten(0, 1),
                weights,
                outputs,
            )
        return all_codes

    def solve(self, path: str) -> None:
        """Solve the layer at which all chunks have arrived."""
        layer = self.layer
        tasks = [
            TaskAtLayer(
                name=task.name,
                mix={k: share for k, share in task.mix.items() if share and k in layer.deltas},
                weight=task.weight,
                statistics=layer.statistics[g],
                worn=layer.worn[g] and layer.worn[g].to(device=layer.device, dtype=torch.float64),
                full_norm=layer.full_norms[g],
            )
            for g, task in enumerate(self.tasks)
        ]
        try:
            solution = solve_layer(layer.deltas, tasks, self.config)
        except SolveError as error:
            raise SolveError(f"layer {path!r}: {error}") from error
        saved = solution.delta.balanced().to(dtype=self.config.output_dtype)
        worn = saved.to(dtype=torch.float64)
        self.reports.append(_layer_report(path, layer.deltas, tasks, worn, solution.lambdas, solution.target_energies))
        self.solved[path] = saved.to(device="cpu")
        layer.merged = saved
        layer.statistics = []  # one layer's sums at a time
        if self.progress is not None:
            self.progress(len(self.solved), self.total)


def _layer_report(
    path: str,
    deltas: Mapping[int, LowRankDelta],
    tasks: Sequence[TaskAtLayer],
    merged: LowRankDelta,
    lambdas: Tensor,
    target_energies: Tensor,
) -> Callable[[], LayerReport]:
    """Return a function that reads the figures from the device: reading now would make every layer wait for it."""
    together = stack(list(deltas.values()), [1.0] * len(deltas))
    left = torch.stack([squared_residual(task, merged) for task in tasks])
    stacked = torch.stack([student_energy(task, together) for task in tasks])
    reference = torch.where(target_energies > 0, target_energies, stacked)
    residuals = torch.where(reference > 0, (left / reference).sqrt(), torch.zeros_like(left))
    names, tokens = [task.name for task in tasks], [task.statistics.tokens for task in tasks]

    def read() -> LayerReport:
        entries = zip(names, residuals.tolist(), lambdas.tolist(), tokens, strict=True)
        return LayerReport(path, merged.rank, tuple(TaskAtLayerReport(*entry) for entry in entries))

    return read


def _outputs_by_task(tasks: Sequence[Task], chunks: Sequence[Chunk], answers: Sequence[Any]) -> Any:
    if not all(isinstance(answer, Tensor) for answer in answers):
        return None
    outputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tasks]
    for chunk, answer in zip(chunks, answers, strict=True):
        for block in chunk.blocks:
            outputs[block.task].extend(zip(answer[block.teacher], answer[block.student], strict=True))
    return tuple(tuple(rows) for rows in outputs)
