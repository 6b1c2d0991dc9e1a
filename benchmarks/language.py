"""Merging LoRAs of a small T5 and a small BLIP, trained here: `python -m benchmarks.language`
measures every method.

It writes results/language.json. What is trained and
measured is kept in a folder with its settings, so that a run that was stopped goes on, and what has
other settings now is measured again; delete the folder after a change of the methods.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# before torch is imported: threads that wait by spinning make everything several times slower where
# another job runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from iteris_core import IterisError, merge

from .language_blip import STYLES, CaptionWorld
from .language_methods import (
    ITERATIONS,
    Way,
    ablations,
    best_scale_ways,
    iterating,
    main_ways,
    scale_ways,
)
from .language_tables import Run, tables_of
from .language_tasks import LORA_TASKS
from .language_world import Size, Tell, TextWorld, World
from .results import RESULTS, command_of, machine, write

WORLDS: dict[str, Callable[[Path, int, Size, Tell], World]] = {
    "t5": TextWorld,
    "blip": CaptionWorld,
}
NAMES = {"t5": tuple(task.name for task in LORA_TASKS), "blip": tuple(STYLES)}
SIZES = {
    "t5": Size(),
    "blip": Size(width=64, base_steps=2000),
}
QUICK = {
    "t5": Size(
        width=64, layers=2, base_steps=250, lora_steps=60, samples=12, examples=20, base_examples=4
    ),
    "blip": Size(
        width=32, layers=2, base_steps=100, lora_steps=40, samples=12, examples=20, base_examples=4
    ),
}
Group = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """All merges of one base model with the LoRAs of one seed.

    Args:
        world: One of `WORLDS`.
        base: Seed of the base model.
        seed: Seed of its LoRAs, calibration samples and examples.
        folder: Folder of all models, LoRAs and records.
        size: Amounts of training and measuring.
        quick: Whether only one pair is merged.
    """

    world: str
    base: int
    seed: int
    folder: Path
    size: Size
    quick: bool

    def records(self, group: Group) -> Path:
        name = f"{self.world}-{self.base}-{self.seed}-{'+'.join(group)}.json"
        return self.folder / "records" / name

    def model(self, tell: Tell) -> World:
        """Return the base model, trained if it is not there yet."""
        folder = self.folder / self.world / str(self.base)
        return WORLDS[self.world](folder, self.base, self.size, tell)


def groups_of(world: str, quick: bool) -> list[Group]:
    """Return the groups of merged tasks: all pairs, neighbours first, triples (of neighbours), and
    all together.
    """
    names = NAMES[world]
    if quick:
        return [names[:2]]
    triples = (
        [tuple(names[(i + j) % len(names)] for j in range(3)) for i in (0, 2, 4)]
        if len(names) > 3
        else []
    )
    pairs = sorted(combinations(names, 2), key=lambda pair: not _are_neighbours(names, pair))
    return [*pairs, *triples, names]


def _are_neighbours(names: Group, group: Group) -> bool:
    """Return whether a group is a pair of neighbours in a ring."""
    places = [names.index(name) for name in group]
    return len(group) == 2 and places[1] - places[0] in (1, len(names) - 1)


def plan(world: str, group: Group, quick: bool) -> dict[str, Way]:
    """Return the ways to try on a group: all on pairs of neighbours (in a ring), the main ones on
    others.
    """
    ways = main_ways()
    if _are_neighbours(NAMES[world], group):
        ways |= {} if quick else best_scale_ways()
        ways |= {f"ablation: {name}": way for name, way in ablations().items()}
        ways |= scale_ways()
        ways |= {
            _iteration(number): replace(
                iterating(number + 1), follows=_iteration(number - 1) if number else None
            )
            for number in range(3 if quick else ITERATIONS)
        }
    return ways


def _iteration(number: int) -> str:
    return f"iteration {number}"


def prepare_base(job: Job, tell: Tell) -> None:
    """Train a base model, if it is not there yet."""
    torch.set_num_threads(1)
    job.model(tell)


def work(job: Job, tell: Tell) -> None:
    """Train one seed's LoRAs, score them, and try every way on every group; what is in the records
    already stays.
    """
    torch.set_num_threads(1)
    world = job.model(tell)
    merge_all(job, world, world.adapters(job.seed), tell)


def merge_all(job: Job, world: World, adapters: Mapping[str, Any], tell: Tell) -> None:
    """Score the LoRAs on their own, and every way on every group."""
    with kept(job.records(("alone",))) as records:
        if "base" not in records:
            records["base"] = {"scores": world.scores(None, world.tasks, job.seed)}
            for name, adapter in adapters.items():
                records[name] = {"scores": world.scores(adapter, [name], job.seed)}
    groups = groups_of(job.world, job.quick)
    total = sum(len(plan(job.world, group, job.quick)) for group in groups)
    done = 0
    for group in groups:
        with kept(job.records(group)) as records:
            for name, way in plan(job.world, group, job.quick).items():
                known = same_settings(records, name, way)
                records[name] = known or one(
                    world, [adapters[task] for task in group], group, job.seed, way, records
                )
                done += 1
                tell(f"{job.world}, base {job.base}, seed {job.seed}: merges", done, total)


def same_settings(records: Mapping[str, Any], name: str, way: Way) -> dict[str, Any] | None:
    """Return the record of a way, or of another name of it; None if it was not measured yet."""
    settings = way.settings()
    places = [name, *records]
    found = (records[place] for place in places if place in records)
    return next((dict(record) for record in found if record["settings"] == settings), None)


@contextmanager
def kept(path: Path) -> Iterator[dict[str, Any]]:
    """Read records, and write them back in one step, also if the work breaks off."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    try:
        yield records
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(records, indent=1), encoding="utf-8")
        draft.rename(path)


