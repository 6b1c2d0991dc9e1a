"""Memory of devices: how a merge shares it out, and smaller calls when it runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from .errors import OutOfMemoryError
from .settings import label, value_label

logger = logging.getLogger("iteris")
Result = TypeVar("Result")
_USED = 0.8  # of what is free besides the model; the rest is for what no estimate knows
# What samples hold while they wait, of what the hosts' formulas say that they take in a call: 0.36
# to 0.56 (benchmarks/results/memory.json).
_WAITS = 0.56
_CALLED = 1 / 8  # of what is free, for a call where not all samples can wait on the device


@dataclass(frozen=True)
class LayerBytes:
    """Bytes that a layer takes besides the model: while its rows are measured, and what comes on
    top of them while it is solved, when no call runs.
    """

    sums: float = 0.0
    solve: float = 0.0

    def beside(self, call: float) -> float:
        """Return what it takes with forward calls of so many bytes, which no solve runs beside."""
        return self.sums + max(self.solve, call)

    @classmethod
    def most(cls, layers: Iterable[LayerBytes]) -> LayerBytes:
        """Return what no layer exceeds."""
        each = list(layers)
        return cls(
            max((layer.sums for layer in each), default=0.0),
            max((layer.solve for layer in each), default=0.0),
        )


@dataclass(frozen=True)
class Room:
    """How a merge shares out a device's memory.

    Args:
        samples_per_chunk: Samples in one forward call, each with a teacher row and a student row.
        waiting_bytes: Bytes for samples that wait; others wait in the host's memory, which is
            slower. None: all wait on the device.
        required: Bytes that the merge takes besides the model.
        missing: Bytes that the device lacks for the whole model, a call of one sample,
            and the sums, by the estimate.
        call_bytes: Bytes of calls, which a layer's solve may take, too, since no call runs then.
    """

    samples_per_chunk: int = 8
    waiting_bytes: int | None = None
    required: float = 0.0
    missing: float = 0.0
    call_bytes: int = 0

    @property
    def worn_bytes(self) -> float:
        """Bytes for what rows wear while they are sampled or checked, and no layer is measured."""
        return max(0.0, self.required - self.call_bytes)


UNLIMITED = Room()


def share_out(
    takes: Callable[[int], float],
    samples: int,
    most: int,
    free: float,
    layer: LayerBytes = LayerBytes(),
) -> Room:
    """Share out the memory of a device, or of the host where the model runs there. What calls and
    layers leave is for samples that wait: what they really hold is counted when they do, see
    `rows.parking`. Where it may not be enough for all, calls are smaller, since that costs less
    than copies.

    Args:
        takes: Number of samples -> bytes that they take in a forward call, at most.
        most: Most samples of one forward call.
        free: Bytes that are free besides the whole model.
        layer: What no layer exceeds.
    """
    used = _USED * free

    sizes = range(most, 0, -1)
    waiting = _WAITS * takes(samples)
    size = running = next((n for n in sizes if layer.beside(takes(n)) + waiting <= used), 0)
    if not size:
        room = _CALLED * (free - layer.sums)
        size = next((n for n in sizes if takes(n) < room), 1)
        running = 2 * size  # samples of a call, and of one that is copied
    busy = layer.beside(takes(running))
    return Room(
        samples_per_chunk=size,
        waiting_bytes=max(0, int(used - busy)),
        required=max(busy, min(used, busy + takes(samples))),
        missing=max(0.0, layer.beside(takes(1)) - free),
        call_bytes=math.ceil(takes(running)),
    )


# What torch says where a device has no room: most backends, and the host on Linux and Windows.
# Libraries that find no room for a handle of their own name their own errors.
_FULL = (
    *("out of memory", "can't allocate memory", "not enough memory"),
    *("_status_alloc_failed", "cusolverdncreate", "cublascreate"),
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means an exhausted device. Not every backend has an error type for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _FULL)
    )


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that a merge may still take on a device, torch's own reserve included; None
    if it does not report them.
    """
    if device.type == "cpu":
        try:
            import psutil
        except ModuleNotFoundError:
            return None
        return int(psutil.virtual_memory().available)
    if device.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def calls_that_fit(
    run: Callable[[], object],
    device: torch.device,
    most: int,
    evictable: Callable[[], int] = lambda: 0,
) -> int:
    """Return how many rows fit into calls on a device, by what a call of one row takes on top of
    what is in use: not every driver says when memory runs out. Windows' lends the computer's, and
    everything crawls.

    Args:
        run: The call of one row. What it leaves there are gradients, of which the optimiser will
            keep twice as much.
        device: A CUDA device; others do not tell their peaks, and get all rows.
        most: Most rows of a call.
        evictable: Bytes of the device that the host gives up when they are needed.
    """
    if device.type != "cuda":
        return most
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    left = torch.cuda.memory_allocated(device)
    taken = torch.cuda.max_memory_allocated(device) - left
    unused = free_bytes(device)
    assert unused is not None, "a CUDA device tells it"
    free = unused + evictable() - 2 * (left - before)
    rows = most if taken <= 0 else min(most, max(1, int(_USED * free / taken)))
    logger.info(
        "a row takes %.2g GB, and %.2g GB are free; %d rows a call", taken / 1e9, free / 1e9, rows
    )
    return rows


def with_smaller_calls(run: Callable[[int], Result], size: int, doing: str) -> Result:
    """Return ``run(size)``, where `size` is halved as long as the device runs out of memory.

    Raises:
        OutOfMemoryError: With a single sample, too.
    """
    while size:
        try:
            return run(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # run again outside of this block: the error holds the frames of the failed call, and
            # their tensors
            size //= 2
        if size:
            logger.info(
                "%s ran out of memory; samples in one forward call from now on: %d", doing, size
            )
    raise OutOfMemoryError(
        f"{doing} ran out of memory with a single sample in each forward call. In a sweep all "
        "samples wait in memory while a layer is solved. With a diffusion model lower "
        f"{label('resolution')} or {label('trajectories')}; with a language model use fewer or "
        "shorter texts; or use another device"
    )


@contextmanager
def _told_where_full(where: str) -> Iterator[None]:
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemoryError(where)


def solving(path: str) -> AbstractContextManager[None]:
    """Name the layer where memory runs out in its solve, beside which no forward call runs, so that
    smaller ones would not help.

    Raises:
        OutOfMemoryError: It does.
    """
    return _told_where_full(
        f"layer {path!r} ran out of memory while it was solved. Its equations take as much with "
        "any number of samples, and at any resolution. Close what else uses this device, merge "
        f"fewer LoRAs at once, set {label('target')} to {value_label('target', 'delta')!r}, "
        "which takes less, or use another device"
    )


def without_smaller_calls(doing: str) -> AbstractContextManager[None]:
    """Name what was done where memory runs out and no forward call can be smaller.

    Raises:
        OutOfMemoryError: It does.
    """
    return _told_where_full(
        f"{doing} ran out of memory where no forward call can be smaller. Close what else uses "
        "this device, merge fewer LoRAs at once, or use another device"
    )
