"""Merging methods in a small trained world: `python benchmarks/world.py` trains it, merges, scores,
and writes RESULTS.md.

Everything is kept in a cache, so that a run goes on where the last one ended; `--quick` is a
smaller world of its own. World: world_scenes.py (what is drawn), world_base.py, world_loras.py
(what is trained), world_recogniser.py (who judges). Measurement: world_bench.py (the API for other
experiments), world_score.py (what is asked), world_methods.py (which merges).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# before torch is imported: threads that wait by spinning make everything several times slower where
# another job runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console
from world_base import BaseSettings, Phase, load_base, train_base
from world_bench import DEFAULT_CACHE, load_bench, lora_folder
from world_loras import FILE, LoraSet, seed_of, settings_of, train_lora
from world_methods import (
    GROUPS,
    SCALES,
    Cell,
    Recipe,
    ablation_recipes,
    main_recipes,
    style_recipes,
)
from world_recogniser import train_recogniser
from world_scenes import CONCEPT_TRIGGERS, TRIGGERS
from world_score import SinglePictures, ceiling

STAGES = (
    "base",
    "recogniser",
    "loras",
    "main",
    "strong",
    "scales",
    "ablations",
    "guidance",
    "tables",
)
console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What a run does: the whole, or a quick one."""

    folder: Path
    base: BaseSettings
    recogniser_steps: int
    triggers: tuple[str, ...]
    groups: dict[str, tuple[tuple[str, ...], ...]]
    recipes: tuple[Recipe, ...]
    lora_sets: tuple[LoraSet, ...]
    lora_steps: int | None = None


def whole(cache: Path, seeds: int) -> Plan:
    recipes = tuple(main_recipes())
    return Plan(
        cache / "full",
        BaseSettings(),
        3500,
        TRIGGERS,
        GROUPS,
        recipes,
        (*range(seeds), "strong", "alone"),
    )


def quick(cache: Path) -> Plan:
    """Return a plan whose figures mean little: it shows that everything runs."""
    names = (
        "base model",
        "single LoRAs",
        "average",
        "sum",
        "IterIS, full output",
        "IterIS + scenes, text",
    )
    recipes = tuple(recipe for recipe in main_recipes() if recipe.name in names)
    base = BaseSettings(widths=(48, 64), phases=(Phase(400, 1e-3, "fixed"),), scenes=4000)
    groups = {"pairs": (("<v1>", "<v2>"),), "styles": (("<v1>", "<s1>"),)}
    return Plan(
        cache / "quick", base, 400, ("<v1>", "<v2>", "<s1>"), groups, recipes, (0,), lora_steps=80
    )


