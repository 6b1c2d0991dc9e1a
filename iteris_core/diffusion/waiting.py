"""What the rows of a merge hold while they wait, counted before its long stages begin."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..adapters import target_shapes
from ..devices import statistics_device
from ..engines.footprint import bytes_at
from ..engines.shared_inputs import Readers, may_derive
from ..layers import weight_shape
from ..network import Network
from ..report.records import Note
from ..rows.lockstep import held_bytes
from ..rows.parking import Parking
from ..settings import label
from .job import Job
from .model import DenoiserRow

logger = logging.getLogger("iteris")
PCIE = 12e9  # bytes a second between device and host that a card of these years really copies
DISK = 0.5e9  # bytes a second that a plain SSD writes and reads for long


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
                f"then {label('trajectories')}",
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
    rows: Sequence[DenoiserRow],
    job: Job,
    room: int,
    parking: Parking | None = None,
) -> Waiting:
    """Return what the rows of a merge will hold, counted in a forward call of one sample through
    each expert that is changed, and tell the log.

    Args:
        rows: At least one that runs through each expert; the samples are divided among experts.
        room: Bytes that rows, calls and a layer may take on the device.
        parking: Counts what rows hold, with a sample's share of the room; None: a new one.
    """
    samples = math.ceil(job.cost.samples / len(network.experts))
    tasks, config = job.cost.tasks, job.config
    paths = [path for path in target_shapes(job.adapters) if path in network.modules]
    counting = parking or Parking(network.modules.values(), budget=room // samples)
    stops = Readers(network).note if may_derive(config) else None
    taken: dict[str, float] = {}

    def bytes_each(path: str, module: nn.Module, x: Tensor) -> int:
        device = statistics_device(x.device)
        layer = bytes_at(module, weight_shape(module), tasks, config, device)
        taken[path] = layer.beside(config.call_bytes)
        return math.ceil(taken[path] / samples)

    held: dict[str, int] = {}
    for expert in network.experts:
        if any(map(expert.has, paths)):
            row = next(filter(expert.runs, rows))
            held |= held_bytes(network, [row, row], paths, counting, stops, bytes_each)
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
