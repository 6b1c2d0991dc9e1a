"""Pictures that comparisons have drawn, so that the next one draws only what has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from .compare_rows import worn_of

if TYPE_CHECKING:
    from torch import Tensor

    from . import host
    from .sockets import MergedLora

MOST_BYTES = 512 << 20  # of all together; a picture of 1024 x 1024 takes 12 MB
Key = tuple[Hashable, ...]

_PICTURES: OrderedDict[Key, Tensor] = OrderedDict()


def keys_of(
    base: host.ComfyModel,
    vae: Any,
    merged: MergedLora,
    how: host.Drawing,
    wanted: Sequence[tuple[int, str]],
) -> list[Key | None]:
    """Return all that decides each picture; None: a LoRA in it is in no file, so that nobody knows.

    The host's models and the merge are the very objects, which the host's cache hands on as long as
    nothing before them changes. They are not kept alive.

    Args:
        wanted: See `host.draw`.
    """
    model, clip = base.given
    patches = base.model.patches_uuid, base.clip.patcher.patches_uuid
    learned = {text: base.texts.learned(text) for text in {how.negative, *(t for _, t in wanted)}}
    shared = (ref(model), ref(clip), ref(vae), *patches, how, learned[how.negative])
    loras = [
        None
        if use.sha256 in merged.loose
        else (use.sha256, use.strength_model, use.strength_clip, use.blocks, use.without)
        for use in (lora.use for lora in merged.loras)
    ]
    ways: list[Sequence[Hashable]] = [*worn_of(loras), [ref(merged)]]
    return [
        None if None in ways[way] else (*shared, prompt, learned[prompt], *ways[way])
        for way, prompt in wanted
    ]


def find(keys: Sequence[Key | None]) -> dict[int, Tensor]:
    """Return the pictures that are kept: number of the key -> picture."""
    found = {}
    for number, key in enumerate(keys):
        if key is not None and key in _PICTURES:
            found[number] = _PICTURES[key]
            _PICTURES.move_to_end(key)
    return found


def keep(key: Key | None, picture: Tensor) -> None:
    """Keep a picture, and forget those of models and merges that are gone, then the oldest ones."""
    if key is None:
        return
    _PICTURES[key] = picture
    for other in [*_PICTURES]:
        if any(isinstance(part, ref) and part() is None for part in other):
            del _PICTURES[other]
    while sum(each.nbytes for each in _PICTURES.values()) > MOST_BYTES:
        _PICTURES.popitem(last=False)
