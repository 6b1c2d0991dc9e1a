"""What is kept from one merge to the next: the latents of teachers' sampling runs, which take most of its time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

_MOST_RUNS = 512  # of about 130 kB each


class Memory(OrderedDict):
    """The latest results of one model, as it is patched at the moment."""

    def __init__(self, patches: Any) -> None:
        super().__init__()
        self.patches = patches

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > _MOST_RUNS:
            self.popitem(last=False)


# Model -> its results. The model itself is not held: what is known of it goes when it goes.
_MEMORIES: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


def memory_of(patcher: Any) -> Memory | None:
    """Return where results of a MODEL may be kept; None if functions of other nodes change it, which cannot be compared."""
    changed = patcher.model_options.get("transformer_options") or patcher.object_patches
    if changed or any(getattr(patcher, name, None) for name in ("weight_wrapper_patches", "injections", "hook_patches")):
        return None
    memory = _MEMORIES.get(patcher.model)
    if memory is None or memory.patches != patcher.patches_uuid:
        memory = _MEMORIES[patcher.model] = Memory(patcher.patches_uuid)
    return memory
