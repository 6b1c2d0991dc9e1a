"""What the levels of the verdict stand for: `python -m benchmarks.worlds.levels` prints how often
concepts were recognised in the merges of RESULTS.md whose pictures were compared with those of the
single LoRAs, by level.

There, kept is 1 minus the relative distance of the pictures: the tables have its square.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from iteris_core.report.verdict import level_of

from .tables import RESULTS, table

LEVELS = ("good", "weak", "lost")
_COLUMNS = ("distance", "alone", "worst alone")
# no merges, and merges that differ in one setting from a row that counts
_OTHERS = ("base model", "single LoRAs")
_REPEATED = ("ablation", "weight of")


class Row(NamedTuple):
    """A method's mean over the merges of a table."""

    kept: float
    alone: float
    worst: float


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the rows of the tables that have the pictures' distance."""
    head: list[str] = []
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.lower()
        if not line.startswith("| "):
            head = []
            continue
        if line.startswith("| ---"):
            continue
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if not head:
            head = cells
        elif set(_COLUMNS) <= set(head) and cells[0] not in _OTHERS:
            found = [cells[head.index(name)].split() for name in _COLUMNS]
            if all(found) and not any(part in title for part in _REPEATED):
                distance, alone, worst = (float(cell[0]) for cell in found)
                yield Row(1 - math.sqrt(distance), alone, worst)


def levels_table(rows: Sequence[Row]) -> str:
    """Return a line per level, in Markdown."""
    lines = []
    for level in LEVELS:
        found = [row for row in rows if level_of(row.kept) == level]
        alone, worst = ([getattr(row, name) for row in found] for name in ("alone", "worst"))
        lines.append([level, str(len(found)), _spread(alone), _spread(worst)])
    return table(["level", "rows", "recognised alone", "its worst concept"], lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "-"
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return f"{statistics.median(values):.2f} ({tenths[0]:.2f}-{tenths[-1]:.2f})"


if __name__ == "__main__":
    print(levels_table(list(rows_of(RESULTS))))
