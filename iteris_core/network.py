"""The interface through which the engines run a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Streams of networks that read both. Rivals look for the layers that read text.
TEXT_STREAM = "text"
IMAGE_STREAM = "image"


@dataclass(frozen=True)
class Network:
    """A model, and how to run it on rows.

    Args:
        modules: Module path -> module, as adapters name them.
        forward: Function that runs one batch. It takes what each row reads; row i of every layer's
            input belongs to item i. It may return a tensor with one entry per row, which becomes a
            part of the result, or a list of such entries. It must be deterministic.
        stream: Module path -> name of the token stream that the layer's input belongs to, for token
            weights.
        call_key: What a row reads -> its key. Rows of one key may share a forward call: texts of
            one length, say.
        folds_rows: Module path -> whether the model cuts each row into several for this layer,
            which follow each other: (rows * n, tokens, d_in). Other layers have one entry per row.
        evictable: Bytes of the device that the host gives up when they are needed, such as those of
            weights that it can load again.
        worn_bytes: Bytes of the device for deltas that rows wear in one call after another, while
            nothing waits. What has no room is brought there for each call. ComfyUI's models have
            a bound; others keep all.
    """

    modules: Mapping[str, nn.Module]
    forward: Callable[[Sequence[Any]], Any]
    stream: Callable[[str], str] = lambda path: "tokens"
    call_key: Callable[[Any], Hashable] = lambda row: None
    folds_rows: Callable[[str], bool] = lambda path: False
    evictable: Callable[[], int] = lambda: 0
    worn_bytes: float = math.inf


def in_calls(keys: Sequence[Hashable], most: int) -> list[list[int]]:
    """Return the numbers of rows in forward calls of one key and at most so many rows each.

    Keys come in the order of their first appearance, and the rows of a key in theirs.

    >>> in_calls(["short", "long", "short", "short"], 2)
    [[0, 2], [3], [1]]
    """
    of_key: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        of_key.setdefault(key, []).append(number)
    return [
        numbers[start : start + most]
        for numbers in of_key.values()
        for start in range(0, len(numbers), most)
    ]
