"""A cache of sampling runs' latents that outlives a merge.

Sampling takes most of the time of a merge.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch

MOST_BYTES = 256 << 20  # of all models together; a latent takes about 65 kB


class Memory(OrderedDict[str, Any]):
    """The latest results of one model, as it is patched at the moment."""

    def __init__(self, patches: Any) -> None:
        super().__init__()
        self.patches = patches
        self.size = 0

    def __setitem__(self, key: str, value: Any) -> None:
        self.size += bytes_of(value) - bytes_of(self.get(key))
        super().__setitem__(key, value)
        self.move_to_end(key)
        forget_oldest(self)

    def forget_first(self) -> None:
        """Drop the oldest result."""
        self.size -= bytes_of(self.popitem(last=False)[1])


# Model -> its results. The model itself is not held: what is known of it goes when it goes.
_MEMORIES: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


def forget_oldest(latest: Memory) -> None:
    """Drop results until the rest takes `MOST_BYTES` at most: other models' results first, and of
    each model the oldest first.
    """
    memories = [*(memory for memory in _MEMORIES.values() if memory is not latest), latest]
    held = sum(memory.size for memory in memories)
    for memory in memories:
        while memory and held > MOST_BYTES:
            before = memory.size
            memory.forget_first()
            held -= before - memory.size


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in a result, at any depth of lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(bytes_of, value)) if isinstance(value, (list, tuple)) else 0


def memory_of(patcher: Any) -> Memory | None:
    """Return the cache of a MODEL's results; None if functions of other nodes change the model,
    since these cannot be compared.
    """
    changed = patcher.model_options.get("transformer_options") or patcher.object_patches
    if changed or any(
        getattr(patcher, name, None)
        for name in ("weight_wrapper_patches", "injections", "hook_patches", "wrappers")
    ):
        return None
    memory = _MEMORIES.get(patcher.model)
    if memory is None or memory.patches != patcher.patches_uuid:
        memory = _MEMORIES[patcher.model] = Memory(patcher.patches_uuid)
    return memory
