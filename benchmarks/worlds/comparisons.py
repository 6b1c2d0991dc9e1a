"""Questions about single settings: rows over the same merges, of which the first is what the others
are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from types import MappingProxyType

from .apart import APART
from .bench import Bench
from .methods import FULL, Cell, Recipe
from .tables import COLUMNS, STYLED_COLUMNS, Column, Entry, figure, table, triggers_of

# Merges of each kind on which it is measured.
MERGES = MappingProxyType({"pairs": 6, "triples": 4, "all six": 1})
STEPS = (20, 6, 4, 3, 2)
CHOSEN = {"sampling_steps": 3}
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


def _cheaper() -> list[Recipe]:
    """Return ways to measure, the most thorough one first."""
    steps = [Recipe(f"{n} steps", {}, {"sampling_steps": n}) for n in STEPS]
    shares = [
        Recipe(
            f"3 steps, unconditional share {share:g}", {}, {**CHOSEN, "unconditional_share": share}
        )
        for share in (0.25, 0.0)
    ]
    tokens = [
        Recipe(f"3 steps, {n} tokens per row", {"tokens_per_row": n}, CHOSEN) for n in (48, 24, 12)
    ]
    runs = [Recipe("3 steps, 10 runs", {}, {**CHOSEN, "trajectories": 10})]
    return [*steps, *shares, *tokens, *runs]


FAST = {**CHECKED, "trajectories": 10}
BALANCED = Recipe("Balanced", {}, CHECKED)
BALANCED_TOGETHER = Recipe("Balanced, together", {}, TOGETHER)
CORRECTED = Recipe("Balanced, strength corrected", {}, CHECKED, job={"correct_strength": True})
STACKED = Recipe("stacking", {"method": "sum"})
# the one of eight that was lost in an earlier world
LOST = "<v6>"


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
        Recipe("single LoRAs", adapter="single"),
        *(Recipe(name, {"method": name}) for name in ("np_lora", "mix_of_show", "regmean_pp")),
        Recipe("ssr", {"method": "ssr"}, CHECKED),
        Recipe("ssr, its own samples", {"method": "ssr"}, SAMPLES_OF_SSR),
        BALANCED,
        BALANCED_TOGETHER,
    ]


def _eight() -> list[Recipe]:
    return [
        BALANCED,
        Recipe("single LoRAs", adapter="single"),
        BALANCED_TOGETHER,
        Recipe(f"{LOST} counts 3 times", {}, CHECKED, weights={LOST: 3.0}),
        Recipe(f"{LOST} counts 10 times", {}, CHECKED, weights={LOST: 10.0}),
        Recipe("alpha 1e-6", {"alpha": 1e-6}, CHECKED),
        Recipe("preserve weight 0.5", {}, {**CHECKED, "preserve_weight": 0.5}),
        Recipe("no unit gain", {"unit_gain": 1.0}, CHECKED),
        Recipe("unit gain 4", {"unit_gain": 4.0}, CHECKED),
        Recipe("strength corrected", {}, CHECKED, job={"correct_strength": True}),
        Recipe("mix_of_show", {"method": "mix_of_show"}),
        STACKED,
    ]


def _alone() -> list[Recipe]:
    """Return what might help LoRAs that saw their concept alone."""
    more = {**CHECKED, "scene_weight": 1.0, "scene_prefix_share": 1.0}
    quiet = {"attn1": 0.5}
    things = ("a red square", "a green circle", "a blue triangle", "a yellow heart")
    plain = {"unit_gain": 1.0}
    ranks = {"rank": 8}
    return [
        BALANCED,
        Recipe("single LoRAs", adapter="single"),
        STACKED,
        BALANCED_TOGETHER,
        Recipe("together, weight 1, always a prefix", {}, more),
        Recipe("composition share 0.75", {}, {**CHECKED, "composition_share": 0.75}),
        Recipe("composition share 1", {}, {**CHECKED, "composition_share": 1.0}),
        Recipe("composition share 0.75, together", {}, {**TOGETHER, "composition_share": 0.75}),
        Recipe("self-attention at 0.5, single LoRAs", adapter="single", layers=quiet),
        Recipe("self-attention at 0.5", {}, CHECKED, layers=quiet),
        Recipe("self-attention at 0.5, together", {}, TOGETHER, layers=quiet),
        Recipe(
            "cross-attention at 1.3, self-attention at 0.5, together",
            {},
            TOGETHER,
            layers={"attn2": 1.3, **quiet},
        ),
        Recipe("together, no unit gain", plain, TOGETHER),
        Recipe(
            "together with four ordinary things, no unit gain",
            {**plain, **ranks},
            TOGETHER,
            things=things,
        ),
        Recipe(
            "together with four ordinary things, weight 1, no unit gain",
            {**plain, **ranks},
            {**CHECKED, "scene_weight": 1.0},
            things=things,
        ),
        *(Recipe(f"apart, {way}", adapter=way) for way in APART),
    ]


def _styles() -> list[Recipe]:
    return [
        BALANCED,
        Recipe("single LoRAs", adapter="single"),
        BALANCED_TOGETHER,
        Recipe("scenes at 0.1", {}, {**CHECKED, "scene_weight": 0.1}),
        Recipe("scenes at 1", {}, {**CHECKED, "scene_weight": 1.0}),
        Recipe("scenes at 0.3, no unit gain", {"unit_gain": 1.0}, TOGETHER),
        Recipe("scenes at 0.3, nothing cut", {**FULL, "rank": "full"}, TOGETHER),
        Recipe("np_lora", {"method": "np_lora"}),
        Recipe("mix_of_show", {"method": "mix_of_show"}),
        STACKED,
    ]


COMPARISONS = {
    "cheaper": Comparison(tuple(_cheaper())),
    "presets": Comparison(tuple(_presets())),
    "anew": Comparison(tuple(_another_base())),
    "mixed": Comparison(tuple(_another_base()), lora_set="mixed"),
    "strong": Comparison((BALANCED, CORRECTED, STACKED), {"pairs": 4}, "strong"),
    "apart": Comparison(
        (
            BALANCED,
            BALANCED_TOGETHER,
            *(Recipe(f"apart, {way}", adapter=way) for way in APART),
            STACKED,
        ),
        {"pairs": 6},
    ),
    "eight": Comparison(tuple(_eight()), {"all eight": 1}),
    "alone": Comparison(tuple(_alone()), {"pairs": 2}, "alone"),
    "styled": Comparison(tuple(_styles()), {"styles": 2}, columns=STYLED_COLUMNS),
}


def comparison_text(
    bench: Bench, asked: Comparison, measured: Callable[[Cell], Entry], seed: int = 0
) -> str:
    """Return a row per way in Markdown, over all merges, and the mean of four per kind of merge.

    Args:
        bench: The world.
        asked: The ways, and the merges.
        measured: Function that returns a cell's scores, measured unless they are stored.
        seed: Seed of the calibration.
    """
    first: Mapping[tuple[str, ...], Entry] = {}
    rows = []
    told = []
    several = len(asked.merges) > 1
    for recipe in asked.recipes:
        entries: dict[tuple[str, ...], Entry] = {}
        by_kind: dict[str, dict[tuple[str, ...], Entry]] = {}
        facts = []
        for kind, cell in asked.cells(bench, recipe, seed):
            entries[cell.triggers] = measured(cell)
            by_kind.setdefault(kind, {})[cell.triggers] = entries[cell.triggers]
            facts.append(cell.read().get("told", {}))
        first = first or entries
        figures = [figure(entries, first, of) for of in asked.columns.values()]
        if several:
            figures += [figure(found, {}, COLUMNS["mean of four"]) for found in by_kind.values()]
        rows.append([recipe.name, *("-" if f is None else str(f) for f in figures)])
        told += _told(recipe.name, facts)
    columns = [*asked.columns, *(asked.merges if several else ())]
    return "\n\n".join([table(["merged with", *columns], rows), *told])


def _told(name: str, facts: list[dict[str, object]]) -> list[str]:
    """Return what the product's job chose, over all merges of a row."""
    factors = [float(str(fact["strength"])) for fact in facts if "strength" in fact]
    if not factors:
        return []
    return [f"{name}: scaled by {mean(factors):.2f} ({min(factors):.2f} to {max(factors):.2f})."]
