"""Outputs of the network on rows that wear adapters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..network import Network, in_calls
from ..processes import Processes
from ..progress import Progress
from .wearing import DeltaCache, answers_of


class Rows:
    """Distinct rows that wear mixes of adapters.

    Args:
        key: Input of a row -> a key that equal inputs share.
    """

    def __init__(self, key: Callable[[Any], Hashable]) -> None:
        self.key = key
        self.reads: list[Any] = []
        self.mixes: list[Mapping[int, float]] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, reads: Any, mix: Mapping[int, float]) -> int:
        """Return the number of a row, after adding it if there is none like it."""
        key = self.key(reads), tuple(sorted(mix.items()))
        if key not in self._numbers:
            self._numbers[key] = len(self.reads)
            self.reads.append(reads)
            self.mixes.append(mix)
        return self._numbers[key]


def outputs_of(
    network: Network,
    adapters: Sequence[Adapter],
    rows: Rows,
    rows_per_call: int,
    progress: Progress,
) -> list[Tensor]:
    """Return the output of every row, on the CPU; the calls are shared over all processes.

    Args:
        adapters: The adapters, and the merged one last.
    """
    processes = Processes.current()
    calls = in_calls([network.call_key(reads) for reads in rows.reads], rows_per_call)
    with processes.together():
        own = processes.share(calls)
        total = sum(map(len, own))
        answers = []
        done = 0
        cache = DeltaCache(network.worn_bytes)
        for numbers in own:
            mixes = [rows.mixes[number] for number in numbers]
            reads = [rows.reads[number] for number in numbers]
            with torch.no_grad():
                answer = answers_of(network, adapters, mixes, reads, cache)
            # a copy: a compiled model may write its next output into the same tensor
            answers.append(answer.detach().to("cpu", copy=True))
            done += len(numbers)
            progress(done, total)
        outputs: dict[int, Tensor] = {}
        for numbers, answer in zip(calls, processes.gather(answers), strict=True):
            outputs |= dict(zip(numbers, answer, strict=True))
    return [outputs[number] for number in range(len(rows.reads))]
