"""What the check on unseen prompts says about recognition, and what a choice by it is worth.

Every way of `iteris_core.diffusion.choosing` is merged, checked and scored. The tables say which
way the check's loss chooses, what that way and all others score, and how the check's figures go
along with the scores over the ways of a merge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from iteris_core.config import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.choosing import loss, ways_of
from iteris_core.diffusion.held_out import HeldOutCheck
from iteris_core.report.records import MergeReport, TaskFidelity

from .bench import Bench
from .levels import Row, levels_table
from .methods import PICTURE_SCENES, Cell, Recipe
from .tables import COLUMNS, Entry, mean_of_four, table

HELD_OUT = 4
TASTED = ("alone", "beside a base thing", "both, seen forms", "base prompts", "mean of four")


def choice_recipes() -> list[Recipe]:
    """Return the ways of the product between which it chooses, and two more to correlate with."""
    defaults = MergeConfig()

    def changed(config: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in config.items() if value != getattr(defaults, name)}

    return [
        *(
            Recipe(way.name, changed(way.changes.config), way.changes.calibration)
            for way in ways_of(Calibration(), 2)
        ),
        Recipe("scenes", {}, PICTURE_SCENES),
        Recipe("no unit gain", {"unit_gain": 1.0}),
    ]


@dataclass(frozen=True)
class Tried:
    """A way, its scores, and its figures on unseen prompts."""

    name: str
    entry: Entry
    fidelity: tuple[TaskFidelity, ...]


def tried(bench: Bench, triggers: tuple[str, ...], lora_set: str, seed: int = 0) -> list[Tried]:
    """Return all ways of one merge, measured unless they are stored."""
    found = []
    for recipe in choice_recipes():
        cell = Cell(bench, recipe, triggers, lora_set, seed)
        entry = cell.entry()
        path = cell.path.with_suffix(".check.json")
        if not path.exists():
            calibration = bench.calibration(
                **{"held_out": HELD_OUT, "seed": seed, **recipe.calibration}
            )
            check = HeldOutCheck(bench.model, bench.loras(triggers, lora_set), calibration, 48)
            adapter = cell.adapter()[0]
            assert adapter is not None  # every way merges
            measured = [vars(figures) for figures in check.measure(adapter)]
            path.write_text(json.dumps(measured))
        fidelity = tuple(TaskFidelity(**figures) for figures in json.loads(path.read_text()))
        found.append(Tried(recipe.name, entry, fidelity))
    return found


def rms(fidelity: Sequence[TaskFidelity], kind: str) -> float:
    """Return the root mean square of the errors of a kind."""
    errors = [figures.output_error**2 for figures in fidelity if figures.kind == kind]
    return math.sqrt(mean(errors)) if errors else math.nan


FIGURES: dict[str, Callable[[Sequence[TaskFidelity]], float]] = {
    "error, own prompts": lambda found: -rms(found, "own"),
    "error, together": lambda found: -rms(found, "together"),
    "leak": lambda found: -rms(found, "base"),
    "strength, mean": lambda found: mean(f.strength or 0 for f in found if f.kind == "own"),
    "strength, weakest": lambda found: min(f.strength or 0 for f in found if f.kind == "own"),
    "loss": lambda found: -loss(found),
}


def choice_text(merges: dict[str, list[Tried]], chosen_from: int) -> str:
    """Return the tables in Markdown.

    Args:
        merges: Name of a merge -> its ways.
        chosen_from: Number of ways, from the first on, between which the product chooses.
    """
    rows = []
    for name, ways in merges.items():
        own = ways[:chosen_from]
        chosen = min(own, key=lambda way: loss(way.fidelity))
        best = max(own, key=lambda way: mean_of_four(way.entry) or 0)
        rows.append(
            [
                name,
                chosen.name,
                best.name,
                *(f"{mean_of_four(way.entry):.2f}" for way in (chosen, best, *ways)),
            ]
        )
    names = [way.name for way in next(iter(merges.values()))]
    total = ["**mean**", "", ""]
    total += [f"**{mean(float(row[i]) for row in rows):.2f}**" for i in range(3, len(rows[0]))]
    head = ["merge", "chosen", "best", "score of the chosen", "of the best", *names]
    return "\n\n".join(
        [
            "Mean of the four columns, by way:",
            table(head, [*rows, total]),
            "Rank correlation over the ways of a merge, mean over merges (1: the figure orders the "
            "ways as the score does; errors count negatively):",
            table(["figure", *TASTED], correlations(merges)),
            "The levels of the verdict, by concept and way:",
            levels_table([row for ways in merges.values() for way in ways for row in kept(way)]),
        ]
    )


def kept(way: Tried) -> list[Row]:
    """Return what a merge kept of each concept, and how often that was recognised alone."""
    rows = []
    for found in MergeReport((), fidelity=way.fidelity).verdict.loras:
        hits, asked = way.entry["hits"]["alone"][found.lora]
        rows.append(Row(found.kept, hits / asked, hits / asked))
    return rows


def correlations(merges: dict[str, list[Tried]]) -> list[list[str]]:
    """Return a row per figure: its mean rank correlation with each column."""
    from scipy.stats import spearmanr

    rows = []
    for figure, of in FIGURES.items():
        row = [figure]
        for column in TASTED:
            found = []
            for ways in merges.values():
                x = [of(way.fidelity) for way in ways]
                y: list[Any] = [COLUMNS[column](way.entry) for way in ways]
                if len(set(x)) > 1 and len(set(y)) > 1:
                    found.append(float(spearmanr(x, y).statistic))
            row.append(f"{mean(found):.2f}" if found else "-")
        rows.append(row)
    return rows
