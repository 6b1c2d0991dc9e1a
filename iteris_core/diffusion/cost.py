"""What a merge costs, known before it starts: rows that run through the diffusion model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..progress import Stage
from .model import DENOISER_STAGE, HELD_OUT_STAGE, PROOF_STAGE, SAMPLING_STAGE, TEXT_STAGE
from .plans import Plan

STEPS_OF_A_PICTURE = 20
# Samples that a sweep runs once more, alone, to see that they are answered as among others.
ALONE = 1
# Work of one row of the sweep, in rows that are only drawn: it is measured, and its layers are
# solved (benchmarks/results/pictures.json: seconds a row, against a row of sampling).
_SWEPT = 1.5
# Work on the text encoders, per row of the sweep: they are much smaller (the same table).
_TEXT = 0.1
# Rows of a LoRA's proof, see `proof`.
_PROVED = 4
# Stages whose pace says nothing about rows of the diffusion model: the time of the text encoders'
# layers is that of solving them, and the proof draws smaller pictures.
_OTHER = (PROOF_STAGE, TEXT_STAGE)


@dataclass(frozen=True)
class Cost:
    """Rows that run through the diffusion model; those of the proof are not counted.

    Args:
        sampling: Those of the sampling runs.
        sweep: Teacher and student rows.
        check: Those of the check on unseen samples.
        check_sampling: Those of the check that are sampling runs of its LoRAs.
        rows_of_a_picture: Those of a picture of 20 steps.
        samples: Samples of the tasks.
        tasks: Number of the tasks.
    """

    sampling: int
    sweep: int
    check: int
    check_sampling: int
    rows_of_a_picture: int
    samples: int
    tasks: int

    @property
    def rows(self) -> int:
        """All of them."""
        return self.sampling + self.sweep + self.check

    @property
    def pictures(self) -> int:
        """All of them, in pictures."""
        return round(self.rows / self.rows_of_a_picture)

    def stages(self, names: Sequence[str], loras: int) -> list[Stage]:
        """Return the stages of a merge, each with its share of the work.

        Args:
            names: Their names, in order.
            loras: Number of LoRAs.
        """
        work = {
            PROOF_STAGE: _PROVED * loras,
            TEXT_STAGE: _TEXT * self.sweep,
            SAMPLING_STAGE: self.sampling,
            DENOISER_STAGE: _SWEPT * self.sweep,
            HELD_OUT_STAGE: self.check,
        }
        ends = list(accumulate((work[name] for name in names), initial=0.0))
        whole = ends[-1] or 1.0
        return [
            Stage(name, i + 1, len(names), ends[i] / whole, work[name] / whole, name not in _OTHER)
            for i, name in enumerate(names)
        ]


def cost_of(
    plans: Sequence[Plan],
    check_plans: Sequence[Plan],
    *,
    guided: bool,
    changes_denoiser: bool,
    sweeps: int = 1,
    checks: int = 1,
) -> Cost:
    """Return what a merge costs.

    Args:
        plans: Plans of its tasks.
        check_plans: Plans of its check; none without one.
        guided: Whether rows are drawn with the negative prompt, too.
        changes_denoiser: Whether the LoRAs change the diffusion model.
        sweeps: Sweeps over the diffusion model.
        checks: How often the result is checked.
    """
    others = 2  # than the teacher: the merge and its reference
    drawn = _drawn(check_plans, guided)
    samples = _samples(plans)
    checked = _samples(check_plans)
    return Cost(
        sampling=_drawn(plans, guided) if changes_denoiser else 0,
        sweep=2 * sweeps * (samples + ALONE) if changes_denoiser else 0,
        check=checks * (drawn + checked + others * (checked - _shared(check_plans))),
        check_sampling=checks * drawn,
        rows_of_a_picture=(2 if guided else 1) * STEPS_OF_A_PICTURE,
        samples=samples,
        tasks=len(plans),
    )


def _drawn(plans: Iterable[Plan], guided: bool) -> int:
    return sum(run.rows(guided=guided) for plan in plans for run in plan.drawn_in())


def _samples(plans: Iterable[Plan]) -> int:
    return sum(plan.sample_count() for plan in plans)


def _shared(check_plans: Iterable[Plan]) -> int:
    """Count the check's samples that share all rows but the teacher's with another sample: the two
    halves of one picture.
    """
    drawn = Counter(run for plan in check_plans for run in plan.drawn_in())
    return sum((times - 1) * len(run.kept) for run, times in drawn.items())
