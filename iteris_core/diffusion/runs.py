"""Sampling runs: their seeds, and the noise levels that they step through and keep latents at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .calibration import Calibration

# The multiples of each, modulo 1, cover an interval evenly, however many there are. Together they
# cover a square evenly, so that the choices made by one do not depend on those made by the other.
GOLDEN_RATIO = 0.6180339887
_SQUARE_ROOT_OF_11 = 3.3166247904


@dataclass(frozen=True)
class Run:
    """One sampling run.

    Args:
        seed: Seed of its noise, which no other run of a merge has.
        kept: Numbers of the noise levels at which its latents are kept.
        path: Numbers of the noise levels that it steps through, from 0 to the last that is kept.
        first: Seed of the run whose estimate its first step takes: its own, or another one of the
            same teacher and caption, since estimates at pure noise hardly differ.
    """

    seed: int
    kept: tuple[int, ...]
    path: tuple[int, ...]
    first: int

    @classmethod
    def of(cls, calibration: Calibration, group: int, number: int, *, early: bool = False) -> Run:
        """Return run `number` of a group of runs; groups share no noise.

        Args:
            early: See `kept_levels`.
        """
        kept = kept_levels(calibration, number, early=early)
        seed = calibration.seed * 1_000_003 + group * 1009 + number
        return cls(seed, tuple(kept), tuple(path_to(calibration, kept)), seed)

    @property
    def length(self) -> int:
        return len(self.path) - 1

    def rows(self, *, guided: bool) -> int:
        """Return the number of rows of one teacher: one for the first step, unless that takes
        another run's estimate, and for each other step one, or two with guidance.
        """
        opens = self.length > 0 and self.first == self.seed
        return opens + (1 + guided) * max(0, self.length - 1)


def kept_levels(calibration: Calibration, run: int, *, early: bool = False) -> list[int]:
    """Return the noise levels that a sampling run keeps: evenly spread over those that are
    measured, with pure noise at 0, and staggered from one run to the next.

    Args:
        early: Let fewer runs go further, with a density that falls to 0 at the last level: where
            little noise is left, the estimates of the clean latents hardly differ.
    """
    levels = calibration.measured_levels
    stride = len(levels) / calibration.timesteps
    offset = (run * GOLDEN_RATIO) % 1
    if early:
        offset = 1 - math.sqrt(1 - offset)
    return [levels[int((i + offset) * stride)] for i in range(calibration.timesteps)]


def path_to(calibration: Calibration, kept: Sequence[int]) -> list[int]:
    """Return the noise levels that a run steps through, from pure noise to the last that it keeps.

    Its steps are only about as long as those of a whole run of ``calibration.sampling_steps``,
    since it stops at each level that it keeps.
    """
    path = [0]
    for level in kept:
        first = path[-1]
        steps = math.ceil((level - first) * calibration.sampling_steps / calibration.levels - 0.5)
        steps = max(steps, int(level > first))
        path += [first + (level - first) * step // steps for step in range(1, steps + 1)]
    return path


def is_chosen(index: int, share: float, start: float = 0.0) -> bool:
    """Whether item `index` falls in an evenly spread `share`; `start`, from 0 to below 1,
    shifts the pattern.
    """
    return math.floor((index + 1) * share + start) > math.floor(index * share + start)


def staggered(rows: int) -> list[float]:
    """Return a start for each row, for `is_chosen`, so that the share is right over all rows
    together, and does not correlate with the levels that `kept_levels` keeps.
    """
    starts = [0.0] * rows
    for rank, row in enumerate(sorted(range(rows), key=lambda row: row * _SQUARE_ROOT_OF_11 % 1)):
        starts[row] = rank / rows
    return starts
