"""The main tables of a world, from the cells that are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from .bench import Bench
from .methods import Cell, Recipe, ablation_recipes, entry_name, main_recipes
from .world import World

Entry = Mapping[str, Any]
Column = Callable[[Entry], float | None]
Rows = tuple[list[str], list[list[str]]]  # heads and rows of a table
STACKING = "sum"
ABLATED = 2  # pairs on which ablations are measured
MEAN_OF = ("alone", "company", "seen", "base")


def rate(entry: Entry, kind: str) -> float | None:
    """Return hits over pictures of a kind of question; None if nothing was asked."""
    counts = entry["hits"].get(kind, {}).values()
    asked = sum(n for _, n in counts)
    return sum(hits for hits, _ in counts) / asked if asked else None


def worst(entry: Entry) -> float | None:
    """Return the rate of the concept that is recognised least, alone."""
    return min((hits / n for hits, n in entry["hits"].get("alone", {}).values()), default=None)


def mean_of_four(entry: Entry) -> float | None:
    rates = [value for kind in MEAN_OF if (value := rate(entry, kind)) is not None]
    return mean(rates) if len(rates) == len(MEAN_OF) else None


def leaks(entry: Entry) -> float:
    found, asked = entry["leaks"]
    return found / asked


COLUMNS: dict[str, Column] = {
    "alone": lambda entry: rate(entry, "alone"),
    "worst concept": worst,
    "beside a base thing": lambda entry: rate(entry, "company"),
    "both, seen forms": lambda entry: rate(entry, "seen"),
    "both, unseen forms": lambda entry: rate(entry, "unseen"),
    "base prompts": lambda entry: rate(entry, "base"),
    "mean of four": mean_of_four,
    "leaks": leaks,
}
STYLED_COLUMNS: dict[str, Column] = {
    **{name: COLUMNS[name] for name in ("alone", "worst concept", "beside a base thing")},
    "in style, seen forms": lambda entry: rate(entry, "styled"),
    "in style, unseen forms": lambda entry: rate(entry, "styled unseen"),
    **{name: COLUMNS[name] for name in ("base prompts", "leaks")},
}


@dataclass(frozen=True)
class Figure:
    """A mean over merges, and the standard error of its paired difference to stacking."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ±{self.error:.2f}" if self.error is not None else "")


def figure(
    entries: Mapping[Any, Entry],
    stacked: Mapping[Any, Entry],
    of: Column,
) -> Figure | None:
    """Return a column's figure of one method.

    Args:
        entries: Merge -> the method's scores.
        stacked: Merge -> the scores of stacking.
        of: A column.
    """
    values = {merge: value for merge, e in entries.items() if (value := of(e)) is not None}
    if not values:
        return None
    differences = [
        value - other
        for merge, value in values.items()
        if merge in stacked and (other := of(stacked[merge])) is not None
    ]
    known = len(differences) > 1 and entries is not stacked
    error = stdev(differences) / math.sqrt(len(differences)) if known else None
    return Figure(mean(values.values()), error)


def triggers_of(world: World, group: Sequence[int]) -> tuple[str, ...]:
    return tuple(world.all_triggers[number] for number in group)


def group_table(
    bench: Bench, title: str, lora_set: str, recipes: Sequence[Recipe] | None = None
) -> Rows | None:
    """Return one kind of merge, a row per method; None if nothing is measured."""
    columns = STYLED_COLUMNS if title == "styles" else COLUMNS
    name = entry_name(bench, 1.0, None, 1)
    found: dict[str, dict[tuple[int, ...], Entry]] = {}
    seconds: dict[str, list[float]] = {}
    own = list(recipes) if recipes is not None else main_recipes()
    for recipe in own:
        for group in bench.world.groups[title]:
            cell = Cell(bench, recipe, triggers_of(bench.world, group), lora_set).read()
            if name in cell["entries"]:
                found.setdefault(recipe.name, {})[group] = cell["entries"][name]
                seconds.setdefault(recipe.name, []).append(cell.get("merge_seconds", 0.0))
    if not found:
        return None
    stacked = found.get(STACKING, {})
    rows = []
    for method, entries in found.items():
        figures = [figure(entries, stacked, of) for of in columns.values()]
        took = mean(seconds[method])
        cells = ["-" if f is None else str(f) for f in figures]
        rows.append([method, str(len(entries)), *cells, f"{took:.0f}" if took else "-"])
    return ["method", "merges", *columns, "solve, CPU s"], rows


def ablation_table(bench: Bench, lora_set: str, groups: Sequence[tuple[int, ...]]) -> Rows:
    """Return a row per setting that is measured, under headings."""
    name = entry_name(bench, 1.0, None, 1)
    rows = []
    for heading, recipes in ablation_recipes().items():
        of_heading = []
        for recipe in recipes:
            cells = [
                Cell(bench, recipe, triggers_of(bench.world, group), lora_set).read()["entries"]
                for group in groups
            ]
            entries = {i: cell[name] for i, cell in enumerate(cells) if name in cell}
            if entries:
                figures = [figure(entries, {}, of) for of in COLUMNS.values()]
                of_heading.append([recipe.name, *("-" if f is None else str(f) for f in figures)])
        if of_heading:
            rows += [[heading, *[""] * len(COLUMNS)], *of_heading]
    return ["setting", *COLUMNS], rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def report(bench: Bench, recipes: Sequence[Recipe] | None = None) -> dict[str, Rows]:
    """Return title -> table of all that is measured in a world."""
    tables = {}
    for lora_set in bench.world.lora_sets:
        for title in bench.world.groups:
            found = group_table(bench, title, lora_set, recipes)
            if found:
                tables[f"{title}, {lora_set} LoRAs"] = found
        found = ablation_table(bench, lora_set, bench.world.groups["pairs"][:ABLATED])
        if found[1]:
            tables[f"one setting changed, {ABLATED} pairs, {lora_set} LoRAs"] = found
    return tables
