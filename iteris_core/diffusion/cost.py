"""What a merge costs, known before its long stages begin: rows that run through the diffusion
model, and what they hold while they wait.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..config import MergeConfig
from ..engines.shared_inputs import Readers, may_derive
from ..network import Network
from ..progress import Stage
from ..report.records import Note
from ..rows.lockstep import held_bytes, is_any
from ..rows.parking import Parking
from ..settings import called
from . import stages
from .drawn import DrawnPlan
from .model import DenoiserRow
from .plans import Plan
from .polish import POLISH_BATCH

logger = logging.getLogger("iteris")
PCIE = 12e9  # bytes a second between device and host that a card of these years really copies
DISK = 0.5e9  # bytes a second that a plain SSD writes and reads for long
STEPS_OF_A_PICTURE = 20
# Samples that a sweep runs once more, alone, to see that they are answered as among others.
ALONE = 1
# Rows that a sweep runs first, to see which layers share an input.
_FIRST = 1
# Work of one row of the sweep, in rows that are only drawn: it is measured, and its layers are
# solved (benchmarks/results/pictures.json: seconds a row, against a row of sampling).
_SWEPT = 1.5
# Work on the text encoders, per row of the sweep: they are much smaller (the same table).
_TEXT = 0.1
# Rows of a LoRA's proof, see `proof`.
_PROVED = 4
# Work on the files alone, per LoRA, in rows; it takes seconds.
_FILES = 1
# Stages whose pace says nothing about rows of the diffusion model: the time of the text encoders'
# layers goes into solving them, and the proof draws smaller pictures.
_OTHER = (stages.PROOF, stages.FILES, stages.TEXT)


@dataclass(frozen=True)
class Cost:
    """Rows that run through the diffusion model, without the proof's.

    Args:
        sweep: Teacher and student rows.
        polish: Those of the polish; a row with its gradient counts as several.
        frames: Latent frames of a row; each takes as long as a picture.
    """

    sampling: int
    sweep: int
    polish: int
    check: int
    rows_of_a_picture: int
    samples: int
    tasks: int
    frames: int = 1

    @property
    def rows(self) -> int:
        return self.sampling + self.sweep + self.polish + self.check

    @property
    def pictures(self) -> int:
        """All of them, in pictures."""
        return round(self.rows * self.frames / self.rows_of_a_picture)

    def rows_with(self, share: float, polish_steps: int) -> int:
        """Return about how many rows there are with this share of the LoRAs' sampling runs, and so
        many steps of a polish.
        """
        rows = round(share * (self.sampling + self.sweep)) + self.check
        return rows + (_polish(polish_steps, round(share * self.samples)) if self.sampling else 0)

    def stages(self, names: Sequence[str], loras: int) -> list[Stage]:
        """Return the stages of a merge, each with its share of the work."""
        work = {
            stages.PROOF: _PROVED * loras,
            stages.FILES: _FILES * loras,
            stages.TEXT: _TEXT * self.sweep,
            stages.SAMPLING: self.sampling,
            stages.DENOISER: _SWEPT * self.sweep,
            stages.POLISH: self.polish,
            stages.CHECK: self.check,
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
    polish_steps: int = 0,
) -> Cost:
    """Return what a merge costs.

    Args:
        guided: Whether rows are drawn with the negative prompt, too.
    """
    judged = [plan for plan in check_plans if isinstance(plan, DrawnPlan)]
    compared = [plan for plan in check_plans if not isinstance(plan, DrawnPlan)]
    others = 2  # than the teacher: the merge and its reference
    looked_at = 2 * _samples(judged)  # by the LoRA and by the base model
    samples = _samples(plans)
    checked = _samples(compared)
    return Cost(
        sampling=_drawn(plans, guided) if changes_denoiser else 0,
        sweep=sweeps * (_FIRST + 2 * (samples + ALONE)) if changes_denoiser else 0,
        polish=_polish(polish_steps, samples) if changes_denoiser else 0,
        check=_drawn(check_plans, guided)
        + looked_at
        + checked
        + others * (checked - _shared(compared)),
        rows_of_a_picture=(2 if guided else 1) * STEPS_OF_A_PICTURE,
        samples=samples,
        tasks=len(plans),
    )


def _polish(steps: int, samples: int) -> int:
    """Return the rows of a polish: each sample is read by its teacher, the base model and the
    merge, and a row with its gradient counts as four, since blocks run again in the backward pass.
    """
    return 3 * samples + 4 * steps * min(POLISH_BATCH, samples) if steps else 0


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


@dataclass(frozen=True)
class Waiting:
    """What the rows of a merge hold while a layer is solved.

    Args:
        widest: Bytes that all of them hold at the layer where they hold most.
        room: Bytes that they may hold on the device there; the rest waits on the host.
        copied: Bytes that are copied in the whole sweep, out and back.
        in_file: Whether the device is the host, so that the rest waits in a file.
    """

    samples: int
    widest: float
    room: float
    copied: float = 0.0
    in_file: bool = False

    @property
    def notes(self) -> tuple[Note, ...]:
        """A note for the report where rows wait on the host."""
        if not self.copied:
            return ()
        device = "computer's memory" if self.in_file else "device"
        where = "a file" if self.in_file else "the computer's memory"
        speed = DISK if self.in_file else PCIE
        return (
            Note(
                "memory",
                f"the {2 * self.samples} rows of {self.samples} samples hold up to "
                f"{self.widest / 1e9:.1f} GB while a layer is solved, and the {device} has "
                f"{self.room / 1e9:.1f} GB for them. The rest waits in {where}: "
                f"{self.copied / 1e9:.0f} GB are copied, about "
                f"{_spoken(self.copied / speed)}. To save that, lower resolution first, "
                f"then {called('trajectories')}",
            ),
        )


def _spoken(seconds: float) -> str:
    """Return a time as a user says it: seconds below two minutes, minutes from there on."""
    if seconds < 2 * 60:
        count = max(1, round(seconds))
        return f"{count} second{'s' if count > 1 else ''}"
    return f"{seconds / 60:.0f} minutes"


def foresee(
    network: Network,
    row: DenoiserRow,
    samples: int,
    room: int,
    taken: Mapping[str, float],
    parking: Parking | None = None,
    *,
    config: MergeConfig,
) -> Waiting:
    """Return what the rows of a merge will hold, counted in a forward call of one sample, and tell
    the log.

    Args:
        room: Bytes that they, calls and a layer may take on the device.
        taken: Path of each layer that LoRAs change -> bytes that it and calls take.
        parking: Counts what rows hold, with a sample's share of the room; None: all that counts on
            the model's device.
    """
    counting = parking or Parking(network.modules.values(), budget=room // samples)
    stops = Readers(network).note if may_derive(config) else is_any
    shares = {path: math.ceil(size / samples) for path, size in taken.items()}
    held = held_bytes(network, [row, row], list(taken), counting, stops, shares)
    widest = max(held, key=held.__getitem__, default="")
    left = max(0, room - taken.get(widest, 0.0))
    copied = samples * counting.copied_bytes
    waiting = Waiting(samples, samples * held.get(widest, 0), left, copied, counting.is_in_file)
    logger.info(
        "%d rows wait at %d layers and hold up to %.2f GB there, counted on one sample; room for "
        "them: %.2f GB; to be copied: %.0f GB",
        2 * samples,
        len(held),
        waiting.widest / 1e9,
        waiting.room / 1e9,
        waiting.copied / 1e9,
    )
    for note in waiting.notes:
        logger.warning(note.text)
    return waiting
