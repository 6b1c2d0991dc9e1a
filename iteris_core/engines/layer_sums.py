"""How a layer is measured: by sums over its own rows or by sums that are derived from its input's,
whether the input's moments are sums or kept rows, and the memory that they take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..adapters import Adapter, Stacked, target_shapes
from ..algebra.moments import InputMoments, KeptRows, Sums
from ..algebra.products import TOKENS_PER_PRODUCT
from ..algebra.statistics import BaseWeight, DerivedSums, TaskStatistics, TaskSums
from ..config import MergeConfig
from ..devices import Workplace, in_float32, moved, sums_dtype
from ..layers import is_patchwise, token_count, weight_shape
from ..memory import LayerBytes
from . import counted_tokens
from .counted_tokens import tokens_read
from .drift import Drifting
from .problem import Problem
from .shared_inputs import SharedInput, SharedInputs, may_derive

# Extra work of deriving sums from an input: on each token, in squares of the width; and on the
# layers' weights, in products with such a square: one product, the weights' own square and, where
# a probe reads them, the reading.
_MORE_PER_TOKEN = 1.5
_PRODUCTS = 2


def can_derive(
    problem: Problem, path: str, module: nn.Module, x: Tensor, inputs: SharedInputs
) -> bool:
    """Whether to derive the sums of all layers that read an input from its moments: if that is less
    work, by the first rows of every process, and the settings allow it.
    """
    width = inputs.widths.get(path)
    if width is None or not may_derive(problem.config) or _keeps_rows(problem, module, x):
        return False
    d_in = weight_shape(module)[1]
    tokens = tokens_read(module, token_count(module, x), problem) * problem.samples
    is_less = tokens * (width - _MORE_PER_TOKEN * d_in) > _PRODUCTS * d_in * width
    return problem.processes.agree(torch.tensor(is_less))


def _keeps_rows(problem: Problem, module: nn.Module, x: Tensor) -> bool:
    """Whether to keep inputs as rows: if there are fewer tokens than the layer is wide. Processes
    that share the samples need sums, which can be added up.
    """
    count = tokens_read(module, token_count(module, x), problem)
    is_few = count * problem.samples < weight_shape(module)[1]
    return problem.processes.is_alone and problem.config.ridge != "paper" and is_few


def new_moments(
    problem: Problem, module: nn.Module, x: Tensor, device: torch.device, *, changes: bool
) -> list[InputMoments]:
    """Return the moments of each task's inputs.

    Args:
        changes: See `Sums`.
    """
    d_in = weight_shape(module)[1]
    if _keeps_rows(problem, module, x):
        count = tokens_read(module, token_count(module, x), problem)
        return [
            KeptRows(d_in, device, capacity=count * len(task.samples)) for task in problem.tasks
        ]
    cross_gram = problem.config.ridge == "paper"
    return [Sums(d_in, device, cross_gram=cross_gram, changes=changes) for _ in problem.tasks]


def new_statistics(
    problem: Problem,
    module: nn.Module,
    place: Workplace,
    shared: SharedInput,
    worn: Sequence[Stacked[int] | None],
    drifting: Drifting | None,
) -> list[TaskStatistics]:
    """Return the sums of each task at a layer, over its own rows or derived from its input's."""
    if shared.derives and drifting is not None and drifting.weight is not None:
        base = BaseWeight(moved(drifting.weight, place.sums))
        exact = [exact_worn(mix, place) for mix in worn]
        return [
            DerivedSums(moments, None if mix is None else mix.delta, base)
            for moments, mix in zip(shared.moments, exact, strict=True)
            if isinstance(moments, Sums)
        ]
    config = problem.config
    return [
        TaskSums(
            moments,
            0 if mix is None else mix.delta.rank,
            drift_width=weight_shape(module)[0] if config.target == "full_output" else None,
            output_energy=config.balance == "full",
        )
        for mix, moments in zip(worn, shared.moments, strict=True)
    ]


def exact_worn(worn: Stacked[int] | None, place: Workplace) -> Stacked[int] | None:
    """Return what rows wear as a solve reads it."""
    return None if worn is None else worn.to(device=place.sums, dtype=torch.float64)


def layer_bytes(
    modules: Mapping[str, nn.Module],
    adapters: Sequence[Adapter],
    tasks: int,
    config: MergeConfig,
    device: torch.device,
) -> dict[str, LayerBytes]:
    """Return about what each layer that adapters change takes.

    Args:
        modules: Modules of the network; layers that are not among them do not count.
        device: Device of the sums.
    """
    shapes = target_shapes(adapters)
    return {
        path: bytes_at(module, shapes[path], tasks, config, device)
        for path, module in modules.items()
        if path in shapes
    }


def bytes_at(
    module: nn.Module,
    shape: tuple[int, int],
    tasks: int,
    config: MergeConfig,
    device: torch.device,
) -> LayerBytes:
    """Return about what one layer takes.

    Args:
        shape: (d_out, d_in).
        device: Device of the sums.
    """
    d_out, d_in = shape
    gram = 8 * d_in * d_in
    right_side = 8 * d_in * d_out if config.target == "full_output" else 0
    kept = sums_dtype(device).itemsize / 8
    keeps_rows = is_patchwise(module) and d_in > counted_tokens.PATCHES
    moments = 8 * counted_tokens.PATCHES * d_in if keeps_rows else tasks * kept * gram
    if may_derive(config) and d_in <= d_out and not keeps_rows:  # with sums over differences
        moments += 2 * tasks * kept * gram
    # rows that are gathered for the products: for the Gram matrix, and for the others
    gathered = 4 * tasks * TOKENS_PER_PRODUCT * (2 * d_in + d_out)
    # the factor (and the system, if the factor is in float32), and copies of the right sides
    grams, sides = (1.5, 3.7) if in_float32(device, d_in) else (1.0, 4.6)
    solve = grams * gram + sides * right_side
    if keeps_rows:  # the system and the Gram matrix of one task's rows
        solve = max(solve, (1 + kept) * gram)
    if config.method == "ties":  # dense deltas, their trimmed copies, masks and signs
        solve = max(solve, 5 * 8 * tasks * d_in * d_out)
    return LayerBytes(moments + gathered + tasks * kept * right_side, solve)
