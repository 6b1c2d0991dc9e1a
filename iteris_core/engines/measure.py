"""The measurement of one layer, from its rows to its solution, as both engines use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, Stacked, unusable_place
from ..algebra.answer import LayerSolution
from ..algebra.balance import TaskAtLayer
from ..algebra.layer import LayerProblem, LayerSolver
from ..algebra.moments import InputMoments, Sums, difference
from ..algebra.products import product
from ..algebra.statistics import DerivedSums, TaskStatistics, TaskSums
from ..config import MergeConfig
from ..devices import Workplace, exact_products, moved, to_cpu
from ..errors import SolveError
from ..layers import base_weight_and_bias, codes_of, input_tokens, is_patchwise, output_tokens
from ..report.figures import figures_of, report_of
from ..rows.chunks import Block, Chunk
from ..rows.wearing import as_worn, worn_delta
from .counted_tokens import CountedTokens, counted_tokens, tokens_read
from .layer_sums import Drifting, can_derive, exact_worn, new_moments, new_statistics
from .problem import Problem, SolvedLayer
from .shared_inputs import Arrivals, SharedInput, SharedInputs, reading_of


@dataclass(frozen=True)
class _BaseLayer:
    """The layer's own weight, (d_out, d_in), float64 where sums are, and its bias, (d_out,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Measurement:
    """One layer, from its first rows to its solution.

    Lifecycle:
        1. `open`, when the first rows arrive: deltas go to the device, sums are made.
        2. `add`, once for each chunk: its rows go into the sums.
        3. `finish` and `solve`, once, after the last chunk. Then the owner drops the measurement,
           since the sums are large.

    Args:
        place: Device and precisions of the rows and of the sums.
        shared: Input of the layer, which earlier layers may share.
        deltas: Adapter index -> delta at this layer, float64 where sums are kept.
        worn: Mix of each task as one delta, as the rows wear it; None where it changes nothing.
        base: The layer without any adapter; only where the settings need it.
        drifting: How the drift of the outputs is measured; only for the full-output target.
    """

    problem: Problem
    path: str
    module: nn.Module
    place: Workplace
    shared: SharedInput
    arrivals: Arrivals
    deltas: dict[int, LowRankDelta]
    worn: list[Stacked[int] | None]
    statistics: list[TaskStatistics]
    base: _BaseLayer | None
    drifting: Drifting | None

    @classmethod
    def open(
        cls,
        problem: Problem,
        path: str,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        inputs: SharedInputs,
    ) -> Measurement:
        """Prepare to measure a layer.

        Args:
            inputs: Inputs that were measured before; a new one is added.
        """
        config = problem.config
        place = Workplace.of(x)
        reading = reading_of(problem.network, path, module)
        shared = inputs.find(reading, x)
        is_first = shared is None
        derives = shared.derives if shared else can_derive(problem, path, module, x, inputs)
        drifting = None
        if config.target == "full_output":
            drifting = Drifting.of(module, x, y, problem.processes, by_weight=derives)
            derives = derives and drifting.weight is not None
        if shared is None:
            moments = new_moments(problem, module, x, place.sums, changes=derives)
            shared = inputs.add(reading, moments, derives=derives)
        worn = [
            None if mix is None else mix.to(device=place.device, dtype=place.dtype)
            for mix in (worn_delta(path, problem.adapters, task.mix) for task in problem.tasks)
        ]
        base = None
        if config.base_weight_setting is not None:
            weight, bias = base_weight_and_bias(module, x.device, x.dtype)
            base = _BaseLayer(moved(weight, place.sums, torch.float64), bias)
        return cls(
            problem,
            path,
            module,
            place,
            shared,
            Arrivals(path, shared.seen, is_first),
            deltas={
                k: adapter.deltas[path].to(device=place.sums, dtype=torch.float64)
                for k, adapter in enumerate(problem.adapters)
                if path in adapter.deltas
            },
            worn=worn,
            statistics=new_statistics(problem, module, place, shared, worn, drifting),
            base=base,
            drifting=drifting,
        )

    @property
    def is_complete(self) -> bool:
        """Whether an earlier layer has measured all that the solve needs."""
        return not self.arrivals.is_first and self.is_derived

    @property
    def is_derived(self) -> bool:
        """Whether the sums follow from the input's, so that the layer's outputs do not matter."""
        return isinstance(self.statistics[0], DerivedSums)

    def teachers(self) -> list[LowRankDelta | None]:
        """Return the deltas that the teacher rows of each task wear."""
        return [None if mix is None else as_worn(mix.delta, self.place) for mix in self.worn]

    def sum_bytes(self) -> int:
        """Return the memory that this layer's sums take, without those of an earlier layer."""
        own = sum(part.bytes() for part in self.statistics if isinstance(part, TaskSums))
        if not self.arrivals.is_first:
            return own
        return own + sum(moments.bytes() for moments in self.shared.moments)

    def add(self, chunk: Chunk, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """Add a chunk's rows to the sums, and return the teachers' codes per block; None if rows
        wear deltas in another precision than that of the sums' products.

        Args:
            y: Output of the layer without any adapter.
        """
        self.arrivals.add(x)
        with exact_products(x.device), exact_products(self.place.sums):
            return [self._add_block(block, x, y) for block in chunk.blocks]

    def _add_block(self, block: Block, x: Tensor, y: Tensor) -> Tensor | None:
        mix = self.worn[block.task]
        codes = None
        if mix is not None and self.place.worn == self.place.dtype:
            codes = codes_of(self.module, x[block.teacher], mix.delta.down)
        # patches of a convolution take many times the room of its input: one row at a time
        step = 1 if is_patchwise(self.module) else len(block.samples)
        for start in range(0, len(block.samples), step):
            teacher, student = (
                slice(side.start + start, min(side.start + start + step, side.stop))
                for side in (block.teacher, block.student)
            )
            some = slice(start, start + step)
            piece = Block(block.task, teacher, student, block.samples[some], block.numbers[some])
            self._add_rows(piece, x, y, None if codes is None else codes[start : start + step])
        return codes

    def _add_rows(self, block: Block, x: Tensor, y: Tensor, codes: Tensor | None) -> None:
        """Add teacher and student rows of one task; ``codes`` are the teachers'.

        Each of the student's tokens makes a pair with the teacher's token that answers to it.
        """
        config = self.problem.config
        teacher, student = (
            input_tokens(self.module, x[side]) for side in (block.teacher, block.student)
        )
        count = teacher.shape[1]
        most = tokens_read(self.module, count, self.problem)
        stream = self.problem.network.stream(self.path)
        tokens = counted_tokens(block, most, count, self.place, stream, self.path)
        if tokens is None:
            return
        is_own = tokens.roots is None and not config.input_mix  # the model's numbers, as they are
        dtype = self.place.kept if is_own else self.place.dtype
        taught = tokens.of_teacher(teacher).to(dtype)
        rows = tokens.of_student(student).to(dtype)
        if config.input_mix:
            rows = torch.lerp(rows, taught, config.input_mix)
        rows = tokens.weighed(rows)
        statistics = self.statistics[block.task]
        if self.arrivals.is_first:
            statistics.inputs.add(tokens.weighed(taught), rows)
        if not isinstance(statistics, TaskSums):
            return
        mix = self.worn[block.task]
        if codes is not None:
            codes = tokens.weighed(tokens.of_teacher(codes))
        elif mix is not None:
            codes = product(tokens.weighed(taught), mix.delta.down.T)
        else:
            codes = rows.new_empty(len(rows), 0, dtype=self.place.dtype)
        drift = None
        if self.drifting is not None and self.drifting.weight is not None:
            changes = difference(tokens.weighed(taught), rows)
            drift = product(changes, self.drifting.weight.T)
        elif self.drifting is not None:
            drift = self._difference(block, y, tokens)
        outputs = self._outputs(block, y, tokens)
        statistics.add(
            rows,
            codes,
            drift=drift,
            target=None if drift is None else self._taught(block, codes, drift),
            outputs=None if outputs is None else self._taught(block, codes, outputs),
        )

    def _taught(self, block: Block, codes: Tensor, outputs: Tensor) -> Tensor:
        """Return outputs, (n, d_out), plus what the teacher adds to them, ``X dW^T``."""
        mix = self.worn[block.task]
        return outputs if mix is None else torch.addmm(outputs, codes, mix.delta.up.T)

    def _difference(self, block: Block, y: Tensor, tokens: CountedTokens) -> Tensor:
        """Return ``Y - Y~``, (n, d_out), from the layer's outputs."""
        config = self.problem.config
        teacher = tokens.of_teacher(output_tokens(self.module, y[block.teacher]))
        student = tokens.of_student(output_tokens(self.module, y[block.student]))
        drift = teacher.to(self.place.dtype) - student.to(self.place.dtype)
        if config.input_mix:
            drift *= 1 - config.input_mix
        return tokens.weighed(drift)

    def _outputs(self, block: Block, y: Tensor, tokens: CountedTokens) -> Tensor | None:
        """Return ``X W0^T``, (n, d_out), where the balance asks for it."""
        if self.problem.config.balance != "full" or self.base is None:
            return None
        outputs = tokens.of_teacher(output_tokens(self.module, y[block.teacher]))
        return tokens.weighed(outputs.to(self.place.dtype) - self.base.bias.to(self.place.dtype))

    def finish(self, *, counts: bool = True) -> None:
        """Complete the sums, over all processes, when all rows have been added.

        Args:
            counts: Whether the rows of this process count; False if it only repeats another's, to
                go through the same layers.
        """
        moments = self.shared.moments if self.arrivals.is_first else []
        own = [statistics for statistics in self.statistics if isinstance(statistics, TaskSums)]
        with exact_products(self.place.sums):
            if not self.problem.processes.is_alone:
                self._add_up(own, moments, counts=counts)
            for statistics in own:
                statistics.finish()
            for part in moments:
                part.finish()

    def _add_up(
        self, own: Sequence[TaskSums], moments: Sequence[InputMoments], *, counts: bool
    ) -> None:
        sums = [part for part in moments if isinstance(part, Sums)]
        assert len(sums) == len(moments)  # only a process that is alone keeps rows
        tokens = [torch.tensor(float(part.tokens), dtype=torch.float64) for part in sums]
        totals = [*tokens, *(total for part in sums for total in part.totals())]
        totals += [total for statistics in own for total in statistics.totals()]
        if not counts:
            for total in totals:
                total.zero_()
        self.problem.processes.add_up(totals)
        for part, count in zip(sums, tokens, strict=True):
            part.tokens = int(count)

    def solve(self, solver: LayerSolver) -> SolvedLayer:
        """Solve the layer, whose sums are complete.

        Raises:
            SolveError: No usable solution; with the layer's path.
        """
        with exact_products(self.place.sums):
            return self._solved(solver)

    def _solved(self, solver: LayerSolver) -> SolvedLayer:
        config = self.problem.config
        layer = LayerProblem(
            self.deltas,
            [self._task(g) for g in range(len(self.problem.tasks))],
            config,
            config.rank_at(self.path),
            self.base.weight if self.base and config.needs_base_weight else None,
        )
        try:
            if not layer.counted:
                raise SolveError(
                    "no task has tokens that count here; give at least one of them token weights "
                    "above 0"
                )
            solution = solver(layer)
        except SolveError as error:
            raise SolveError(f"layer {self.path!r}: {error}") from error
        exact = solution.delta.balanced().to(dtype=config.output_dtype).to(dtype=torch.float64)
        up, down, *figures = to_cpu(exact.up, exact.down, *figures_of(layer, solution, exact))
        saved = LowRankDelta(up, down).to(dtype=config.output_dtype)
        if unusable_place(Adapter("merged", {self.path: saved})) is not None:
            raise SolveError(f"layer {self.path!r}: {_why_not_finite(solution, config)}")
        is_rounded = self.drifting is not None and self.drifting.is_rounded
        report = report_of(self.path, layer, solution, figures)
        return SolvedLayer(saved, report, solution.was_too_coarse, is_rounded)

    def _task(self, g: int) -> TaskAtLayer:
        task = self.problem.tasks[g]
        worn = self.worn[g]
        full_norm = None
        if self.problem.config.balance == "full" and self.base is not None:
            exact = exact_worn(worn, self.place)
            weight = self.base.weight
            full_norm = (weight if exact is None else weight + exact.delta.dense()).square().sum()
        shares = {k: share for k, share in task.mix.items() if share and k in self.deltas}
        return TaskAtLayer(task.name, shares, task.weight, self.statistics[g], worn, full_norm)


def _why_not_finite(solution: LayerSolution, config: MergeConfig) -> str:
    largest = max(solution.delta.up.abs().max().item(), solution.delta.down.abs().max().item())
    if not math.isfinite(largest):
        return (
            "the merged delta is not finite; the adapters' changes are too large for the sums. "
            "Lower their strengths"
        )
    precision = str(config.output_dtype).removeprefix("torch.")
    return (
        f"the merged delta has numbers up to {largest:.1e}, more than {precision} can hold; save "
        "in bfloat16 or float32, or lower the strengths"
    )
