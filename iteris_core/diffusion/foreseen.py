"""What a merge will take of a device's memory, told before its long stages begin."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..network import Network
from ..report.records import Note
from ..rows.held import held_bytes
from ..rows.parking import Parking
from ..settings import called
from .model import DenoiserRow

logger = logging.getLogger("iteris")
PCIE = 12e9  # bytes a second between device and host that a card of these years really copies
DISK = 0.5e9  # bytes a second that a plain SSD writes and reads for long


@dataclass(frozen=True)
class Waiting:
    """What the rows of a merge hold while a layer is solved.

    Args:
        samples: Samples of the merge, two rows each.
        at_layers: Bytes that all of them hold at each layer.
        room: Bytes that they may hold on the device; the rest waits on the host.
        in_file: Whether the device is the host, so that the rest waits in a file.
    """

    samples: int
    at_layers: Sequence[float]
    room: float
    in_file: bool = False

    @property
    def widest(self) -> float:
        """Bytes that all rows hold at the layer where they hold most."""
        return max(self.at_layers, default=0.0)

    @property
    def elsewhere(self) -> int:
        """Samples that wait on the host at the widest layer."""
        if self.widest <= self.room:
            return 0
        return round(self.samples * (1 - self.room / self.widest))

    @property
    def copied(self) -> float:
        """Bytes that are copied in the whole sweep, out and back."""
        return 2 * sum(max(0.0, held - self.room) for held in self.at_layers)

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
                f"{self.room / 1e9:.1f} GB for them. About {2 * self.elsewhere} rows wait in "
                f"{where}: {self.copied / 1e9:.0f} GB are copied, about "
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
    paths: Collection[str],
    samples: int,
    room: int,
    parking: Parking | None = None,
) -> Waiting:
    """Return what the rows of a merge will hold, counted in a forward call of one sample, and tell
    the log.

    Args:
        network: The diffusion model.
        row: What one row reads.
        paths: Target layers.
        samples: Samples of the merge.
        room: See `Waiting`.
        parking: See `rows.held.held_bytes`.
    """
    counting = parking or Parking(network.modules.values(), budget=sys.maxsize)
    held = held_bytes(network, [row, row], paths, counting)
    at_layers = [samples * of_one for of_one in held.values()]
    waiting = Waiting(samples, at_layers, room, counting.is_in_file)
    logger.info(
        "%d rows wait at %d layers and hold up to %.2f GB there, counted on one sample; room for "
        "them: %.2f GB; to be copied: %.0f GB",
        2 * samples,
        len(held),
        waiting.widest / 1e9,
        room / 1e9,
        waiting.copied / 1e9,
    )
    for note in waiting.notes:
        logger.warning(note.text)
    return waiting
