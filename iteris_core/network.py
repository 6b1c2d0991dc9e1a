"""The interface through which the engines run a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Streams of networks that read both. Rivals look for the layers that read text.
TEXT_STREAM = "text"
IMAGE_STREAM = "image"


def _one_stream(path: str) -> str:
    return "tokens"


@dataclass(frozen=True)
class Network:
    """A model, and how to run it on rows.

    Args:
        modules: Module path -> module, as adapters name them.
        forward: Function that runs one batch. It takes what each row reads; row i of every layer's
            input belongs to item i. It may return a tensor with one entry per row, which becomes a
            part of the result. It must be deterministic.
        stream: Module path -> name of the token stream that the layer's input belongs to, for token
            weights.
        memory: Cache of results of exactly this model that outlives a merge, by a hash of
            everything else that decides them; None: no cache.
    """

    modules: Mapping[str, nn.Module]
    forward: Callable[[Sequence[Any]], Any]
    stream: Callable[[str], str] = _one_stream
    memory: MutableMapping[str, Any] | None = None
