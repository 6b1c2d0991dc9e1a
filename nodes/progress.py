"""How long a stage still takes."""

from __future__ import annotations

from dataclasses import dataclass, field

_TELLING_SECONDS = 2


@dataclass
class StageClock:
    """Times a stage by the pace since it began; what begins anew within it, as a second sweep does,
    is timed anew.
    """

    total: int = -1
    done: int = 0
    _first: tuple[int, float] = field(default=(0, 0.0))

    def told(self, stage: str, done: int, total: int, now: float) -> str:
        """Return what to show, such as "stage 3 of 4: UNet 12/192, about 40 s left".

        Args:
            stage: Its name.
            done: Steps done.
            total: Steps in all.
            now: In seconds, from any start.
        """
        if total != self.total or done < self.done:
            self._first = (done, now)
        self.total = total
        self.done = done
        steps = done - self._first[0]
        seconds = now - self._first[1]
        left = seconds / steps * (total - done) if steps else 0.0
        return f"{stage} {done}/{total}" + (
            f", about {left:.0f} s left" if left >= _TELLING_SECONDS else ""
        )
