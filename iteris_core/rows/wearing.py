"""Rows of a batch that wear adapters, whose deltas forward hooks add to the outputs of layers, and
the outputs of the network on such rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, Stacked, stack, target_layers
from ..devices import Workplace, exact_products
from ..errors import CalibrationError
from ..layers import add_to_output, codes_of
from ..network import Network, in_calls
from ..processes import Processes
from ..progress import Progress
from ..tasks import Task
from .chunks import Chunk

LayerHook = Callable[[str, nn.Module, Tensor, Tensor], Tensor]
Mix = tuple[tuple[int, float], ...]


class DeltaCache:
    """Caches the deltas that rows wear on their device, as many as there is room for; the others
    are prepared again in every call. So a call's memory does not grow with the LoRAs' ranks.

    Args:
        room: Bytes of the device.
    """

    def __init__(self, room: float = math.inf) -> None:
        self._room = room
        self._kept: dict[tuple[str, Mix], LowRankDelta | None] = {}

    def delta(
        self, path: str, adapters: Sequence[Adapter], mix: Mix, x: Tensor
    ) -> LowRankDelta | None:
        """Return a mix of adapters at a layer whose input is x as one delta on its device; None: it
        changes nothing there.
        """
        if (path, mix) in self._kept:
            return self._kept[path, mix]
        delta = _mix_as_worn(worn_delta(path, adapters, dict(mix)), Workplace.of(x))
        size = 0 if delta is None else delta.up.nbytes + delta.down.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[path, mix] = delta
        return delta


@contextmanager
def layer_hooks(modules: Mapping[str, nn.Module], hook: LayerHook) -> Iterator[None]:
    """Call ``hook(path, module, input, output)`` after each module's forward; what it returns
    replaces the output, which it may change in place. It runs before the hooks of others, since
    these may also scale what a merged LoRA would add.

    Raises:
        CalibrationError: A module that is called without a tensor.
    """

    def bound(path: str) -> Callable[..., Tensor]:
        def after_forward(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> Tensor:
            inputs = args or tuple(named.values())
            if not inputs or not isinstance(inputs[0], Tensor):
                raise CalibrationError(
                    f"layer {path!r} was called without a tensor to work on, so it cannot be "
                    "measured; leave this layer out of the merge"
                )
            return hook(path, module, inputs[0], _changeable(inputs[0], output))

        return after_forward

    handles = []
    try:
        for path, module in modules.items():
            handles.append(
                module.register_forward_hook(bound(path), with_kwargs=True, prepend=True)
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changeable(x: Tensor, y: Tensor) -> Tensor:
    """Return a layer's output as a tensor that may be changed in place: itself, since the layer has
    just made it; or a copy if it is the layer's input, a part of another tensor, or a tensor that
    torch lets nobody change. To copy every output would take as long as all that the rows wear.
    """
    storage = y.untyped_storage()
    is_part = storage._cdata == x.untyped_storage()._cdata or storage.nbytes() != y.nbytes
    is_frozen = y.is_inference() and not torch.is_inference_mode_enabled()
    return y.clone() if is_part or is_frozen else y


def worn_delta(
    path: str, adapters: Sequence[Adapter], mix: Mapping[int, float]
) -> Stacked[int] | None:
    """Return a mix of adapters at one layer as one delta; None if it changes nothing there."""
    shares = {k: share for k, share in mix.items() if share and path in adapters[k].deltas}
    if not shares:
        return None
    return stack({k: adapters[k].deltas[path] for k in shares}, shares)


@contextmanager
def wearing(
    modules: Mapping[str, nn.Module],
    adapters: Sequence[Adapter],
    mixes: Sequence[Mapping[int, float]],
    cache: DeltaCache | None = None,
    folds_rows: Callable[[str], bool] = lambda path: False,
) -> Iterator[None]:
    """Let row i of every batch run through base + ``mixes[i]``, without patching anything.

    Args:
        adapters: Adapters that the mixes name by their number.
        mixes: Mix of each row of the batches that will run.
        cache: Keeps the deltas of these adapters for other batches; None: one for these alone.
        folds_rows: See `network.Network`.

    Raises:
        CalibrationError: A layer gets another number of rows than there are mixes.
    """
    cache = DeltaCache() if cache is None else cache
    numbers: dict[Mix, list[int]] = {}
    for row, mix in enumerate(mixes):
        numbers.setdefault(tuple(sorted(mix.items())), []).append(row)
    rows_by_mix = {mix: side_by_side(of_mix) for mix, of_mix in numbers.items()}

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        shape = y.shape
        if folds_rows(path):
            x, y = unfolded(len(mixes), x, y)
        check_rows(path, x, len(mixes))
        # entered once: with several mixes its switches would take longer than their products
        with exact_products(x.device):
            for mix, rows in rows_by_mix.items():
                delta = cache.delta(path, adapters, mix, x)
                if delta is None:
                    continue
                for part in rows:
                    codes = codes_of(module, x[part], delta.down)
                    add_to_output(module, y[part], codes, delta.up)
        return y.reshape(shape)

    with layer_hooks({path: modules[path] for path in target_layers(adapters)}, hook):
        yield


def answers_of(
    network: Network,
    adapters: Sequence[Adapter],
    mixes: Sequence[Mapping[int, float]],
    reads: Sequence[Any],
    cache: DeltaCache | None = None,
) -> Any:
    """Return what a network answers in one call to rows that read these and wear these mixes; see
    `wearing`.
    """
    with wearing(network.modules, adapters, mixes, cache, network.folds_rows):
        return network.forward(reads)


class Rows:
    """Distinct rows that wear mixes of adapters.

    Args:
        key: Input of a row -> a key that equal inputs share.
    """

    def __init__(self, key: Callable[[Any], Hashable]) -> None:
        self.key = key
        self.reads: list[Any] = []
        self.mixes: list[Mapping[int, float]] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, reads: Any, mix: Mapping[int, float]) -> int:
        """Return the number of a row, after adding it if there is none like it."""
        key = self.key(reads), tuple(sorted(mix.items()))
        if key not in self._numbers:
            self._numbers[key] = len(self.reads)
            self.reads.append(reads)
            self.mixes.append(mix)
        return self._numbers[key]


def outputs_of(
    network: Network,
    adapters: Sequence[Adapter],
    rows: Rows,
    rows_per_call: int,
    progress: Progress,
) -> list[Tensor]:
    """Return the output of every row, on the CPU; the calls are shared over all processes.

    Args:
        adapters: The adapters, and the merged one last.
    """
    processes = Processes.current()
    calls = in_calls([network.call_key(reads) for reads in rows.reads], rows_per_call)
    with processes.together():
        own = processes.share(calls)
        total = sum(map(len, own))
        answers = []
        done = 0
        cache = DeltaCache(network.worn_bytes)
        for numbers in own:
            mixes = [rows.mixes[number] for number in numbers]
            reads = [rows.reads[number] for number in numbers]
            with torch.no_grad():
                answer = answers_of(network, adapters, mixes, reads, cache)
            # a copy: a compiled model may write its next output into the same tensor
            answers.append(answer.detach().to("cpu", copy=True))
            done += len(numbers)
            progress(done, total)
        outputs: dict[int, Tensor] = {}
        for numbers, answer in zip(calls, processes.gather(answers), strict=True):
            outputs |= dict(zip(numbers, answer, strict=True))
    return [outputs[number] for number in range(len(rows.reads))]


def side_by_side(rows: Sequence[int]) -> list[slice]:
    """Return rising numbers of rows as slices of neighbours, which are views and no copies.

    >>> side_by_side([0, 1, 4])
    [slice(0, 2, None), slice(4, 5, None)]
    """
    breaks = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    ends = zip([0, *breaks], [*breaks, len(rows)], strict=True)
    return [slice(rows[start], rows[stop - 1] + 1) for start, stop in ends]


def unfolded(rows: int, *tensors: Tensor) -> list[Tensor]:
    """Return tensors of a layer that folds rows, (rows * n, tokens, d), as (rows, n * tokens, d).

    A tensor that cannot be cut into so many rows stays as it is, and `check_rows` refuses it.
    """
    return [t if t.shape[0] % rows else t.reshape(rows, -1, t.shape[-1]) for t in tensors]


def check_rows(path: str, x: Tensor, expected: int) -> None:
    """Refuse a layer input whose rows are not the batch's rows."""
    if x.shape[0] != expected:
        raise CalibrationError(
            f"layer {path!r} got {x.shape[0]} rows in a batch of {expected}: the model splits, "
            "joins or skips rows before this layer, so it cannot be told which row wears which "
            "adapter; leave this layer out of the merge"
        )


