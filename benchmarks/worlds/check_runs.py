"""How sure the verdict is, by the number of check runs: `python -m benchmarks.worlds.check_runs
words`, after the stages base, recogniser and loras.

Each merge is checked again and again with other seeds. What all checks together find is taken for
the truth, and each check's verdict is compared with it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean

import torch

from iteris_core.diffusion.held_out import HeldOutCheck
from iteris_core.report.records import MergeReport
from iteris_core.report.verdict import Kept, level_of

from . import NAMES
from .bench import Bench, load_bench
from .methods import Cell, Recipe
from .tables import table, triggers_of

RUNS = (2, 4, 8, 16)
ALL_RUNS = 96  # of a merge, shared out over its checks
RECIPES = (
    Recipe("IterIS"),
    Recipe("NP-LoRA", {"method": "np_lora"}),
    Recipe("stacking", {"method": "sum"}),
)


@dataclass(frozen=True)
class Checked:
    """What one check said of a LoRA, and what all checks of its merge say.

    Args:
        runs: Number of runs of the check.
        said: What it said.
        truth: What was kept, by all checks of the merge.
    """

    runs: int
    said: Kept
    truth: float

    @property
    def is_inside(self) -> bool:
        lowest, highest = self.said.between or (0.0, 1.0)
        return lowest <= self.truth <= highest


def checks_of(cell: Cell) -> Iterator[Checked]:
    """Yield what each check of a merge says of each LoRA."""
    adapter, _ = cell.adapter()
    assert adapter is not None  # every recipe merges
    calibration = cell.bench.calibration(seed=cell.seed)
    loras = cell.bench.loras(cell.triggers, cell.lora_set)
    said: dict[int, list[tuple[Kept, ...]]] = {}
    squares: dict[str, list[float]] = {}
    for runs in RUNS:
        for turn in range(ALL_RUNS // runs):
            other = replace(calibration, held_out=runs, seed=1000 * runs + turn)
            found = HeldOutCheck(cell.bench.model, loras, other, 48).measure(adapter)
            said.setdefault(runs, []).append(MergeReport((), fidelity=found).verdict.loras)
            for entry in found:
                if entry.kind == "own":
                    squares.setdefault(entry.task, []).append(entry.output_error**2)
    truth = {lora: 1 - math.sqrt(mean(found)) for lora, found in squares.items()}
    for runs, checks in said.items():
        for check in checks:
            for kept in check:
                yield Checked(runs, kept, truth[kept.lora])


def checks_text(bench: Bench) -> str:
    """Return a row per number of runs in Markdown, over all pairs and recipes of a world."""
    found = [
        checked
        for recipe in RECIPES
        for group in bench.world.groups["pairs"]
        for checked in checks_of(Cell(bench, recipe, triggers_of(bench.world, group)))
    ]
    rows = []
    for runs in RUNS:
        checks = [checked for checked in found if checked.runs == runs]
        reaches = [high - low for low, high in (c.said.between or (0.0, 1.0) for c in checks)]
        rows.append(
            [
                str(runs),
                str(len(checks)),
                f"{mean(abs(c.said.kept - max(0.0, c.truth)) for c in checks):.3f}",
                f"{mean(reaches):.3f}",
                f"{mean(c.is_inside for c in checks):.2f}",
                f"{mean(c.said.level == level_of(c.truth) for c in checks):.2f}",
                f"{mean(level_of(c.truth) in c.said.levels for c in checks):.2f}",
                f"{mean(len(c.said.levels) == 1 for c in checks):.2f}",
            ]
        )
    head = [
        "check runs",
        "checks",
        "off by",
        "width of the range",
        "truth inside",
        "level right",
        "right among the levels named",
        "one level named",
    ]
    return table(head, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worlds.check_runs")
    parser.add_argument("world", choices=NAMES)
    torch.set_num_threads(1)
    print(checks_text(load_bench(parser.parse_args().world)))
