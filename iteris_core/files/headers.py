"""Headers of LoRA files, read without the tensors: quick enough for every file of a list."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import AdapterError
from .budget import budget
from .families import Family, base_family, model_family
from .groups import grouped
from .roles import DOWN
from .sidecars import sidecars, words_beside
from .tensors import opened, version
from .trigger_words import TriggerWords, trigger_words

Facts = TypeVar("Facts")
_FILES = 256  # whose facts are remembered
_LOCK = threading.Lock()  # one look at a time: each may take all that the budget allows


def once_per_file(look: Callable[[Path], Facts]) -> Callable[[Path], Facts]:
    """Remember what a look at a file finds, or why it is refused, until the file changes or what
    lies beside it: a page asks for the same files again and again, and pages of strangers may ask.

    Args:
        look: Function path -> a few facts; may raise `AdapterError`.
    """

    @functools.lru_cache(_FILES)
    def remembered(path: Path, _versions: tuple[object, ...]) -> Facts | str:
        try:
            return look(path)
        except AdapterError as error:
            if isinstance(error.__cause__, OSError):  # a disk may answer next time
                raise
            return str(error)

    @functools.wraps(look)
    def looked(path: Path) -> Facts:
        with _LOCK:
            found = remembered(path, tuple(map(_version, (path, *sidecars(path)))))
        if isinstance(found, str):
            raise AdapterError(found)
        return found

    return looked


def _version(path: Path) -> tuple[int, int] | None:
    try:
        return version(os.stat(path))
    except (OSError, ValueError):  # the latter of names that no file can have
        return None


@dataclass(frozen=True)
class LoraHeader:
    """The facts in a LoRA file's header.

    Args:
        triggers: Trigger words of the LoRA.
        rank: Largest rank of its low-rank factors; 0 if it has none.
        base: Base model family for which it was trained, with the statement of its file.
        family: Name of this family alone; empty if nothing shows it.
    """

    triggers: TriggerWords
    rank: int
    base: str
    family: str


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors without content (on the device ``meta``), and its
    metadata.

    Raises:
        AdapterError: See `check_readable`; also a file beyond its `budget`.
    """
    with budget(path), opened(path) as (_, layout):
        pass
    tensors = {key: torch.empty(place.shape, device="meta") for key, place in layout.places.items()}
    return tensors, dict(layout.metadata)


@once_per_file
def lora_header(path: Path) -> LoraHeader:
    """Return the facts in a LoRA file's header, and the trigger words beside the file.

    Raises:
        AdapterError: See `read_header`.
    """
    with budget(path):
        tensors, metadata = read_header(path)
        groups, _ = grouped(tensors)
        downs = [group.tensors[DOWN] for group in groups.values() if DOWN in group.tensors]
        ranks = [down.shape[0] for down in downs if down.ndim > 1]
        family, base = base_family(tensors, metadata)
        triggers = trigger_words(metadata, words_beside(path))
    return LoraHeader(triggers, max(ranks, default=0), base, family.name if family else "")


@once_per_file
def model_header(path: Path) -> Family | None:
    """Return the family that a checkpoint's or a diffusion model's header shows; None: none.

    Raises:
        AdapterError: See `read_header`.
    """
    with budget(path):
        return model_family(read_header(path)[0])
