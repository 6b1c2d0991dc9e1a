"""How a layer is measured: by sums over its own rows or by sums that are derived from its input's,
whether the input's moments are sums or kept rows, the drift of its outputs, and the memory that all
this takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import Adapter, Stacked, target_shapes
from ..algebra.moments import InputMoments, KeptRows, Sums
from ..algebra.products import TOKENS_PER_PRODUCT
from ..algebra.statistics import BaseWeight, DerivedSums, TaskStatistics, TaskSums
from ..config import MergeConfig
from ..devices import Workplace, exact_products, in_float32, moved, product_dtype, sums_dtype
from ..layers import (
    base_weight_and_bias,
    codes_of,
    is_patchwise,
    output_tokens,
    token_count,
    weight_shape,
)
from ..memory import LayerBytes
from ..processes import Processes
from . import counted_tokens
from .counted_tokens import tokens_read
from .problem import Problem
from .shared_inputs import SharedInput, SharedInputs, may_derive

# Extra work of deriving sums from an input: on each token, in squares of the width; and on the
# layers' weights, in products with such a square: one product, the weights' own square and, where
# a probe reads them, the reading.
_MORE_PER_TOKEN = 1.5
_PRODUCTS = 2
# How far, relative to its outputs, a layer in half precision may be from the product with the
# weight that was read. Rounding makes 0.01 at most; a layer that does more than a product, 0.1 and
# more.
_SAME = 0.05
_PROBE = 64.0  # see `base_weight_and_bias`; far from an overflow of half precision


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


@dataclass(frozen=True)
class Drifting:
    """The drift of a layer's outputs, ``Y - Y~ = (X - X~) W0^T``.

    In half precision, the difference of two outputs contains their rounding. Where the inputs are
    small compared with the bias, or hardly differ, that is many times the drift. So the drift is
    then computed from the difference of the inputs.

    Args:
        weight: W0, (d_out, d_in), in the precision of the products; None: the difference of the
            outputs is taken.
        is_rounded: Whether that difference is rounded, since the weight could not be read.
    """

    weight: Tensor | None
    is_rounded: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        processes: Processes,
        *,
        by_weight: bool = False,
    ) -> Drifting:
        """Choose how to compute a layer's drift, by an input and its output. All processes choose
        alike, since their sums are added up.

        Args:
            by_weight: Whether to use the weight in full precision, too.
        """
        dtype = product_dtype(x)
        is_half = y.dtype.itemsize < dtype.itemsize
        if not (is_half or by_weight):
            return cls(None)
        if by_weight and type(module) is nn.Linear and "forward" not in vars(module):
            return cls(module.weight.detach().to(x.device, dtype))
        weight, bias = (
            part.to(dtype) for part in base_weight_and_bias(module, x.device, x.dtype, _PROBE)
        )
        outputs = output_tokens(module, y[:1]).to(dtype)
        with exact_products(x.device):
            products = codes_of(module, x[:1], weight) + bias
        # false for what is not finite, too, which the solve explains
        is_same = processes.agree((products - outputs).norm() <= _SAME * outputs.norm())
        return cls(weight if is_same else None, is_rounded=is_half and not is_same)


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
    module: nn.Module, shape: tuple[int, int], tasks: int, config: MergeConfig, device: torch.device
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
