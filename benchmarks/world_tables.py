"""The tables and the pictures of benchmarks/world.py, from the cells that are measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from world_bench import Bench, load_bench
from world_loras import LoraSet
from world_methods import SCALES, Cell, Recipe, ablation_recipes, main_recipes
from world_scenes import CONCEPT_TRIGGERS

HERE = Path(__file__).parent
BEGIN = "<!-- world:begin -->"
END = "<!-- world:end -->"
KINDS = {
    "alone": "alone",
    "company": "with a base thing",
    "seen": "both, seen forms",
    "unseen": "both, unseen forms",
}
Entry = Mapping[str, Any]
Groups = Mapping[str, Sequence[tuple[str, ...]]]
Units = Mapping[Any, list[tuple[Entry, float]]]


@dataclass(frozen=True)
class Reader:
    """Reads the entries of cells, and measures nothing."""

    bench: Bench

    def entry(
        self,
        recipe: Recipe,
        triggers: tuple[str, ...],
        lora_set: LoraSet,
        scale: float = 1.0,
        cfg: float = 3.0,
    ) -> tuple[Entry, float] | None:
        found = Cell(self.bench, recipe, triggers, lora_set).read()
        entry = found["entries"].get(f"scale {scale:g}, cfg {cfg:g}, effort 2")
        return None if entry is None else (entry, found.get("merge_seconds", 0.0))

    def entries(
        self,
        recipe: Recipe,
        groups: Sequence[tuple[str, ...]],
        sets: Sequence[LoraSet],
        **used: float,
    ) -> Units:
        """Return the stored entries by set of LoRAs, or by group if there is only one set. The
        tables show the spread over these.
        """
        if len(sets) == 1:
            known = {group: [self.entry(recipe, group, sets[0], **used)] for group in groups}
        else:
            known = {
                s: [self.entry(recipe, triggers, s, **used) for triggers in groups] for s in sets
            }
        return {
            unit: [e for e in entries if e is not None]
            for unit, entries in known.items()
            if any(entries)
        }


def rate(entries: Sequence[Entry], kind: str) -> float | None:
    """Return hits over pictures of a kind of question."""
    counts = [c for entry in entries for c in entry["hits"].get(kind, {}).values()]
    return sum(hits for hits, _ in counts) / sum(n for _, n in counts) if counts else None


def worst(entries: Sequence[Entry]) -> float:
    """Return the rate of the concept or style that is recognised least, alone, of one set of
    LoRAs.
    """
    counts: dict[str, list[int]] = {}
    for entry in entries:
        for about, (hits, n) in entry["hits"].get("alone", {}).items():
            known = counts.setdefault(about, [0, 0])
            known[0] += hits
            known[1] += n
    return min(hits / n for hits, n in counts.values())


def over_units(units: Units, of: Callable[[list[Entry]], float | None]) -> str:
    """Return the mean over units, and the lowest and highest where there are several."""
    values = [
        value
        for entries in units.values()
        if (value := of([entry for entry, _ in entries])) is not None
    ]
    if not values:
        return "-"
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def overall(entry: Entry) -> float:
    """Return the mean over the kinds of questions, by which the best scale is chosen."""
    return mean(value for kind in entry["hits"] if (value := rate([entry], kind)) is not None)


def columns(units: Units, kinds: Sequence[str]) -> list[str]:
    cells = [over_units(units, lambda entries, kind=kind: rate(entries, kind)) for kind in kinds]
    return [
        cells[0],
        over_units(units, worst),
        *cells[1:],
        over_units(units, lambda entries: rate(entries, "base")),
        over_units(
            units,
            lambda entries: (
                sum(e["leaks"][0] for e in entries) / sum(e["leaks"][1] for e in entries)
            ),
        ),
        over_units(units, lambda entries: mean(e["distance"] for e in entries)),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def group_table(
    reader: Reader,
    recipes: Sequence[Recipe],
    groups: Sequence[tuple[str, ...]],
    sets: Sequence[LoraSet],
) -> str:
    """Return one kind of merge: a row per method, the best at unseen forms first."""
    styles = any("<s" in trigger for triggers in groups for trigger in triggers)
    kinds = ["alone", "company", *(["styled", "styled unseen"] if styles else ["seen", "unseen"])]
    names = KINDS | {
        "styled": "style + concept, seen forms",
        "styled unseen": "style + concept, unseen forms",
    }
    head = [
        "method",
        names[kinds[0]],
        "worst alone",
        *(names[kind] for kind in kinds[1:]),
        "base prompts",
        "leaks",
        "distance",
        "solve, CPU s",
    ]
    rows = []
    for recipe in recipes:
        units = reader.entries(recipe, groups, sets)
        if units:
            seconds = mean(s for entries in units.values() for _, s in entries)
            rows.append([recipe.name, *columns(units, kinds), f"{seconds:.0f}" if seconds else "-"])
    bounds = [row for row in rows if row[0] in ("base model", "single LoRAs")]
    others = sorted(
        (row for row in rows if row not in bounds),
        key=lambda row: _order(row, len(kinds)),
        reverse=True,
    )
    return table(head, bounds + others)


def _order(row: Sequence[str], last: int) -> tuple[float, float]:
    def number(cell: str) -> float:
        return -1.0 if cell == "-" else float(cell.split()[0])

    return number(row[last + 1]), number(row[1])


def scale_table(
    reader: Reader, recipes: Sequence[Recipe], groups: Sequence[tuple[str, ...]], lora_set: LoraSet
) -> str:
    """Return every method at its default and at its best scale, on the pairs where scales were
    tried.
    """
    rows = []
    for recipe in (recipe for recipe in recipes if recipe.adapter == "merge"):
        by_scale = {
            scale: [reader.entry(recipe, g, lora_set, scale=scale) for g in groups]
            for scale in (1.0, *SCALES)
        }
        known = {scale: [e[0] for e in found if e] for scale, found in by_scale.items()}
        if not all(len(found) == len(groups) for found in known.values()):
            continue
        best = max(known, key=lambda scale: mean(overall(entry) for entry in known[scale]))
        row = [recipe.name, f"{best:g}"]
        for kind in ("alone", "company", "seen", "unseen", "base"):
            row.append(f"{rate(known[1.0], kind):.2f} -> {rate(known[best], kind):.2f}")
        row.append(f"{mean(map(overall, known[1.0])):.2f} -> {mean(map(overall, known[best])):.2f}")
        rows.append(row)
    rows.sort(key=lambda row: float(row[-1].split()[-1]), reverse=True)
    return table(["method", "best scale", *KINDS.values(), "base prompts", "mean of these"], rows)


def guidance_table(
    reader: Reader, recipes: Sequence[Recipe], groups: Sequence[tuple[str, ...]]
) -> str:
    rows = []
    for recipe in recipes:
        row = [recipe.name]
        for kind in ("alone", "seen", "unseen", "base"):
            found = [
                [reader.entry(recipe, g, 0, cfg=cfg) for g in groups] for cfg in (1.0, 3.0, 7.0)
            ]
            values = [rate([e[0] for e in entries if e], kind) for entries in found]
            row.append(" / ".join("-" if value is None else f"{value:.2f}" for value in values))
        if any(cell.count("-") < 3 for cell in row[1:]):
            rows.append(row)
    return table(
        ["method, at cfg 1 / 3 / 7", "alone", KINDS["seen"], KINDS["unseen"], "base prompts"], rows
    )


def ablation_tables(reader: Reader, groups: Sequence[tuple[str, ...]], lora_set: LoraSet) -> str:
    rows = []
    for heading, recipes in ablation_recipes().items():
        of_heading = [(recipe, reader.entries(recipe, groups, [lora_set])) for recipe in recipes]
        of_heading = [(recipe, found) for recipe, found in of_heading if found]
        if of_heading:
            rows.append([f"**{heading}**", *[""] * 8])
        for recipe, found in of_heading:
            seconds = mean(s for entries in found.values() for _, s in entries)
            rows.append(
                [
                    recipe.name,
                    *columns(found, ["alone", "company", "seen", "unseen"]),
                    f"{seconds:.0f}",
                ]
            )
    head = [
        "setting",
        "alone",
        "worst alone",
        *list(KINDS.values())[1:],
        "base prompts",
        "leaks",
        "distance",
        "solve, CPU s",
    ]
    return table(head, rows)


def times_text(folder: Path) -> str:
    """Return the measured time of every stage, and their sum."""
    totals: dict[str, list[float]] = {}
    for line in (folder / "times.jsonl").read_text().splitlines():
        entry = json.loads(line)
        known = totals.setdefault(entry["stage"], [0.0, 0.0, 0])
        known[0] += entry["clock"]
        known[1] += entry["cpu"]
        known[2] += 1
    rows = [
        [stage, f"{n:.0f}", f"{cpu / 60:.1f}", f"{clock / 60:.1f}"]
        for stage, (clock, cpu, n) in totals.items()
    ]
    sums = [sum(known[i] for known in totals.values()) for i in range(2)]
    rows.append(["**all**", "", f"**{sums[1] / 60:.1f}**", f"**{sums[0] / 60:.1f}**"])
    return table(["stage", "pieces", "CPU, minutes", "clock, minutes"], rows)


def samples(bench: Bench, path: Path, lora_set: LoraSet) -> None:
    """Draw pictures: a row per caption, a block of columns per way to merge, the same noise in
    every block.
    """
    from PIL import Image, ImageDraw

    triggers = ("<v1>", "<v2>")
    count = 4
    zoom = 3
    names = (
        "single LoRAs",
        "average",
        "sum",
        "regmean_pp",
        "IterIS, full output",
        "IterIS + scenes, pictures",
    )
    recipes = {recipe.name: recipe for recipe in main_recipes()}
    captions = (
        "a <v1>",
        "a <v2>",
        "a <v1> and a red circle",
        "a <v1> and a <v2>",
        "a drawing of a <v2> and a <v1>",
    )
    captions = (*captions, "a <v1> above a <v2>", "a red heart and a rimmed circle")
    side = 24 * zoom
    left = 200
    top = 22
    width = left + len(names) * (count * side + 12)
    sheet = Image.new("RGB", (width, top + len(captions) * (side + 6)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        x = left + column * (count * side + 12)
        pen.text((x + 4, 5), name, fill="black")
        for row, caption in enumerate(captions):
            y = top + row * (side + 6)
            if column == 0:
                pen.text((4, y + side // 2 - 6), caption, fill="black")
            adapter = _wearable(bench, recipes[name], caption, triggers, lora_set)
            if adapter == "nothing":
                continue
            for i, picture in enumerate(
                bench.sample(adapter, [caption] * count, range(20_000, 20_000 + count))
            ):
                pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
                image = Image.frombytes("RGB", (24, 24), pixels.numpy().tobytes())
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x + i * side, y))
    sheet.quantize(128).save(path, optimize=True)


def _wearable(
    bench: Bench, recipe: Recipe, caption: str, triggers: tuple[str, ...], lora_set: LoraSet
) -> Any:
    """Return the adapter that is worn for a caption; "nothing" where single LoRAs cannot know both
    triggers.
    """
    if recipe.adapter != "single":
        return Cell(bench, recipe, triggers, lora_set).adapter()[0]
    named = [trigger for trigger in CONCEPT_TRIGGERS if trigger in caption.split()]
    return (
        bench.lora(named[0] if named else triggers[0], lora_set).adapter
        if len(named) < 2
        else "nothing"
    )


def report(folder: Path, groups: Groups, sets: Sequence[LoraSet], *, write: bool) -> None:
    """Print the section of RESULTS.md, and write it with its pictures if asked."""
    from world_prose import section

    bench = load_bench(folder)
    text = section(Reader(bench), groups, sets)
    print(text)
    if write:
        path = HERE / "RESULTS.md"
        old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
        if BEGIN not in old:
            old += f"\n{BEGIN}\n{END}\n"
        before, _, rest = old.partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        with torch.no_grad():
            samples(bench, HERE / "world_samples.png", "strong")
