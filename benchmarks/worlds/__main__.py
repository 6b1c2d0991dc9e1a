"""Methods of merging in small trained worlds: `python -m benchmarks.worlds --world words` trains a
world, merges, scores, and prints its tables.

Everything is kept in a cache, so that a run goes on where the last one ended; `--quick`
trains a world hardly at all, and only shows that everything runs. Worlds: words.py, flow.py,
single.py, each one `World` (world.py). What is trained: training.py, recogniser.py, loras.py. Measurement: bench.py
(the API for other experiments), score.py (what is asked), methods.py (which merges), tables.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
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

from ..results import RESULTS, Table, command_of, machine, write
from . import NAMES, find_world
from .bench import DEFAULT_CACHE, load_bench
from .comparisons import COMPARISONS, comparison
from .loras import FILE, kind_of, lora_folder, train_lora
from .methods import Cell, Recipe, ablation_recipes, main_recipes
from .recogniser import train_recogniser
from .tables import ABLATED, Rows, report, triggers_of
from .training import train_base
from .world import World

ON_DEMAND = ("ablations", *COMPARISONS)
STAGES = ("base", "recogniser", "loras", "main", *ON_DEMAND, "tables")
QUICK_RECIPES = ("base model", "single LoRAs", "sum", "np_lora", "IterIS")
QUICK_STEPS = 10  # of a LoRA
QUICK_RECOGNISER_STEPS = 60
SHORT_RECOGNISER_STEPS = 1500
console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Args:
        world: Name of the world.
        folder: Where everything is kept.
        seed: Seed of the base model, its LoRAs and the calibration.
        quick: Whether it only shows that everything runs.
        sets: Sets of LoRAs.
        share: Part of the base model's steps that is made.
        batch: Pictures of a step of it; None: the world's.
        further: Steps that follow after those.
    """

    world: str
    folder: Path
    seed: int
    quick: bool
    sets: tuple[str, ...]
    share: float = 1.0
    batch: int | None = None
    further: int = 0

    @property
    def described(self) -> World:
        return find_world(self.world)

    @property
    def groups(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {"pairs": ((0, 1),)} if self.quick else dict(self.described.groups)

    @property
    def recipes(self) -> list[Recipe]:
        known = main_recipes()
        return [r for r in known if r.name in QUICK_RECIPES] if self.quick else known


def timed(plan: Plan, stage: str, name: str, work: Callable[[], Any]) -> Any:
    """Do a piece of work, and note what it took, by the clock and of the CPU."""
    clock, cpu = time.time(), time.process_time()
    found = work()
    entry = {
        "stage": stage,
        "name": name,
        "clock": time.time() - clock,
        "cpu": time.process_time() - cpu,
    }
    with (plan.folder / "times.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return found


def teller(name: str) -> Callable[[int, int, float], None]:
    return lambda done, total, loss: console.print(f"{name}: {done}/{total}, loss {loss:.4f}")


def base_stage(plan: Plan) -> None:
    folder = plan.folder / "base"
    if not (folder / "text_encoder").exists():
        world = plan.described
        settings = world.settings(plan.seed, plan.quick).shortened(plan.share, plan.batch)
        settings = settings.further(plan.further)
        timed(plan, "base", "base", lambda: train_base(world, settings, folder, teller("base")))


def recogniser_stage(plan: Plan) -> None:
    path = plan.folder / "recogniser.pt"
    if not path.exists():
        steps = 3000 if plan.share == 1 else SHORT_RECOGNISER_STEPS
        steps = QUICK_RECOGNISER_STEPS if plan.quick else steps
        tell = teller("recogniser")
        found = timed(
            plan,
            "recogniser",
            "recogniser",
            lambda: train_recogniser(plan.described, path, steps, tell),
        )
        path.with_suffix(".json").write_text(json.dumps(found))


def one_lora(plan: Plan, trigger: str, lora_set: str) -> str:
    torch.set_num_threads(1)
    world = plan.described
    kind = kind_of(world, trigger, lora_set)
    if plan.quick:
        kind = replace(kind, steps=QUICK_STEPS)
    folder = lora_folder(plan.folder, world, trigger, lora_set)
    base = world.load_model(plan.folder / "base")
    found = timed(
        plan,
        "loras",
        f"{trigger}, {lora_set}",
        lambda: train_lora(world, base, trigger, kind, plan.seed, folder),
    )
    return f"LoRA {trigger}, {lora_set}: {found['seconds']:.0f} s, loss {found['loss']:.4f}"


def lora_stage(plan: Plan, jobs: int) -> None:
    world = plan.described
    asked = {number for groups in plan.groups.values() for group in groups for number in group}
    wanted = [
        (plan, world.all_triggers[number], lora_set)
        for lora_set in plan.sets
        for number in sorted(asked)
    ]
    missing = [
        job
        for job in wanted
        if not (lora_folder(plan.folder, world, job[1], job[2]) / FILE).exists()
    ]
    in_parallel(one_lora, missing, jobs)


def measure(
    plan: Plan, stage: str, group: tuple[int, ...], lora_set: str, recipes: Sequence[Recipe]
) -> str:
    """Measure recipes on one merge of one set of LoRAs."""
    torch.set_num_threads(1)
    bench = load_bench(plan.described, plan.folder)
    triggers = triggers_of(bench.world, group)
    name = f"{' + '.join(triggers)}, {lora_set}"
    for recipe in recipes:
        cell = Cell(bench, recipe, triggers, lora_set, plan.seed)
        if not cell.is_measured:
            began = time.time()
            timed(plan, stage, f"{recipe.name}, {name}", cell.entry)
            console.print(f"{name}, {recipe.name}: {time.time() - began:.0f} s")
    return f"{name}: done"


def main_stage(plan: Plan, jobs: int) -> None:
    work = [
        (plan, "main", group, lora_set, plan.recipes)
        for lora_set in plan.sets
        for groups in plan.groups.values()
        for group in groups
    ]
    in_parallel(measure, work, jobs)


def ablation_stage(plan: Plan, jobs: int) -> None:
    recipes = [recipe for rows in ablation_recipes().values() for recipe in rows]
    work = [
        (plan, "ablations", group, lora_set, recipes)
        for lora_set in plan.sets
        for group in plan.groups["pairs"][:ABLATED]
    ]
    in_parallel(measure, work, jobs)


def comparison_stage(plan: Plan, stage: str) -> Rows:
    """Measure the rows of a comparison, and return its table."""
    bench = load_bench(plan.described, plan.folder)
    asked = COMPARISONS[stage]

    def measured(cell: Cell) -> Any:
        name = f"{' + '.join(cell.triggers)}, {cell.recipe.name}"
        if cell.is_measured:
            return cell.entry()
        found = timed(plan, stage, name, cell.entry)
        console.print(f"{stage}: {name}: done")
        return found

    return comparison(bench, asked, measured, plan.seed)


def in_parallel(work: Callable[..., str], arguments: Sequence[tuple[Any, ...]], jobs: int) -> None:
    """Do all work in processes of one thread each, and say what is done."""
    if jobs == 1:
        for done, given in enumerate(arguments, 1):
            console.print(f"[{done}/{len(arguments)}] {work(*given)}")
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, *given) for given in arguments]
        for done, future in enumerate(as_completed(futures), 1):
            console.print(f"[{done}/{len(arguments)}] {future.result()}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", choices=NAMES, required=True)
    parser.add_argument(
        "--quick", action="store_true", help="hardly trained; only shows that all runs"
    )
    parser.add_argument(
        "--short",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="make this part of the base model's steps; told in the folder's name (default 1)",
    )
    parser.add_argument(
        "--further",
        type=int,
        default=0,
        metavar="STEPS",
        help="make so many more steps of the base model; likewise (default 0)",
    )
    parser.add_argument("--batch", type=int, help="pictures of a step of the base model; likewise")
    parser.add_argument(
        "--stage",
        choices=STAGES,
        action="append",
        help=f"only this; what it needs must be there (default: all but {', '.join(ON_DEMAND)})",
    )
    parser.add_argument(
        "--set",
        action="append",
        dest="sets",
        help="set of LoRAs: usual, strong, mixed or alone; may be repeated (default: usual)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the base model and its LoRAs (default 0)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        help=f"where everything is kept (default {DEFAULT_CACHE})",
    )
    parser.add_argument(
        "--write", action="store_true", help="put the tables into results/worlds.json"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes of one thread each (default 2)"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    ending = ("-quick" if options.quick else "") + (f"-{options.seed}" if options.seed else "")
    ending += f"-short{options.short:g}" if options.short != 1 else ""
    ending += f"-batch{options.batch}" if options.batch else ""
    ending += f"-further{options.further}" if options.further else ""
    plan = Plan(
        options.world,
        options.cache / f"{options.world}{ending}",
        options.seed,
        options.quick,
        tuple(options.sets or ["usual"]),
        options.short,
        options.batch,
        options.further,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    for stage in options.stage or [stage for stage in STAGES if stage not in ON_DEMAND]:
        if stage == "base":
            base_stage(plan)
        elif stage == "recogniser":
            recogniser_stage(plan)
        elif stage == "loras":
            lora_stage(plan, options.jobs)
        elif stage == "main":
            main_stage(plan, options.jobs)
        elif stage == "ablations":
            ablation_stage(plan, options.jobs)
        elif stage in COMPARISONS:
            tell(plan, {stage: comparison_stage(plan, stage)}, written=options.write)
        else:
            tell(plan, report(load_bench(plan.described, plan.folder)), written=options.write)


def tell(plan: Plan, tables: Mapping[str, Rows], *, written: bool) -> None:
    """Print tables, and put them into the results if asked to."""
    world = plan.folder.name
    told = [Table(f"{world}: {title}", *rows) for title, rows in tables.items()]
    print(*told, sep="\n\n")
    if written:
        write(told, RESULTS / "worlds.json", command_of("worlds"), machine())


if __name__ == "__main__":
    main()
