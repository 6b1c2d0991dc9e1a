"""Memory of the device: how much is in use, and what to do when it runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from .errors import CalibrationError

Result = TypeVar("Result")


def is_out_of_memory(error: Exception) -> bool:
    """Tell an exhausted device from other errors; not every backend has a type of its own for
    it.
    """
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def memory_in_use(device: torch.device) -> int | None:
    """Return the bytes that tensors take on a device now; None if it does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return torch.mps.current_allocated_memory() if device.type == "mps" else None


def with_smaller_calls(run: Callable[[int], Result], size: int, doing: str) -> Result:
    """Return ``run(size)``, where `size` is halved as long as the device runs out of memory.

    Args:
        run: Takes the number of samples in one forward call.
        size: To begin with.
        doing: What runs, for the error.

    Raises:
        CalibrationError: Out of memory with a single sample.
    """
    while size:
        try:
            return run(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # again outside of this block: the error holds the frames of the failed call, and their
            # tensors
            size //= 2
    raise CalibrationError(
        f"{doing} ran out of memory with a single sample in each forward call. In a sweep all "
        "samples wait in memory while a layer is solved: use fewer of them (trajectories, "
        "timesteps), a lower resolution or shorter inputs, or another device"
    )
