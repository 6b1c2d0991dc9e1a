"""The sampling runs of a check: the error of each, and what was kept of a LoRA, with its range."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FidelityKind = Literal["own", "together", "base"]
# Runs that a range allows for besides those that were made, and what is kept in them: that much, or
# less, in pictures that do not show a LoRA at all.
_FAILING = 2
_FAILED = 0.2
# A run counts for no more than this, so that none makes up for others.
_MOST = 1.5
# How far pictures of one LoRA usually differ (0.21 and 0.30 in the two worlds that judged this
# range), and how many runs that counts for: the spread of two runs alone says next to nothing.
_USUAL_SPREAD = 0.25
_USUAL_RUNS = 4
# Student's t that 19 of 20 do not exceed, for `_USUAL_RUNS` degrees of freedom and more.
_STUDENT = (2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)


@dataclass(frozen=True)
class RunFidelity:
    """One sampling run of a task at the end of the network.

    In a picture that the merge drew (`diffusion.drawn`), `strength` is how much it shows of the
    LoRA, relative to pictures of the LoRA alone, and `error` is how far that is from 1. In all
    others:

    Args:
        error: ``||student - teacher|| / ||teacher - base||`` of the network's output, 0 is perfect,
            1 is no better than the base model. Where the teacher wears nothing: ``||student -
            base|| / ||stacked - base||``, what the merged adapter changes there, relative to what
            all adapters stacked would change.
        strength: ``<student - base, teacher - base> / ||teacher - base||^2``, how much of the
            teacher's effect is there, 1 is all of it; None where the teacher wears nothing.
    """

    error: float
    strength: float | None

    @property
    def kept(self) -> float:
        """The strength, at most `_MOST`; of a LoRA without an effect, how little was done
        instead.
        """
        kept = 1 - self.error if self.strength is None else self.strength
        return max(0.0, min(_MOST, kept)) if math.isfinite(kept) else 0.0


@dataclass(frozen=True)
class TaskFidelity:
    """One task at the end of the network, see `fidelity.fidelity`.

    Args:
        output_error: The mean error of its runs.
        strength: Their mean strength; None where the teacher wears nothing.
        kind: What the samples show: a LoRA's own prompts, several LoRAs in one picture, or the base
            model's prompts.
        runs: The sampling runs that the samples come from.
    """

    task: str
    output_error: float
    strength: float | None
    samples: int
    kind: FidelityKind = "own"
    runs: tuple[RunFidelity, ...] = ()

    @classmethod
    def of(cls, task: str, runs: Sequence[RunFidelity], samples: int) -> TaskFidelity:
        """Return the figures of a task's runs; each counts alike."""
        error = statistics.fmean(run.error for run in runs)
        strengths = [run.strength for run in runs if run.strength is not None]
        strength = statistics.fmean(strengths) if strengths else None
        return cls(task, error, strength, samples, runs=tuple(runs))

    @property
    def each_run(self) -> tuple[RunFidelity, ...]:
        """The runs; the means, where they are not told."""
        return self.runs or (RunFidelity(self.output_error, self.strength),)

    @property
    def kept(self) -> float:
        """What was kept of the LoRA, 0 to 1: the mean over runs."""
        return _within(statistics.fmean(run.kept for run in self.each_run))

    @property
    def between(self) -> tuple[float, float] | None:
        """The range of what was kept, see `verdict.Kept`.

        Student's t over the runs, whose spread is moderated by the usual one (G. Smyth, 2004,
        doi:10.2202/1544-6115.1027); and as low as two more runs would take it that do not show the
        LoRA, since few runs do not tell that it fails on some of its prompts. In a simulation it
        holds in 0.87 of the checks or more where one prompt in five fails (2, 3, 4 or 8 runs).
        """
        runs = len(self.runs)
        if not runs:
            return None
        found = [run.kept for run in self.runs]
        mean = statistics.fmean(found)
        freedom = runs - 1 + _USUAL_RUNS
        squares = runs * statistics.pvariance(found) + _USUAL_RUNS * _USUAL_SPREAD**2
        student = _STUDENT[min(runs - 1, len(_STUDENT) - 1)]
        reach = student * (squares / freedom / runs) ** 0.5
        # three runs without a loss are 0.68, GOOD_FROM, and not a rounding error below it
        failing = round((self.kept * runs + _FAILED * _FAILING) / (runs + _FAILING), 9)
        return _within(min(mean - reach, failing)), _within(mean + reach)


def _within(share: float) -> float:
    return max(0.0, min(1.0, share))
