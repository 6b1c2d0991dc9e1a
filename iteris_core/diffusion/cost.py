"""What a merge costs, known before it begins: rows that run through the diffusion model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..progress import Stage
from . import stages
from .descent import LOOK
from .polish import PER_LESSON
from .samples import SampleSpec, tasks_of
from .targets import parted, rows_of_lessons

STEPS_OF_A_PICTURE = 20
# Rows that a sweep runs alone first, to see which layers share an input, and whether rows are
# answered in the same way among others.
_FIRST = 1
# Work of a row of the sweep, which is measured and solved, relative to a row of sampling
# (benchmarks/results/pictures.json: seconds a row).
_SWEPT = 1.5
# Work on the text encoders, per row of the sweep: they are much smaller (the same table).
_TEXT = 0.1
# Rows that a row with its gradient counts as: blocks run again in the backward pass, which takes as
# long as they do, since no weight needs a gradient.
_GRADIENT = 3
# Stages whose pace says nothing about rows of the diffusion model: the time of the text encoders'
# layers goes into solving them, and the check draws a smaller picture.
_OTHER = (stages.CHECK, stages.FILES, stages.TEXT)


@dataclass(frozen=True)
class Cost:
    """Rows that run through the diffusion model, without the check's.

    Args:
        sweep: Teacher and student rows.
        polish_sampling: Those of the polish's own sampling runs.
        polish: Those of the polish itself; a row with its gradient counts as several.
        lessons: Rows and samples of the lessons that a polish on as many runs would have.
        runs: Sampling runs of each LoRA.
        frames: Latent frames of a row; each takes as long as a picture.
    """

    sampling: int
    sweep: int
    polish_sampling: int
    polish: int
    rows_of_a_picture: int
    samples: int
    tasks: int
    lessons: Sequence[tuple[int, int]] = ()
    runs: int = 1
    frames: int = 1

    @property
    def rows(self) -> int:
        return self.sampling + self.sweep + self.polish_sampling + self.polish

    @property
    def pictures(self) -> int:
        """All rows, as a number of pictures."""
        return round(self.rows * self.frames / self.rows_of_a_picture)

    def rows_with(self, share: float, polish_steps: int) -> int:
        """Return about how many rows there would be with this share of the LoRAs' sampling runs and
        this many steps of a polish.
        """
        rows = round(share * (self.sampling + self.sweep))
        if not (polish_steps and self.sampling):
            return rows
        more = polish_steps / self.runs  # it has as many runs as steps
        lessons = [(round(more * a), round(more * b)) for a, b in self.lessons]
        return rows + round(more * self.sampling) + _polish(polish_steps, lessons)

    def stages(self, names: Sequence[str], loras: int) -> list[Stage]:
        """Return the stages of a merge, each with its share of the work."""
        work = {
            stages.CHECK: 1,  # row, see `proof.check_called`
            stages.FILES: loras,  # which take seconds
            stages.TEXT: _TEXT * self.sweep,
            stages.SAMPLING: self.sampling + self.polish_sampling,
            stages.DENOISER: _SWEPT * self.sweep,
            stages.POLISH: self.polish,
        }
        ends = list(accumulate((work[name] for name in names), initial=0.0))
        whole = ends[-1] or 1.0
        return [
            Stage(name, i + 1, len(names), ends[i] / whole, work[name] / whole, name not in _OTHER)
            for i, name in enumerate(names)
        ]


def cost_of(
    samples: Sequence[SampleSpec],
    polish_samples: Sequence[SampleSpec] = (),
    *,
    guided: bool,
    changes_denoiser: bool,
    polish_steps: int = 0,
    runs: int = 1,
) -> Cost:
    """Return what a merge costs.

    Args:
        guided: Whether rows are drawn with the negative prompt, too.
    """
    return Cost(
        sampling=_sampling(samples, guided=guided) if changes_denoiser else 0,
        sweep=_FIRST + 2 * len(samples) if changes_denoiser else 0,
        polish_sampling=_sampling(polish_samples, guided=guided) if changes_denoiser else 0,
        polish=_polish(polish_steps, _lessons(polish_samples)) if changes_denoiser else 0,
        rows_of_a_picture=(2 if guided else 1) * STEPS_OF_A_PICTURE,
        samples=len(samples),
        tasks=len(tasks_of(samples)),
        lessons=_lessons([sample for sample in samples if sample.run]),
        runs=runs,
    )


def _sampling(samples: Sequence[SampleSpec], *, guided: bool) -> int:
    drawn = {(sample.task, sample.run) for sample in samples}
    return sum(run.rows(guided=guided) for _, run in drawn if run is not None)


def _lessons(samples: Sequence[SampleSpec]) -> list[tuple[int, int]]:
    """Return the numbers of rows and of samples of each lesson."""
    rows = rows_of_lessons(
        tasks_of(samples), lambda each: (each.run, each.student, each.is_negative)
    )
    return [(len(lesson), sum(map(len, lesson))) for lesson in rows]


def _polish(steps: int, lessons: Sequence[tuple[int, int]]) -> int:
    """Return the rows of a polish: each sample is read by its teacher; those that are kept out are
    read by the base model, too, and their rows by the merge twice at the start, and at each look.

    Args:
        lessons: Rows and samples of each lesson.
    """
    kept_out = [len(parted(range(rows))[1]) for rows, _ in lessons]
    of_base = sum(
        round(out * samples / rows)
        for out, (rows, samples) in zip(kept_out, lessons, strict=True)
        if rows
    )
    looks = 2 + math.ceil(steps / LOOK)
    taught = steps * PER_LESSON * len(lessons)
    every = sum(samples for _, samples in lessons)
    return every + of_base + looks * sum(kept_out) + _GRADIENT * taught
