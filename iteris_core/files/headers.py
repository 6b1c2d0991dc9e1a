"""What a list shows of a file: read from its header, once, and quick enough for every file."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import AdapterError
from .beside import sidecars, words_beside
from .families import Family
from .groups import grouped
from .limits import NAME_CHARACTERS
from .metadata import Origin, origin_of
from .recognition import base_family, family_of, model_families
from .roles import DOWN
from .tensors import read_header, version
from .trigger_words import TriggerWords, trigger_words

Facts = TypeVar("Facts")
_OF_EMBEDDINGS = {"emb_params", "clip_l", "clip_g"}  # the names of all tensors of such files
_FILES = 5000  # whose facts are remembered, some 2 kB each: people have thousands
_LOCK = threading.Lock()  # one look at a time: a page asks for all files at once


def once_per_file(look: Callable[[Path], Facts]) -> Callable[[Path], Facts]:
    """Remember what a look at a file finds, until it or a file next to it changes: a page asks for
    the same files again and again.
    """

    @functools.lru_cache(_FILES)
    def remembered(path: Path, _versions: tuple[object, ...]) -> Facts:
        return look(path)

    @functools.wraps(look)
    def looked(path: Path) -> Facts:
        with _LOCK:
            return remembered(path, tuple(map(_version, (path, *sidecars(path)))))

    return looked


def _version(path: Path) -> tuple[int, int] | None:
    try:
        return version(os.stat(path))
    except (OSError, ValueError):  # the latter of names that no file can have
        return None


@dataclass(frozen=True)
class LoraHeader:
    """The facts in a LoRA file's header: the largest rank of its factors (0 if it has none), and
    the family that it was trained for, with the file's own statement and without it (empty if
    nothing shows it), and whether its keys show that; the digest of its tensors that it states
    (empty if it does not); and of which LoRAs it is a merge.
    """

    triggers: TriggerWords
    rank: int
    base: str
    family: str
    is_by_keys: bool
    digest: str
    origin: Origin


@once_per_file
def lora_header(path: Path) -> LoraHeader:
    """Return the facts in a LoRA file's header, and the trigger words next to the file.

    Raises:
        AdapterError: A textual inversion; see `read_header`.
    """
    tensors, metadata = read_header(path)
    if tensors and _OF_EMBEDDINGS.issuperset(tensors):
        raise AdapterError(
            f"{path.name} is a textual inversion (an embedding), not a LoRA. Move it to "
            f"models/embeddings, and write embedding:{path.stem} in a prompt"
        )
    groups, _ = grouped(tensors)
    downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
    ranks = [down.shape[0] for down in downs if down.ndim > 1]
    shown_by_keys = family_of(tensors)
    family, base = base_family(shown_by_keys, metadata)
    triggers = trigger_words(metadata, words_beside(path))
    origin = origin_of(metadata)
    digest = metadata.get("sshs_model_hash", "")[:NAME_CHARACTERS]
    return LoraHeader(
        triggers,
        rank=max(ranks, default=0),
        base=base,
        family=family.name if family else "",
        is_by_keys=shown_by_keys is not None,
        digest=digest,
        origin=origin,
    )


@once_per_file
def model_header(path: Path) -> tuple[Family, ...]:
    """Return what `model_families` finds in a checkpoint's or a diffusion model's header.

    Raises:
        AdapterError: See `read_header`.
    """
    return model_families(read_header(path)[0])