def one(
    world: World,
    adapters: Sequence[Any],
    group: Group,
    seed: int,
    way: Way,
    records: Mapping[str, Any],
) -> dict[str, Any]:
    """Merge and score once. An iteration after the fixed point was reached is what was scored
    there.
    """
    settings = way.settings()
    earlier = None if way.follows is None else records.get(way.follows)
    if earlier and earlier["solves"] < way.config.max_iter - 1:
        return {**earlier, "settings": settings}
    start = time.process_time()
    network, tasks = world.merge_inputs(group, seed, way)
    try:
        result = merge(network, adapters, tasks, way.config)
    except IterisError as error:
        return {"refused": str(error), "settings": settings}
    seconds = time.process_time() - start
    scores = world.scores(result.adapter, group, seed)
    notes = [note.text for note in result.report.notes if note.kind == "method"]
    return {
        "scores": scores,
        "seconds": seconds,
        "solves": len(result.report.changes),
        "notes": notes,
        "settings": settings,
    }


def run_all(jobs: Sequence[Job], workers: int) -> None:
    """Train the bases first, then work on all jobs, each in a process of its own, with a line of
    progress for each.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    context = get_context("spawn")
    with (
        context.Manager() as manager,
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        queue = manager.Queue()
        lines = {}
        for stage, stage_jobs in (
            (prepare_base, [job for job in jobs if job.seed == 0]),
            (work, jobs),
        ):
            waiting = [pool.submit(stage, job, _Teller(queue)) for job in stage_jobs]
            while waiting or not queue.empty():
                while not queue.empty():
                    name, done, total = queue.get()
                    lines[name] = lines[name] if name in lines else progress.add_task(name)
                    progress.update(lines[name], completed=done, total=total)
                for future in [future for future in waiting if future.done()]:
                    waiting.remove(future)
                    future.result()
                time.sleep(0.2)


@dataclass(frozen=True)
class _Teller:
    queue: Any

    def __call__(self, name: str, done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            self.queue.put((name, done, total))


def read_records(jobs: Sequence[Job]) -> dict[tuple[Run, Group], dict[str, Any]]:
    """Return (run, group) -> way -> record; the group ``alone`` holds the base model and the LoRAs
    on their own.
    """
    found = {}
    for job in jobs:
        for group in [("alone",), *groups_of(job.world, job.quick)]:
            path = job.records(group)
            if path.exists():
                found[(job.base, job.seed), group] = json.loads(path.read_text(encoding="utf-8"))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models, one base, one seed, one pair, about two minutes; writes nothing",
    )
    parser.add_argument(
        "--only",
        choices=list(WORLDS),
        help="one of the models; the other's tables stay as they are",
    )
    parser.add_argument(
        "--bases", type=int, default=2, help="base models of each kind, by seed (default 2)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=2,
        help="of LoRAs, calibration samples and examples, for each base (default 2)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes, one thread each (default 2)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "iteris-language",
        help="what is kept",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    sizes = QUICK if options.quick else SIZES
    bases, seeds = (1, 1) if options.quick else (options.bases, options.seeds)
    folder = options.folder / ("quick" if options.quick else "full")
    worlds = [options.only] if options.only else list(WORLDS)
    jobs = [
        Job(world, base, seed, folder, sizes[world], options.quick)
        for base in range(bases)
        for seed in range(seeds)
        for world in worlds
    ]
    run_all(jobs, options.jobs)
    torch.set_num_threads(1)
    for world in worlds:
        records = read_records([job for job in jobs if job.world == world])
        tables = tables_of(world, NAMES[world], records)
        print(*tables, sep="\n\n", end="\n\n", flush=True)
        if not options.quick:
            write(tables, RESULTS / "language.json", command_of("language"), machine())


if __name__ == "__main__":
    main()