@dataclass(frozen=True)
class Worn:
    """The deltas that rows wear at one layer, see `as_worn`.

    Args:
        teachers: Mix of each task as one delta; None where it changes nothing.
        merged: Delta of the student rows; None: the same as their teachers'.
    """

    teachers: Sequence[LowRankDelta | None]
    merged: LowRankDelta | None


def worn_at(
    path: str,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    merged: LowRankDelta | None,
    x: Tensor,
) -> Worn:
    """Return the deltas that the rows of all tasks wear at a layer whose input is x."""
    place = Workplace.of(x)
    teachers = [_mix_as_worn(worn_delta(path, adapters, task.mix), place) for task in tasks]
    return Worn(teachers, None if merged is None else as_worn(merged, place))


def _mix_as_worn(mix: Stacked[int] | None, place: Workplace) -> LowRankDelta | None:
    return None if mix is None else as_worn(mix.delta, place)


def as_worn(delta: LowRankDelta, place: Workplace) -> LowRankDelta:
    """Return a delta as rows wear it, see `Workplace`."""
    if place.worn == torch.float16:  # which holds no large codes, and no small factor
        delta = delta.to(device=place.device, dtype=place.dtype).balanced()
    return delta.to(device=place.device, dtype=place.worn)


def add_deltas(
    module: nn.Module,
    chunk: Chunk,
    x: Tensor,
    y: Tensor,
    worn: Worn,
    codes: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Return a layer's output with each task's mix added to its teacher rows, and the merged delta
    to student rows.

    Args:
        y: Output of the layer, which may be changed.
        codes: Teachers' ``X down^T`` per block, if they were computed before.
    """
    with exact_products(x.device):
        for i, block in enumerate(chunk.blocks):
            taught = worn.teachers[block.task]
            if taught is not None:
                of_block = None if codes is None else codes[i]
                if of_block is None:
                    of_block = codes_of(module, x[block.teacher], taught.down)
                add_to_output(module, y[block.teacher], of_block, taught.up)
            merged = taught if worn.merged is None else worn.merged
            if merged is not None:
                of_block = codes_of(module, x[block.student], merged.down)
                add_to_output(module, y[block.student], of_block, merged.up)
    return y
