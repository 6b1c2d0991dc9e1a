"""Questions about single settings: rows over the same merges, of which the first is what the others
are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from types import MappingProxyType

from .bench import Bench
from .methods import FULL, Cell, Recipe
from .tables import COLUMNS, STYLED_COLUMNS, Column, Entry, figure, triggers_of

# Merges of each kind on which it is measured.
MERGES = MappingProxyType({"pairs": 6, "triples": 4, "all six": 1})
# as the product merges: the check's captions are left out of the preserve task
CHECKED = {"held_out": 4}
TOGETHER = {**CHECKED, "scene_weight": 0.3}
# one prompt and one step from pure noise
SAMPLES_OF_SSR = {
    "trajectories": 1,
    "timesteps": 1,
    "sampling_steps": 1,
    "composition_share": 0.0,
    "unconditional_share": 0.0,
    "preserve_weight": 0.0,
    "held_out": 0,
}


@dataclass(frozen=True)
class Comparison:
    """Ways to merge, over the same merges.

    Args:
        recipes: The ways; the others are compared with the first one.
        merges: Kind of merge -> how many of it.
        lora_set: Set of LoRAs.
        columns: Columns of the table.
    """

    recipes: tuple[Recipe, ...]
    merges: Mapping[str, int] = field(default_factory=lambda: MERGES)
    lora_set: str = "usual"
    columns: Mapping[str, Column] = field(default_factory=lambda: COLUMNS)

    def cells(self, bench: Bench, recipe: Recipe, seed: int) -> Iterator[tuple[str, Cell]]:
        """Yield the kind and the cell of every merge of a recipe."""
        for kind, count in self.merges.items():
            for group in bench.world.groups[kind][:count]:
                triggers = triggers_of(bench.world, group)
                yield kind, Cell(bench, recipe, triggers, self.lora_set, seed)


FAST = {**CHECKED, "trajectories": 10}
BALANCED = Recipe("Balanced", {}, CHECKED)
BALANCED_TOGETHER = Recipe("Balanced, together", {}, TOGETHER)
CORRECTED = Recipe("Balanced, strength corrected", {}, CHECKED, job={"correct_strength": True})
STACKED = Recipe("stacking", {"method": "sum"})


def _presets() -> list[Recipe]:
    return [
        BALANCED,
        CORRECTED,
        Recipe("Fast", {}, FAST),
        BALANCED_TOGETHER,
        Recipe(
            "Balanced, together, strength corrected", {}, TOGETHER, job={"correct_strength": True}
        ),
        Recipe("Fast, together", {}, {**TOGETHER, **FAST}),
        STACKED,
    ]


def _another_base() -> list[Recipe]:
    """Return the defaults, and what to hold against them where the base model was trained anew."""
    return [
        STACKED,
        Recipe("base model", adapter="none"),
        Recipe("single LoRAs", adapter="regions"),
        *(Recipe(name, {"method": name}) for name in ("np_lora", "mix_of_show", "regmean_pp")),
        Recipe("ssr", {"method": "ssr"}, CHECKED),
        Recipe("ssr, its own samples", {"method": "ssr"}, SAMPLES_OF_SSR),
        BALANCED,
        BALANCED_TOGETHER,
    ]


def _styles() -> list[Recipe]:
    return [
        BALANCED,
        Recipe("single LoRAs", adapter="regions"),
        BALANCED_TOGETHER,
        Recipe("scenes at 0.1", {}, {**CHECKED, "scene_weight": 0.1}),
        Recipe("scenes at 1", {}, {**CHECKED, "scene_weight": 1.0}),
        Recipe("scenes at 0.3, no unit gain", {"unit_gain": 1.0}, TOGETHER),
        Recipe("scenes at 0.3, nothing cut", {**FULL, "rank": "full"}, TOGETHER),
        Recipe("np_lora", {"method": "np_lora"}),
        Recipe("mix_of_show", {"method": "mix_of_show"}),
        STACKED,
    ]


def _polished() -> list[Recipe]:
    """Return the defaults, scenes by region, and a polish at the output, for joint attention."""
    many = {**CHECKED, "trajectories": 40}
    scenes = {**many, "scene_weight": 1.0}
    return [
        BALANCED,
        STACKED,
        Recipe("base model", adapter="none"),
        Recipe("single LoRAs", adapter="regions"),
        Recipe("np_lora", {"method": "np_lora"}),
        BALANCED_TOGETHER,
        Recipe("together at 1", {}, {**CHECKED, "scene_weight": 1.0}),
        Recipe("polished, 100 steps", {}, {**many, "polish": 100}),
        Recipe("together at 1, polished, 100 steps", {}, {**scenes, "polish": 100}),
        Recipe("together at 1, polished, 300 steps", {}, {**scenes, "polish": 300}),
    ]


COMPARISONS = {
    "presets": Comparison(tuple(_presets())),
    "anew": Comparison(tuple(_another_base())),
    "mixed": Comparison(tuple(_another_base()), lora_set="mixed"),
    "strong": Comparison((BALANCED, CORRECTED, STACKED), {"pairs": 4}, "strong"),
    "polished": Comparison(tuple(_polished()), {"pairs": 3, "all six": 1}),
    "styled": Comparison(tuple(_styles()), {"styles": 2}, columns=STYLED_COLUMNS),
}


def comparison(
    bench: Bench,
    asked: Comparison,
    measured: Callable[[Cell], Entry],
    seed: int = 0,
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and a row per way, over all merges, with the mean of four per kind of
    merge, and the factor of the strength that the product's job chose.

    Args:
        bench: The world.
        asked: The ways, and the merges.
        measured: Function that returns a cell's scores, measured unless they are stored.
        seed: Seed of the calibration.
    """
    first: Mapping[tuple[str, ...], Entry] = {}
    rows = []
    kinds = tuple(asked.merges) if len(asked.merges) > 1 else ()
    for recipe in asked.recipes:
        entries: dict[tuple[str, ...], Entry] = {}
        by_kind: dict[str, dict[tuple[str, ...], Entry]] = {kind: {} for kind in kinds}
        factors = []
        for kind, cell in asked.cells(bench, recipe, seed):
            entries[cell.triggers] = measured(cell)
            by_kind.setdefault(kind, {})[cell.triggers] = entries[cell.triggers]
            factors += [float(cell.read().get("told", {}).get("strength", 1.0))]
        first = first or entries
        figures = [figure(entries, first, of) for of in asked.columns.values()]
        figures += [figure(by_kind[kind], {}, COLUMNS["mean of four"]) for kind in kinds]
        cells = ["-" if found is None else str(found) for found in figures]
        rows.append([recipe.name, *cells, f"{mean(factors):.2f}"])
    return ["merged with", *asked.columns, *kinds, "scaled by"], rows
