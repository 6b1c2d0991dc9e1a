"""Sampling runs: their seeds, and the noise levels that they step through."""

from __future__ import annotations

import math
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
        path: Numbers of the noise levels that it steps through, from 0, pure noise, to the level
            that its latents are measured at.
        first: Seed of the run whose estimate its first step takes: its own, or another one of the
            same teacher and caption, since estimates at pure noise hardly differ.
    """

    seed: int
    path: tuple[int, ...]
    first: int

    @classmethod
    def of(cls, calibration: Calibration, group: int, number: int, *, early: bool = False) -> Run:
        """Return run `number` of a group of runs; groups share no noise.

        The levels that the runs end at are staggered, so that together they cover all that are
        measured. A run's steps are about as long as those of a whole run.

        Args:
            early: Let fewer runs go further, with a density that falls to 0 at the last level:
                where little noise is left, the estimates of the clean latents hardly differ.
        """
        levels = calibration.measured_levels
        place = number * GOLDEN_RATIO % 1
        if early:
            place = 1 - math.sqrt(1 - place)
        last = levels[int(place * len(levels))]
        steps = math.ceil(last * calibration.sampling_steps / calibration.levels - 0.5)
        steps = max(steps, int(last > 0))
        path = (0, *(last * step // steps for step in range(1, steps + 1)))
        seed = calibration.seed * 1_000_003 + group * 1009 + number
        return cls(seed, path, seed)

    @property
    def length(self) -> int:
        return len(self.path) - 1

    def rows(self, *, guided: bool) -> int:
        """Return the number of rows of one teacher: one for the first step, unless that takes
        another run's estimate, and for each other step one, or two with guidance.
        """
        opens = self.length > 0 and self.first == self.seed
        return opens + (1 + guided) * max(0, self.length - 1)


def is_chosen(index: int, share: float, start: float = 0.0) -> bool:
    """Whether item `index` falls in an evenly spread `share`; `start`, from 0 to below 1,
    shifts the pattern.
    """
    return math.floor((index + 1) * share + start) > math.floor(index * share + start)


def staggered(rows: int) -> list[float]:
    """Return a start for each row, for `is_chosen`, so that the share is right over all rows
    together, and does not correlate with the levels that runs end at.
    """
    starts = [0.0] * rows
    for rank, row in enumerate(sorted(range(rows), key=lambda row: row * _SQUARE_ROOT_OF_11 % 1)):
        starts[row] = rank / rows
    return starts
