"""Who wears what: rows of a batch get deltas added to a layer's output, by forward hooks that leave
nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, stack, target_layers
from ..algebra.statistics import product_dtype
from ..errors import CalibrationError
from ..layers import add_to_output, codes_of
from ..tasks import Sample, Task

LayerHook = Callable[[str, nn.Module, Tensor, Tensor], Tensor]


@contextmanager
def layer_hooks(modules: Mapping[str, nn.Module], hook: LayerHook) -> Iterator[None]:
    """Call ``hook(path, module, input, output)`` after each module's forward; what it returns
    replaces the output.
    """

    def bound(path: str) -> Callable[..., Tensor]:
        def after_forward(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> Tensor:
            inputs = args or tuple(named.values())
            if not inputs or not isinstance(inputs[0], Tensor):
                raise CalibrationError(
                    f"layer {path!r} was called without a tensor to work on; it cannot be measured"
                )
            return hook(path, module, inputs[0], output)

        return after_forward

    handles = []
    try:
        for path, module in modules.items():
            handles.append(module.register_forward_hook(bound(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def worn_delta(
    path: str, adapters: Sequence[Adapter], mix: Mapping[int, float]
) -> LowRankDelta | None:
    """Return what a mix of adapters adds to one layer, as one delta; None if nothing."""
    shares = {k: share for k, share in mix.items() if share and path in adapters[k].deltas}
    if not shares:
        return None
    return stack([adapters[k].deltas[path] for k in shares], list(shares.values()))


@contextmanager
def wearing(
    modules: Mapping[str, nn.Module],
    adapters: Sequence[Adapter],
    mixes: Sequence[Mapping[int, float]],
) -> Iterator[None]:
    """Let row i of every batch run through base + ``mixes[i]``, without patching anything.

    Args:
        modules: The network's modules.
        adapters: What the mixes' indices mean.
        mixes: One per row of the batches that will run.

    Raises:
        CalibrationError: A layer gets another number of rows than there are mixes.
    """
    on_device: dict[tuple[str, int], LowRankDelta | None] = {}
    first = {}
    for row, mix in enumerate(mixes):
        first.setdefault(tuple(sorted(mix.items())), []).append(row)

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_rows(path, x, len(mixes))
        y = y.clone()
        for rows in first.values():
            key = (path, rows[0])
            if key not in on_device:
                worn = worn_delta(path, adapters, mixes[rows[0]])
                on_device[key] = worn and worn.to(device=x.device, dtype=product_dtype(x))
            delta = on_device[key]
            if delta is not None:
                added = y[rows]
                add_to_output(module, added, codes_of(module, x[rows], delta.down) @ delta.up.T)
                y[rows] = added
        return y

    with layer_hooks({path: modules[path] for path in target_layers(adapters)}, hook):
        yield


def check_rows(path: str, x: Tensor, expected: int) -> None:
    """Refuse a layer input whose rows are not the batch's rows."""
    if x.shape[0] != expected:
        raise CalibrationError(
            f"layer {path!r} got {x.shape[0]} rows in a batch of {expected}: the model splits, "
            "joins or skips rows before this layer, so it cannot be told which row wears which "
            "adapter; leave this layer out of the merge"
        )


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one task in a chunk: ``teacher`` and ``student`` are slices of the
    batch.
    """

    task: int
    teacher: slice
    student: slice
    samples: tuple[Sample, ...]

    def token_weights(self, stream: str, tokens: int, path: str) -> Tensor | None:
        """Return the samples' weights in this stream, one per token of all samples, or None where
        all count once.
        """
        if not any(stream in sample.token_weights for sample in self.samples):
            return None
        rows = [
            sample.weights_of(stream, tokens).to("cpu", torch.float32) for sample in self.samples
        ]
        for row in rows:
            if row.shape != (tokens,):
                raise CalibrationError(
                    f"layer {path!r} sees {tokens} tokens a row, but a sample has "
                    f"{tuple(row.shape)} token weights for the stream {stream!r}; give one weight "
                    "per token"
                )
            if not (torch.isfinite(row).all() and (row >= 0).all()):
                raise CalibrationError(
                    f"a sample has a token weight in the stream {stream!r} that is below 0 or no "
                    "finite number; 0 leaves a token out, 1 counts it once"
                )
        return torch.cat(rows)


@dataclass(frozen=True)
class Chunk:
    """Samples of one forward call: their teacher rows first, then their student rows, in the same
    order.
    """

    blocks: tuple[Block, ...]

    @property
    def samples(self) -> list[Sample]:
        return [sample for block in self.blocks for sample in block.samples]

    @property
    def inputs(self) -> list[object]:
        """What each row reads, in the order of the batch."""
        samples = self.samples
        return [sample.teacher for sample in samples] + [sample.student_reads for sample in samples]


def split_into_chunks(tasks: Sequence[Task], samples_per_chunk: int) -> list[Chunk]:
    """Cut all tasks' samples, in order, into chunks of at most this many samples."""
    flat = [(g, sample) for g, task in enumerate(tasks) for sample in task.samples]
    chunks = []
    for start in range(0, len(flat), samples_per_chunk):
        part = flat[start : start + samples_per_chunk]
        blocks = []
        for g in dict.fromkeys(task for task, _ in part):
            rows = [row for row, (task, _) in enumerate(part) if task == g]
            teacher = slice(rows[0], rows[-1] + 1)
            student = slice(teacher.start + len(part), teacher.stop + len(part))
            blocks.append(Block(g, teacher, student, tuple(part[row][1] for row in rows)))
        chunks.append(Chunk(tuple(blocks)))
    return chunks


def at_hand(
    path: str,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    merged: LowRankDelta | None,
    x: Tensor,
) -> tuple[list[LowRankDelta | None], LowRankDelta | None]:
    """Return what teachers and students wear at a layer, where its input is and in the precision of
    the products.
    """
    where = {"device": x.device, "dtype": product_dtype(x)}
    worn = [worn_delta(path, adapters, task.mix) for task in tasks]
    return [delta and delta.to(**where) for delta in worn], merged and merged.to(**where)


def dress(
    module: nn.Module,
    chunk: Chunk,
    x: Tensor,
    y: Tensor,
    worn: Sequence[LowRankDelta | None],
    merged: LowRankDelta | None,
    codes: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Return a layer's output where each task's teacher rows wear its mix, and student rows the
    merged delta.

    Args:
        module: The layer.
        chunk: Whose rows they are.
        x: The layer's input.
        y: Its output, not changed.
        worn: Each task's mix at this layer, in the precision of the products.
        merged: The merged delta; None: student rows wear the same as their teachers.
        codes: Teachers' ``X down^T`` per block, if they are known already.
    """
    y = y.clone()
    for i, block in enumerate(chunk.blocks):
        mine = worn[block.task]
        if mine is not None:
            known = codes[i] if codes is not None else codes_of(module, x[block.teacher], mine.down)
            add_to_output(module, y[block.teacher], known @ mine.up.T)
        theirs = mine if merged is None else merged
        if theirs is not None:
            add_to_output(
                module,
                y[block.student],
                codes_of(module, x[block.student], theirs.down) @ theirs.up.T,
            )
    return y
