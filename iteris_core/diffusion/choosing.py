"""Several ways to merge, tried on the same sampling runs; the best on unseen prompts is kept.

Sampling does not depend on how is merged, and is done once: 240 of the 512 rows of a merge of two
LoRAs, with that of the check. Every other way costs a sweep and the rest of a check; five ways make
1600 rows. So no user gets less than the stack (at the same rank) on their own prompts, as far as
the check can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..config import ITERIS_ONLY, MergeConfig
from ..network import Network
from ..report.records import TaskFidelity
from .calibration import MOST_WEIGHT, Calibration
from .changes import Changes
from .model import DiffusionHost


@dataclass(frozen=True)
class Way:
    """A way to merge.

    Args:
        name: Name of the way in the report.
        changes: Settings that replace those of the user.
    """

    name: str
    changes: Changes = Changes()


def ways_of(calibration: Calibration, loras: int) -> list[Way]:
    """Return the ways that are tried: the settings as they are, and what may be better than them.

    Args:
        calibration: The user's settings of the calibration.
        loras: Number of LoRAs that change something.
    """
    ways = [Way("these settings")]
    if calibration.preserve_weight:
        for name, factor in (("less", 1 / 3), ("more", 3.0)):
            weight = min(factor * calibration.preserve_weight, MOST_WEIGHT)
            changes = Changes(calibration={"preserve_weight": weight})
            ways.append(Way(f"the base model kept {name}", changes))
    if calibration.scene_weight and loras > 1:
        ways.append(Way("no scenes", Changes(calibration={"scene_weight": 0.0})))
    if loras > 1:
        ways += [
            Way("NP-LoRA", Changes(config={"method": "np_lora", **_PLAIN})),
            Way("stacking", Changes(config={"method": "sum", **_PLAIN})),
        ]
    return ways


# what rivals cannot look at
_PLAIN = {name: getattr(MergeConfig(), name) for name in ITERIS_ONLY}


def loss(measured: Sequence[TaskFidelity]) -> float:
    """Return how far a merge is from its LoRAs, on unseen prompts, 0 is perfect.

    The root mean square of the output errors on the LoRAs' own prompts. Of the check's figures it
    goes along with recognition best ("The choice among several ways" in benchmarks/RESULTS.md).
    """
    squares = [entry.output_error**2 for entry in measured if entry.kind == "own"]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.inf


class Remembering:
    """A model whose sampling runs are kept for as long as this object lives."""

    def __init__(self, model: DiffusionHost) -> None:
        self._model = model
        self._memory: MutableMapping[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextmanager
    def denoiser(self) -> Iterator[Network]:
        with self._model.denoiser() as network:
            known = network.memory is not None
            yield network if known else replace(network, memory=self._memory)
