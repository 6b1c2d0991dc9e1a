"""How well the number that Compare shows goes along with what a recogniser sees.

Every merge of a kind is drawn with two pictures for each LoRA, as a user of Compare has them, and
with many more for the recogniser. One entry is one LoRA in one merge, or in one stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import mean

from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from iteris_core.adapters import Adapter
from iteris_core.diffusion.share import PromptPictures, shares

from ..results import Table
from .bench import Bench
from .comparisons import STACKS
from .drawing import to_latents
from .methods import Cell, Recipe

SHOWN = 2  # pictures of each LoRA
JUDGED = 24
COUNTS = (2, 3, 6)  # LoRAs in one merge
MERGES = 3  # of each count, at most


def table_of_shares(bench: Bench, title: str, seed: int) -> Table:
    """Return the rank correlation and the area under the curve over all merges, and for the merges
    of each method.
    """
    entries = [
        (recipe.name, *entry)
        for triggers in _groups(bench.world.triggers)
        for recipe in _recipes()
        for entry in _of_merge(bench, recipe, triggers, seed)
    ]
    names = ["all", *dict.fromkeys(name for name, *_ in entries)]
    return Table(
        title,
        ["merges", "entries", "shown", "recognised", "rank correlation", "area under the curve"],
        [_row(name, [e for e in entries if name in ("all", e[0])]) for name in names],
    )


def _recipes() -> list[Recipe]:
    return [Recipe("IterIS"), Recipe("average", {"method": "average"}), *STACKS[:3:2]]


def _groups(triggers: Sequence[str]) -> list[tuple[str, ...]]:
    groups: list[tuple[str, ...]] = []
    for count in COUNTS:
        each = list(itertools.combinations(triggers, count))
        groups += each[:: max(1, len(each) // MERGES)][:MERGES]
    return groups


def _of_merge(
    bench: Bench, recipe: Recipe, triggers: tuple[str, ...], seed: int
) -> list[tuple[float, float]]:
    """Return each LoRA's number, and the share of pictures in which the recogniser sees it."""
    merged = Cell(bench, recipe, triggers, seed=seed).adapter()
    loras = [bench.lora(trigger).adapter for trigger in triggers]
    prompts = [f"a {trigger}" for trigger in triggers]
    asked = [
        PromptPictures(
            prompt, {k: _latents(bench, lora, prompt, n)}, [_latents(bench, merged, prompt, n)]
        )
        for k, (prompt, lora) in enumerate(zip(prompts, loras, strict=True))
        for n in range(SHOWN)
    ]
    found = shares(bench.model, loras, asked, rows_per_call=48)
    entries = []
    for k, prompt in enumerate(prompts):
        numbers = [
            of_picture[k] for of_prompt in found for of_picture in of_prompt if k in of_picture
        ]
        pictures = bench.sample(merged, [prompt] * JUDGED, range(20_000, 20_000 + JUDGED))
        concept = bench.world.concept_of(triggers[k])
        seen = [concept in judged.labels for judged in bench.recogniser.judge(pictures)]
        entries.append((mean(numbers), mean(seen)))
    return entries


def _latents(bench: Bench, adapter: Adapter | None, prompt: str, number: int) -> Tensor:
    (picture,) = to_latents(bench.sample(adapter, [prompt], [10_000 + number]))
    return picture


def _row(name: str, entries: Sequence[tuple[str, float, float]]) -> list[object]:
    shown, seen = zip(*((share, hit) for _, share, hit in entries), strict=True)
    is_seen = [hit >= 0.5 for hit in seen]
    rank = f"{spearmanr(shown, seen).statistic:.2f}" if len({*seen}) > 1 else "-"
    curve = f"{roc_auc_score(is_seen, shown):.2f}" if len({*is_seen}) > 1 else "-"
    return [name, len(entries), f"{mean(shown):.2f}", f"{mean(seen):.2f}", rank, curve]
