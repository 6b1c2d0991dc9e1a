"""What a merge loses where it measures less: fewer steps of its sampling runs, fewer samples, fewer
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from .bench import Bench
from .methods import Cell, Recipe
from .tables import COLUMNS, Entry, figure, table, triggers_of

# Merges of each kind on which it is measured.
MERGES = {"pairs": 6, "triples": 4, "all six": 1}
STEPS = (20, 6, 4, 3, 2)
CHOSEN = {"sampling_steps": 3}


def cheaper_recipes() -> list[Recipe]:
    """Return the ways to measure, the most thorough one first: the others are compared with it."""
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


def merges_of(bench: Bench) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind and the triggers of every merge."""
    for kind, count in MERGES.items():
        for group in bench.world.groups[kind][:count]:
            yield kind, triggers_of(bench.world, group)


def cheaper_text(bench: Bench, measured: Callable[[Cell], Entry]) -> str:
    """Return a row per way in Markdown, over all merges, and the mean of four per kind of merge.

    Args:
        bench: The world.
        measured: Function that returns a cell's scores, measured unless they are stored.
    """
    first: Mapping[tuple[str, ...], Entry] = {}
    rows = []
    for recipe in cheaper_recipes():
        entries: dict[tuple[str, ...], Entry] = {}
        by_kind: dict[str, dict[tuple[str, ...], Entry]] = {}
        for kind, triggers in merges_of(bench):
            entries[triggers] = measured(Cell(bench, recipe, triggers))
            by_kind.setdefault(kind, {})[triggers] = entries[triggers]
        first = first or entries
        figures = [figure(entries, first, of) for of in COLUMNS.values()]
        kinds = [figure(found, {}, COLUMNS["mean of four"]) for found in by_kind.values()]
        rows.append([recipe.name, *("-" if f is None else str(f) for f in (*figures, *kinds))])
    return table(["measured with", *COLUMNS, *MERGES], rows)
