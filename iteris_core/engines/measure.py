"""One layer being measured: rows in, statistics, solution out, rows dressed. Both engines work with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, moved, names_of
from ..algebra.solve import LayerSolver, TaskAtLayer, solve_layer
from ..algebra.statistics import InputMoments, TaskStatistics, product_dtype, statistics_device
from ..config import MergeConfig
from ..errors import CalibrationError, SolveError
from ..layers import (
    base_weight_and_bias,
    codes_of,
    input_tokens,
    is_patchwise,
    output_tokens,
    token_count,
    weight_shape,
)
from ..report.figures import figures_of
from ..report.records import LayerReport
from ..rows.chunks import Block, Chunk, worn_delta
from ..tasks import Task
from .shared_inputs import SharedInput, SharedInputs


@dataclass(frozen=True)
class SolvedLayer:
    """A layer's merged delta as it will be saved, its report, read when asked for, and its uncut
    answer's singular values.
    """

    saved: LowRankDelta
    report: Callable[[], LayerReport]
    values: Tensor | None = None


@dataclass
class Measurement:
    """A layer's deltas on the device and the statistics of its tasks, from the first row to the
    solve.
    """

    path: str
    stream: str
    tasks: Sequence[Task]
    config: MergeConfig
    device: torch.device  # of the rows
    sums_device: torch.device
    dtype: torch.dtype
    names: tuple[str, ...]  # of the adapters
    deltas: dict[int, LowRankDelta]
    worn: list[LowRankDelta | None]
    statistics: list[TaskStatistics]
    shared: SharedInput
    first_of_its_input: bool
    weight: Tensor | None = None
    bias: Tensor | None = None
    arrived: int = 0
    input_changed: Tensor | None = (
        None  # on the device: whether a shared input is not what was measured
    )

    @classmethod
    def open(
        cls,
        path: str,
        stream: str,
        module: nn.Module,
        x: Tensor,
        adapters: Sequence[Adapter],
        tasks: Sequence[Task],
        config: MergeConfig,
        inputs: SharedInputs,
    ) -> Measurement:
        """Prepare to measure a layer, when its first rows arrive."""
        sums_device = statistics_device(x.device)
        dtype = product_dtype(x)
        (d_out, d_in) = weight_shape(module)
        shared = inputs.find(stream, x)
        paper = config.ridge == "paper"
        first = shared is None
        if shared is None:
            per_row = len(_picked_tokens(module, token_count(module, x), tasks, config))
            few = not paper and per_row * sum(len(task.samples) for task in tasks) < d_in
            moments = [
                InputMoments(
                    d_in, sums_device, cross_gram=paper, keep_rows=few * per_row * len(task.samples)
                )
                for task in tasks
            ]
            shared = SharedInput(stream, moments)
            inputs.entries.append(shared)
        worn = [worn_delta(path, adapters, task.mix) for task in tasks]
        full = config.balance == "full"
        statistics = [
            TaskStatistics(
                moments,
                0 if delta is None else delta.rank,
                drift_width=d_out if config.target == "full_output" else None,
                output_energy=full,
            )
            for delta, moments in zip(worn, shared.moments, strict=True)
        ]
        weight = bias = None
        if full or config.needs_base_weight:
            weight, bias = base_weight_and_bias(module, x.device, x.dtype)
            weight = moved(weight, sums_device, torch.float64)
        return cls(
            path=path,
            stream=stream,
            tasks=tasks,
            config=config,
            device=x.device,
            sums_device=sums_device,
            dtype=dtype,
            names=names_of(adapters),
            deltas={
                k: adapter.deltas[path].to(device=sums_device, dtype=torch.float64)
                for k, adapter in enumerate(adapters)
                if path in adapter.deltas
            },
            worn=[delta and delta.to(device=x.device, dtype=dtype) for delta in worn],
            statistics=statistics,
            shared=shared,
            first_of_its_input=first,
            weight=weight,
            bias=bias,
        )

    def add(
        self, module: nn.Module, chunk: Chunk, x: Tensor, y: Tensor, inputs: SharedInputs
    ) -> list[Tensor | None]:
        """Add a chunk's rows to the statistics, and return the teachers' codes per block."""
        if self.first_of_its_input:
            self.shared.add(x)
        else:
            changed = inputs.check(self.shared, self.arrived, x, self.path)
            self.input_changed = (
                changed if self.input_changed is None else self.input_changed | changed
            )
        self.arrived += 1
        return [self._add_block(module, block, x, y) for block in chunk.blocks]

    def _add_block(self, module: nn.Module, block: Block, x: Tensor, y: Tensor) -> Tensor | None:
        worn = self.worn[block.task]
        codes = None if worn is None else codes_of(module, x[block.teacher], worn.down)
        # patches of a convolution take many times the room of its input: one row at a time
        step = 1 if is_patchwise(module) else len(block.samples)
        for start in range(0, len(block.samples), step):
            teacher, student = (
                slice(side.start + start, min(side.start + start + step, side.stop))
                for side in (block.teacher, block.student)
            )
            part = None if codes is None else codes[start : start + step]
            piece = Block(block.task, teacher, student, block.samples[start : start + step])
            self._add_rows(module, piece, x, y, part)
        return codes

    def _add_rows(
        self, module: nn.Module, block: Block, x: Tensor, y: Tensor, codes: Tensor | None
    ) -> None:
        """Add teacher and student rows of one task; ``codes`` are the teachers'."""
        worn = self.worn[block.task]
        config = self.config
        teacher, student = (
            input_tokens(module, x[side]).to(self.dtype) for side in (block.teacher, block.student)
        )
        count = teacher.shape[1]
        weights = block.token_weights(self.stream, count, self.path)
        picked = _picked_tokens(module, count, self.tasks, config)
        counted = None
        on_device = slice(None) if len(picked) == count else picked.to(x.device)
        if weights is not None:
            weights = weights.reshape(len(block.samples), count)[:, picked].flatten()
            counted = weights.nonzero()[:, 0]
            if not len(counted):
                return
            roots = weights[counted].to(teacher).sqrt()[:, None]
            counted = counted.to(x.device)

        def rows(part: Tensor) -> Tensor:
            """(rows, tokens, d) -> (tokens that count, d), times the roots of their weights"""
            part = part[:, on_device].flatten(0, 1)
            return part if counted is None else part[counted] * roots

        if config.input_mix:
            student = torch.lerp(student, teacher, config.input_mix)
        student_rows = rows(student)
        if self.first_of_its_input:
            moments = self.statistics[block.task].inputs
            moments.add(rows(teacher), student_rows)
            moments.tokens += student_rows.shape[0]
        drift = added = outputs = None
        if config.target == "full_output":
            ours, theirs = (
                output_tokens(module, y[side]).to(self.dtype)
                for side in (block.teacher, block.student)
            )
            drift = rows((1 - config.input_mix) * (ours - theirs))
        if codes is not None and (config.target == "full_output" or config.balance == "full"):
            added = codes @ worn.up.T
        if config.balance == "full":
            outputs = output_tokens(module, y[block.teacher]).to(self.dtype)
            outputs = outputs if self.bias is None else outputs - self.bias.to(outputs)
            outputs = rows(outputs if added is None else outputs + added)
        self.statistics[block.task].add(
            student_rows,
            student_rows[:, :0] if codes is None else rows(codes),
            drift=drift,
            added=None if added is None else rows(added),
            outputs=outputs,
        )

    def sum_bytes(self) -> int:
        """Return the memory that this layer's sums take, without those that it shares."""
        own = sum(statistics.bytes() for statistics in self.statistics)
        return own + (
            sum(moments.bytes() for moments in self.shared.moments)
            if self.first_of_its_input
            else 0
        )

    def solve(self, rank: int | str, solver: LayerSolver = solve_layer) -> SolvedLayer:
        """Solve the layer once all rows have been added.

        Args:
            rank: See `MergeConfig.rank_at`.
            solver: What to solve it with.

        Raises:
            SolveError: With the layer's name.
        """
        if self.input_changed is not None and bool(self.input_changed):
            raise CalibrationError(
                f"layer {self.path!r} reads a tensor that was changed in place after an earlier "
                "layer had read it, in torch's inference mode, where such changes leave no trace; "
                "run the merge under torch.no_grad() instead"
            )
        tasks = [self._task(g, task) for g, task in enumerate(self.tasks)]
        weight = self.weight if self.config.needs_base_weight else None
        try:
            solution = solver(self.deltas, tasks, self.config, rank, weight)
        except SolveError as error:
            raise SolveError(f"layer {self.path!r}: {error}") from error
        saved = solution.delta.balanced().to(dtype=self.config.output_dtype)
        deltas = {k: (self.names[k], delta) for k, delta in self.deltas.items()}
        report = figures_of(self.path, deltas, tasks, saved.to(dtype=torch.float64), solution)
        # paused chunks still hold this measurement; one layer's sums at a time
        self.statistics.clear()
        return SolvedLayer(saved, report, solution.spectrum and solution.spectrum.values)

    def _task(self, g: int, task: Task) -> TaskAtLayer:
        worn = self.worn[g] and self.worn[g].to(device=self.sums_device, dtype=torch.float64)
        full_norm = None
        if self.config.balance == "full":
            full_norm = (self.weight if worn is None else self.weight + worn.dense()).square().sum()
        mix = {k: share for k, share in task.mix.items() if share and k in self.deltas}
        return TaskAtLayer(task.name, mix, task.weight, self.statistics[g], worn, full_norm)


def _picked_tokens(
    module: nn.Module, count: int, tasks: Sequence[Task], config: MergeConfig
) -> Tensor:
    """Return which of a row's tokens count, on the CPU: all of them, or as many as the settings
    allow, at random places.
    """
    most = count if config.tokens_per_row is None else min(count, config.tokens_per_row)
    if is_patchwise(module):
        most = min(most, max(1, config.patches // sum(len(task.samples) for task in tasks)))
    if most == count:
        return torch.arange(count)
    return (
        torch.randperm(count, generator=torch.Generator().manual_seed(count))[:most].sort().values
    )
