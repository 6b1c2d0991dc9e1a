"""Methods of merging in small trained worlds: `python -m benchmarks.worlds --world words` trains a
world, merges, scores, and prints its tables.

Everything is kept in a cache, so that a run goes on where the last one ended. Worlds: words.py and
flow.py; xl, epsilon and single are these with other models. What is trained: training.py,
recogniser.py, loras.py. Measurement: bench.py (the API for other experiments), score.py (what is
asked), methods.py (which merges), comparisons.py (the tables).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..common import console, in_parallel, teller
from ..results import RESULTS, Table, command_of, machine, write
from . import WORLDS
from .bench import DEFAULT_CACHE, load_bench
from .comparisons import COMPARISONS, Comparison, main_comparisons
from .loras import FILE, kind_of, lora_folder, train_lora
from .methods import Cell, Recipe
from .recogniser import train_recogniser
from .shares import table_of_shares
from .training import train_base
from .world import World

STAGES = ("base", "recogniser", "loras", "main", "shares", *COMPARISONS)


@dataclass(frozen=True)
class Place:
    """A world as it is trained, and where everything is kept.

    Args:
        name: Name of the world.
        cache: Folder of all worlds.
        seed: Seed of the base model, its LoRAs and the calibration.
        share: Part of the base model's steps that is made.
        batch: Pictures of a step of it; None: the world's.
        further: Steps that follow after those.
    """

    name: str
    cache: Path
    seed: int = 0
    share: float = 1.0
    batch: int | None = None
    further: int = 0

    @property
    def world(self) -> World:
        world = WORLDS[self.name]
        training = world.training.shortened(self.share, self.batch).further(self.further)
        return replace(world, training=training)

    @property
    def folder(self) -> Path:
        parts = [
            self.name,
            f"{self.seed}" if self.seed else "",
            f"short{self.share:g}" if self.share != 1 else "",
            f"batch{self.batch}" if self.batch else "",
            f"further{self.further}" if self.further else "",
        ]
        return self.cache / "-".join(filter(None, parts))


def base_stage(place: Place) -> None:
    folder = place.folder / "base"
    if not (folder / "text_encoder").exists():
        train_base(place.world, folder, place.seed, teller("base"))


def recogniser_stage(place: Place) -> None:
    path = place.folder / "recogniser.pt"
    if not path.exists():
        steps = 3000 if place.share == 1 else 1500
        console.print(train_recogniser(place.world, path, steps, teller("recogniser")))


def one_lora(place: Place, trigger: str, lora_set: str) -> str:
    torch.set_num_threads(1)
    world = place.world
    base = world.model.load(place.folder / "base")
    folder = lora_folder(place.folder, world, trigger, lora_set)
    loss = train_lora(world, base, trigger, kind_of(world, trigger, lora_set), place.seed, folder)
    return f"LoRA {trigger}, {lora_set}: loss {loss:.4f}"


def lora_stage(place: Place, lora_set: str, jobs: int) -> None:
    world = place.world
    missing = [
        (place, trigger, lora_set)
        for trigger in world.triggers
        if not (lora_folder(place.folder, world, trigger, lora_set) / FILE).exists()
    ]
    in_parallel(one_lora, missing, jobs)


def measure(
    place: Place, triggers: tuple[str, ...], lora_set: str, recipes: tuple[Recipe, ...]
) -> str:
    """Measure recipes on one merge of one set of LoRAs."""
    torch.set_num_threads(1)
    bench = load_bench(place.world, place.folder)
    for recipe in recipes:
        Cell(bench, recipe, triggers, lora_set, place.seed).entry()
    return f"{' + '.join(triggers)}, {lora_set}: done"


def compare(place: Place, asked: Mapping[str, Comparison], *, jobs: int, written: bool) -> None:
    """Measure what comparisons ask, print their tables, and write them if asked to."""
    world = place.world
    work = [
        (place, triggers, comparison.lora_set, comparison.recipes)
        for comparison in asked.values()
        for _, triggers in comparison.triggers(world)
    ]
    in_parallel(measure, work, jobs)
    bench = load_bench(world, place.folder)
    tables = [
        comparison.table(f"{place.folder.name}: {title}", bench, place.seed)
        for asked_as, whole in asked.items()
        for title, comparison in whole.with_kinds_alone(asked_as).items()
    ]
    tables += [
        comparison.by_merge(f"{place.folder.name}: {title}, by merge", bench, place.seed)
        for title, comparison in asked.items()
    ]
    show(tables, written=written)


def show(tables: Sequence[Table], *, written: bool) -> None:
    """Print tables, and put them into the results if asked to."""
    print(*tables, sep="\n\n")
    if written:
        write(tables, RESULTS / "worlds.json", command_of("worlds"), machine())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", choices=[*WORLDS], required=True)
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
        help=f"only this; what it needs must be there (default: {', '.join(STAGES[:4])})",
    )
    parser.add_argument(
        "--set",
        default="usual",
        dest="lora_set",
        help="set of LoRAs that is trained, and measured by main: usual, mixed or alone "
        "(default usual)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the base model and its LoRAs")
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        help=f"where everything is kept (default {DEFAULT_CACHE})",
    )
    parser.add_argument("--write", action="store_true", help="put tables into results/worlds.json")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (default 2)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    place = Place(
        options.world, options.cache, options.seed, options.short, options.batch, options.further
    )
    for stage in options.stage or STAGES[:4]:
        if stage == "base":
            base_stage(place)
        elif stage == "recogniser":
            recogniser_stage(place)
        elif stage == "loras":
            lora_stage(place, options.lora_set, options.jobs)
        elif stage == "main":
            asked = main_comparisons(place.world, options.lora_set)
            compare(place, asked, jobs=options.jobs, written=options.write)
        elif stage == "shares":
            bench = load_bench(place.world, place.folder)
            show(
                [table_of_shares(bench, f"{place.folder.name}: shares", place.seed)],
                written=options.write,
            )
        else:
            asked = {stage: COMPARISONS[stage]}
            compare(place, asked, jobs=options.jobs, written=options.write)


if __name__ == "__main__":
    # processes find their work by the name of its module, and none can import "__main__"
    from benchmarks.worlds.__main__ import main

    main()
