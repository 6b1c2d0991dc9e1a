"""Limits of what is read from files, which come from strangers.

Each number is several times what the largest real files have, and low enough that a small file can
neither hold up a reader nor fill the memory. A file beyond one is refused with its name, except
where a limit says otherwise. `budget` bounds the seconds and bytes of one look at a file.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError

# A header names every tensor and holds the metadata: some 2,500 keys, and tags of several MB.
HEADER_BYTES = 20_000_000
HEADER_BRACKETS = 1_000_000  # each may become a list or an object of 64 bytes
TENSORS = 30_000  # LyCORIS' LoHa of a whole SDXL has some 5,500
KEY_CHARACTERS = 300  # the longest have some 120
DIMENSIONS = 8  # a convolution over time has 5
NUMBERS = 2**40  # of one tensor, where a side of 0 counts as 1: torch counts in 64 bits
METADATA_FIELDS = 10_000  # the largest have some 200

RANK = 16_384  # of the factors of one layer: several times the width of most layers
# Numbers of a product of factors: as many as the layer's weight has, or so many, which is more than
# products at the narrow ends of a model need (rank 1024 at 640 channels makes 6 million).
PRODUCT_NUMBERS = 2**23

# JSON in the metadata, in PEFT's settings, in recipes. What is beyond them counts as unreadable.
JSON_SEPARATORS = 500_000  # one before every value; as many counted tags would be 10 MB
JSON_LEVELS = 50
SETTINGS_BYTES = 10_000_000  # adapter_config.json; with a pattern for each layer it has 0.5 MB
SIDECAR_BYTES = 4_000_000  # what Civitai says about a LoRA takes up to 0.5 MB
PICTURE_BYTES = 16_000_000  # next to a LoRA's file, which is sent to the page as it is

# Trigger words: a phrase that lists all has some 300 characters; what is longer is a description.
WORD_CHARACTERS = 2_000
LISTED_WORDS = 1_000  # words between commas that are looked at
NAME_CHARACTERS = 200  # of a base model in the metadata; what is longer is not a name
# Characters of keys that are searched for a file's family, and of tags that are searched for its
# subject: real files have 0.2 million.
SEARCHED_CHARACTERS = 1_000_000
MERGED_CHARACTERS = 1_000  # of the names of the LoRAs that a file is a merge of
# Tags of a training folder that a merged file keeps, the commonest, and characters of all of them.
MERGED_TAGS = 1_000
MERGED_TAG_CHARACTERS = 1_000_000

# The budget of one look at a file, besides its tensors: texts that are parsed, and time on the
# processor. The largest real files take 12 MB (tags are parsed twice) and half a second.
LOOK_BYTES = 40_000_000
LOOK_SECONDS = 5.0
BYTES_A_SECOND = 10_000_000  # of tensors; a slow machine reads several times as many


class _Spent(Exception):
    """The budget is used up. It is not a `ValueError`, which readers take for a field that cannot
    be read.
    """


@dataclass
class _Budget:
    """What is left: bytes, and the time on this thread's processor when it ends."""

    bytes: int
    end: float


_BUDGET: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def budget(path: Path, tensors: Path | None = None) -> Iterator[None]:
    """Let all readers that are called meanwhile share one budget; see `spend`.

    Args:
        tensors: The file of the tensors, if they are read, too: a larger one may take longer.

    Raises:
        AdapterError: They took more.
    """
    if _BUDGET.get() is not None:  # of the whole look
        yield
        return
    size = 0
    with contextlib.suppress(OSError, ValueError):  # the reader says why
        size = tensors.stat().st_size if tensors else 0
    end = time.thread_time() + LOOK_SECONDS + size / BYTES_A_SECOND
    before = _BUDGET.set(_Budget(LOOK_BYTES, end))
    try:
        yield
    except _Spent as spent:
        raise AdapterError(
            f"{path.name}: to read it takes more than {spent}. No adapter is known that needs so "
            "much, so the file is damaged or made to do harm; use another"
        ) from None
    finally:
        _BUDGET.reset(before)


def spend(count: int = 0) -> None:
    """Take the bytes of a text, and the time until now, out of the present budget, if there is one;
    to be called before each step.
    """
    left = _BUDGET.get()
    if left is None:
        return
    left.bytes -= count
    if left.bytes < 0:
        raise _Spent("the bytes that are read of one file")
    if time.thread_time() > left.end:
        raise _Spent("the seconds of the processor that are spent on one file")


def first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yield texts as long as all together have no more characters."""
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text


def json_value(text: str) -> Any:
    """Return the value of a text of JSON, in memory and time in proportion to the limits.

    Raises:
        ValueError: The text is not JSON, or has too many values or levels.
    """
    spend(len(text))
    separators = text.count(",") + text.count("[") + text.count("{")
    if separators > JSON_SEPARATORS:
        raise ValueError(f"about {separators} values, but at most {JSON_SEPARATORS} are read")
    too_deep = ValueError(f"more than {JSON_LEVELS} levels of lists and objects")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(JSON_LEVELS + 1):
        lists = [inner for inner in level if isinstance(inner, (dict, list))]
        if not lists:
            return value
        level = [inner for of in lists for inner in (of.values() if isinstance(of, dict) else of)]
    raise too_deep
