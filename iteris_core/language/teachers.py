"""The teachers of a merge's tasks, who write the answers that samples lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..memory import with_smaller_calls
from ..progress import Stage, StageProgress, nobody
from ..rows.wearing import wearing
from .samples import EncodedSample

STAGE = Stage("Teachers' answers")
# Samples whose answers begin alike -> the token ids of each answer.
Write = Callable[[Sequence[EncodedSample]], list[Tensor]]


@dataclass(frozen=True)
class Teachers:
    """A base model that wears, for each task, a mix of adapters.

    Args:
        mixes: Mix that each task's teacher wears: number of an adapter -> share.
    """

    model: Any
    adapters: Sequence[Adapter]
    mixes: Sequence[Mapping[int, float]]
    samples_per_call: int = 8
    progress: StageProgress = nobody

    def answered(
        self, tasks: Sequence[Sequence[EncodedSample]], write: Write
    ) -> list[list[EncodedSample]]:
        """Fill in the targets that are missing.

        Raises:
            CalibrationError: Out of memory with a single sample.
        """
        answered = []
        for number, (task, mix) in enumerate(zip(tasks, self.mixes, strict=True), 1):
            answer = partial(self._answered, task, mix, write)
            answered.append(
                with_smaller_calls(answer, self.samples_per_call, "writing the teachers' answers")
            )
            self.progress(STAGE, number, len(tasks))
        return answered

    def _answered(
        self, task: Sequence[EncodedSample], mix: Mapping[int, float], write: Write, size: int
    ) -> list[EncodedSample]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, sample in enumerate(task):
            if sample.target is None:
                groups.setdefault(tuple(sample.start.tolist()), []).append(i)
        answered = list(task)
        modules = dict(self.model.named_modules())
        for group in groups.values():
            for first in range(0, len(group), size):
                batch = group[first : first + size]
                with torch.no_grad(), wearing(modules, self.adapters, [mix] * len(batch)):
                    written = write([task[i] for i in batch])
                for i, target in zip(batch, written, strict=True):
                    answered[i] = replace(task[i], target=target)
        return answered
