"""Questions to a world: ways to merge, of which the first is what the others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from iteris_core.config import BaselineOptions

from ..results import Table
from .bench import Bench
from .methods import MAIN, Cell, Recipe
from .world import World

Entry = Mapping[str, Any]
Column = Callable[[Entry], float | None]
Merge = tuple[str, ...]  # triggers
# how many merges of each kind it is measured on
EACH = {"pairs": 6, "triples": 4, "all six": 1}
TOGETHER = {"scene_weight": 0.3}
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


def figure(entries: Mapping[Any, Entry], compared: Mapping[Any, Entry], of: Column) -> str:
    """Return the mean of a column over merges, with the standard error of the paired difference.

    Args:
        entries: Merge -> the way's scores.
        compared: Merge -> the scores of the way that it is compared with.
        of: A column.
    """
    values = {merge: value for merge, entry in entries.items() if (value := of(entry)) is not None}
    if not values:
        return "-"
    differences = [
        value - other
        for merge, value in values.items()
        if merge in compared and (other := of(compared[merge])) is not None
    ]
    told = f"{mean(values.values()):.2f}"
    if len(differences) < 2 or entries is compared:
        return told
    return f"{told} ±{stdev(differences) / len(differences) ** 0.5:.2f}"


@dataclass(frozen=True)
class Comparison:
    """Ways to merge, over the same merges.

    Args:
        recipes: The ways; the others are compared with the first one.
        merges: Kind of merge -> how many of it.
        lora_set: Set of LoRAs.
    """

    recipes: tuple[Recipe, ...]
    merges: Mapping[str, int] = field(default_factory=lambda: EACH)
    lora_set: str = "usual"

    def triggers(self, world: World) -> Iterator[tuple[str, Merge]]:
        """Yield the kind and the triggers of every merge."""
        for kind, count in self.merges.items():
            for group in world.groups[kind][:count]:
                yield kind, tuple(world.triggers[number] for number in group)

    def with_kinds_alone(self, title: str) -> dict[str, Comparison]:
        """Return title -> this; and each kind of several merges by itself, where there are more."""
        kinds = self.merges.items() if len(self.merges) > 1 else ()
        return {title: self} | {
            f"{title}, {kind} alone": replace(self, merges={kind: count})
            for kind, count in kinds
            if count > 1
        }

    def table(self, title: str, bench: Bench, seed: int = 0) -> Table:
        """Return a row per way, over all merges, with the mean of four per kind of merge.

        Args:
            title: Title of the table.
            bench: The world; what was not measured there yet is measured now.
            seed: Seed of the calibration.
        """
        merges = list(self.triggers(bench.world))
        kinds = tuple(self.merges) if len(self.merges) > 1 else ()
        first: Mapping[Merge, Entry] = {}
        rows = []
        for recipe in self.recipes:
            entries = {
                triggers: Cell(bench, recipe, triggers, self.lora_set, seed).entry()
                for _, triggers in merges
            }
            first = first or entries
            cells = [figure(entries, first, of) for of in COLUMNS.values()]
            for kind in kinds:
                of_kind = {triggers: entries[triggers] for own, triggers in merges if own == kind}
                cells.append(figure(of_kind, {}, mean_of_four))
            rows.append([recipe.name, *cells])
        return Table(title, ["merged with", *COLUMNS, *kinds], rows)

    def by_merge(self, title: str, bench: Bench, seed: int = 0) -> Table:
        """Return a row per way, with the mean of four of each merge."""
        merges = [triggers for _, triggers in self.triggers(bench.world)]
        rows = []
        for recipe in self.recipes:
            cells = [Cell(bench, recipe, merge, self.lora_set, seed) for merge in merges]
            rows.append([recipe.name, *(figure({0: c.entry()}, {}, mean_of_four) for c in cells)])
        return Table(title, ["mean of four", *map(" + ".join, merges)], rows)


FAST = {"trajectories": 10}
BALANCED = Recipe("Balanced")
BALANCED_TOGETHER = Recipe("Balanced, together", {}, TOGETHER)
STACKED = Recipe("stacking", {"method": "sum"})
STACKS = (
    STACKED,
    *(
        Recipe(
            f"stacking at {scale:g}", {"method": "sum", "baseline": BaselineOptions(scale=scale)}
        )
        for scale in (0.8, 0.6, 0.4)
    ),
)


def _presets() -> list[Recipe]:
    return [
        BALANCED,
        Recipe("Fast", {}, FAST),
        BALANCED_TOGETHER,
        Recipe("Fast, together", {}, {**TOGETHER, **FAST}),
        STACKED,
    ]


def _another_base() -> list[Recipe]:
    """Return the defaults, and what to hold against them where the base model was trained anew."""
    return [
        BALANCED,
        *STACKS,
        Recipe("base model", adapter="none"),
        Recipe("single LoRAs", adapter="regions"),
        *(Recipe(name, {"method": name}) for name in ("np_lora", "mix_of_show", "regmean_pp")),
        BALANCED_TOGETHER,
    ]


def _paper() -> list[Recipe]:
    """Return the defaults and the paper's objective: with its own samples, and with ours."""
    objective = {"target": "delta", "unit_gain": 1.0}
    own = {"composition_share": 0.0, "unconditional_share": 0.0, "preserve_weight": 0.0}
    return [
        BALANCED,
        Recipe("the paper's objective", objective, own),
        Recipe("the paper's objective, our samples", objective),
        STACKED,
    ]


def _polished() -> list[Recipe]:
    """Return the defaults, and a polish at the output, for joint attention; some with other runs,
    since another draw of them moves the mean of a pair by 0.05.
    """
    together = {"scene_weight": 1.0}
    other = {"seed": 1008}
    return [
        BALANCED,
        Recipe("Balanced, other runs", {}, other),
        STACKED,
        Recipe("base model", adapter="none"),
        Recipe("single LoRAs", adapter="regions"),
        Recipe("np_lora", {"method": "np_lora"}),
        BALANCED_TOGETHER,
        Recipe("Polished", {}, {"polish": 52}),
        Recipe("Polished, together", {}, {**together, "polish": 52}),
        Recipe("Polished, together, other runs", {}, {**together, **other, "polish": 52}),
        Recipe("Polished, together, 100 steps", {}, {**together, "polish": 100}),
    ]


COMPARISONS = {
    "presets": Comparison(tuple(_presets())),
    "anew": Comparison(tuple(_another_base())),
    "mixed": Comparison(tuple(_another_base()), lora_set="mixed"),
    "paper": Comparison(tuple(_paper())),
    "paper-mixed": Comparison(tuple(_paper()), lora_set="mixed"),
    "polished": Comparison(tuple(_polished()), {"pairs": 6}),
    "stacks": Comparison((BALANCED, *STACKS)),
}


def main_comparisons(world: World, lora_set: str) -> dict[str, Comparison]:
    """Return title -> bounds, rivals and IterIS over all merges of a kind."""
    return {
        f"{kind}, {lora_set} LoRAs": Comparison(MAIN, {kind: len(groups)}, lora_set)
        for kind, groups in world.groups.items()
    }