def note_time(folder: Path, stage: str, name: str, began: tuple[float, float]) -> None:
    """Append what a piece of work took, by the clock and of the CPU."""
    entry = {
        "stage": stage,
        "name": name,
        "clock": time.time() - began[0],
        "cpu": time.process_time() - began[1],
    }
    with (folder / "times.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def now() -> tuple[float, float]:
    return time.time(), time.process_time()


def teller(name: str) -> Callable[[int, int, float], None]:
    return lambda done, total, loss: console.print(f"{name}: {done}/{total}, loss {loss:.4f}")


def base_stage(plan: Plan) -> None:
    if not (plan.folder / "base" / "scheduler").exists():
        began = now()
        train_base(plan.base, plan.folder / "base", teller("base model"))
        note_time(plan.folder, "base", "base model", began)


def recogniser_stage(plan: Plan) -> None:
    path = plan.folder / "recogniser.pt"
    if not path.exists():
        began = now()
        found = train_recogniser(path, plan.recogniser_steps, teller("recogniser"))
        path.with_suffix(".json").write_text(json.dumps(found))
        note_time(plan.folder, "recogniser", "recogniser", began)


def one_lora(plan: Plan, trigger: str, lora_set: LoraSet) -> str:
    torch.set_num_threads(1)
    began = now()
    folder = lora_folder(plan.folder, trigger, lora_set)
    settings = settings_of(trigger, lora_set)
    if plan.lora_steps:
        settings = replace(settings, steps=plan.lora_steps)
    found = train_lora(
        load_base(plan.folder / "base"), trigger, settings, seed_of(lora_set), folder
    )
    note_time(plan.folder, "loras", f"{trigger}, set {lora_set}", began)
    return f"LoRA {trigger}, set {lora_set}: {found['seconds']:.0f} s, loss {found['loss']:.4f}"


def lora_stage(plan: Plan, jobs: int) -> None:
    again = {
        trigger for group in plan.groups["pairs"][:2] for trigger in group
    }  # other seeds: these alone
    wanted_of = {0: set(plan.triggers), "strong": set(plan.triggers) & set(CONCEPT_TRIGGERS)}
    wanted = [
        (plan, trigger, s) for s in plan.lora_sets for trigger in sorted(wanted_of.get(s, again))
    ]
    in_parallel(
        one_lora,
        [job for job in wanted if not (lora_folder(plan.folder, *job[1:]) / FILE).exists()],
        jobs,
    )


@dataclass(frozen=True)
class Work:
    """Cells of one set of LoRAs in one group of recipes, measured by one process one after the
    other.
    """

    folder: Path
    stage: str
    triggers: tuple[str, ...]
    lora_set: LoraSet
    recipes: tuple[Recipe, ...]
    entries: tuple[dict[str, Any], ...] = ({},)


def measure(work: Work) -> str:
    torch.set_num_threads(1)
    bench = load_bench(work.folder)
    singles = SinglePictures(bench, work.lora_set)
    name = " ".join(work.triggers)
    for recipe in work.recipes:
        began = now()
        cell = Cell(bench, recipe, work.triggers, work.lora_set)
        known = len(cell.read()["entries"])
        for entry in work.entries:
            cell.entry(singles, **entry)
        if len(cell.read()["entries"]) > known:
            note_time(work.folder, work.stage, f"{recipe.name}, {name}, set {work.lora_set}", began)
            console.print(
                f"{work.stage}: {name}, set {work.lora_set}, {recipe.name}: "
                f"{time.time() - began[0]:.0f} s"
            )
    return f"{work.stage}: {name}, set {work.lora_set}: done"


def measuring_stage(plan: Plan, stage: str, jobs: int) -> None:
    """Measure what a stage asks for."""
    work = []
    some = plan.groups["pairs"][:2]
    if stage == "main":
        told = plan.folder / "ceiling.json"
        if not told.exists():
            told.write_text(json.dumps(ceiling(load_bench(plan.folder))))
        work += [
            Work(plan.folder, stage, triggers, 0, plan.recipes)
            for groups in plan.groups.values()
            for triggers in groups
        ]
        others = [s for s in plan.lora_sets if isinstance(s, int) and s]
        work += [
            Work(plan.folder, stage, triggers, s, plan.recipes) for s in others for triggers in some
        ]
    elif stage == "strong":
        groups = [*plan.groups["pairs"], *plan.groups["triples"]]
        work += [Work(plan.folder, stage, triggers, "strong", plan.recipes) for triggers in groups]
        work += [Work(plan.folder, stage, triggers, "alone", plan.recipes) for triggers in some]
    elif stage == "scales":
        recipes = tuple(r for r in plan.recipes if r.adapter == "merge")
        entries = tuple({"scale": scale} for scale in SCALES)
        work += [
            Work(plan.folder, stage, triggers, s, recipes, entries)
            for s in ("strong", 0)
            for triggers in some
        ]
    elif stage == "guidance":
        entries = tuple({"cfg": cfg} for cfg in (1.0, 7.0))
        work += [Work(plan.folder, stage, triggers, 0, plan.recipes, entries) for triggers in some]
    else:
        recipes = tuple(recipe for rows in ablation_recipes().values() for recipe in rows)
        work += [Work(plan.folder, stage, triggers, "strong", recipes) for triggers in some]
        work += [
            Work(plan.folder, stage, triggers, 0, tuple(style_recipes()))
            for triggers in plan.groups["styles"]
        ]
    in_parallel(measure, [(item,) for item in work], jobs)


def in_parallel(work: Callable[..., str], arguments: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """Do all work in processes of one thread each, and say what is done."""
    if jobs == 1:
        for done, given in enumerate(arguments, 1):
            console.print(f"[{done}/{len(arguments)}] {work(*given)}")
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, future in enumerate(
            as_completed([pool.submit(work, *given) for given in arguments]), 1
        ):
            console.print(f"[{done}/{len(arguments)}] {future.result()}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smaller world, minutes; nothing is written to RESULTS.md",
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        action="append",
        help="only this; what it needs must be there (default: all)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        help=f"where everything is kept (default {DEFAULT_CACHE})",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes of one thread each (default 2)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of LoRAs and calibration (default 3)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    plan = quick(options.cache) if options.quick else whole(options.cache, options.seeds)
    plan.folder.mkdir(parents=True, exist_ok=True)
    stages = options.stage or [
        stage
        for stage in STAGES
        if not (options.quick and stage in ("strong", "scales", "guidance", "ablations"))
    ]
    for stage in stages:
        if stage == "base":
            base_stage(plan)
        elif stage == "recogniser":
            recogniser_stage(plan)
        elif stage == "loras":
            lora_stage(plan, options.jobs)
        elif stage == "tables":
            from world_tables import report

            report(plan.folder, plan.groups, plan.lora_sets, write=not options.quick)
        else:
            measuring_stage(plan, stage, options.jobs)


if __name__ == "__main__":
    main()
