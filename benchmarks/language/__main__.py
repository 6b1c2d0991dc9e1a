"""Merging LoRAs of a small T5 and a small BLIP, trained here: `python -m benchmarks.language`
measures every method, and writes results/language.json.

What is trained and measured is kept in a folder with its settings, so that a run that was stopped
goes on, and what has other settings now is measured again; delete the folder after a change of the
methods.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from iteris_core import Adapter, IterisError, merge

from ..common import in_parallel
from ..results import RESULTS, command_of, machine, write
from .blip import CaptionWorld
from .methods import ABLATIONS, ITERATIONS, MAIN, Way
from .t5 import TextWorld
from .tables import Group, Records, tables_of
from .world import Size, World

WORLDS: dict[str, type[World]] = {world.name: world for world in (TextWorld, CaptionWorld)}


@dataclass(frozen=True)
class Job:
    """All merges of one base model with the LoRAs of one seed.

    Args:
        world: One of `WORLDS`.
        base: Seed of the base model.
        seed: Seed of its LoRAs, calibration samples and examples.
        folder: Folder of all models, LoRAs and records.
        size: Amounts of training and measuring; None: the world's.
    """

    world: str
    base: int
    seed: int
    folder: Path
    size: Size | None = None

    def records(self, group: Group) -> Path:
        name = f"{self.world}-{self.base}-{self.seed}-{'+'.join(group)}.json"
        return self.folder / "records" / name

    def model(self) -> World:
        """Return the base model, trained if it is not there yet."""
        torch.set_num_threads(1)
        return WORLDS[self.world](self.folder / self.world / str(self.base), self.base, self.size)

    def __str__(self) -> str:
        return f"{self.world}, base {self.base}, seed {self.seed}"


def groups_of(names: Group) -> list[Group]:
    """Return the groups of merged tasks: all pairs, neighbours first, triples, and all together."""
    count = len(names)
    triples = [
        tuple(names[(i + j) % count] for j in range(3)) for i in ((0, 2, 4) if count > 3 else ())
    ]
    pairs = sorted(combinations(names, 2), key=lambda pair: not _are_neighbours(names, pair))
    return [*pairs, *triples, names]


def _are_neighbours(names: Group, group: Group) -> bool:
    """Return whether a group is a pair of neighbours in a ring."""
    places = [names.index(name) for name in group]
    return len(group) == 2 and places[1] - places[0] in (1, len(names) - 1)


def ways_of(names: Group, group: Group) -> list[Way]:
    """Return the ways to try on a group: all on pairs of neighbours, the main ones on others."""
    more = [*ABLATIONS.values(), *ITERATIONS.values()] if _are_neighbours(names, group) else []
    return [*MAIN.values(), *more]


def prepare_base(job: Job) -> str:
    """Train a base model, if it is not there yet."""
    job.model()
    return f"{job}: base model"


def work(job: Job) -> str:
    """Train one seed's LoRAs, score them, and try every way on every group, if not recorded."""
    world = job.model()
    adapters = world.adapters(job.seed)
    with kept(job.records(("alone",))) as records:
        if not records:
            records["base"] = world.scores(None, world.tasks, job.seed)
            for name, adapter in adapters.items():
                records[name] = world.scores(adapter, [name], job.seed)
    names = tuple(world.tasks)
    for group in groups_of(names):
        with kept(job.records(group)) as records:
            for way in ways_of(names, group):
                if way.key not in records:
                    worn = [adapters[name] for name in group]
                    records[way.key] = scored(world, worn, group, job.seed, way)
    return f"{job}: all merges"


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


def scored(
    world: World, adapters: Sequence[Adapter], group: Group, seed: int, way: Way
) -> dict[str, float]:
    """Merge and score once; nothing if the merge is refused."""
    network, tasks = world.merge_inputs(group, seed, way)
    try:
        result = merge(network, adapters, tasks, way.config)
    except IterisError:
        return {}
    return world.scores(result.adapter, group, seed)


def read_records(jobs: Sequence[Job]) -> Records:
    """Return what was measured of one model."""
    names = tuple(WORLDS[jobs[0].world].tasks)
    alone = {}
    merges = {}
    for job in jobs:
        run = job.base, job.seed
        alone[run] = json.loads(job.records(("alone",)).read_text(encoding="utf-8"))
        for group in groups_of(names):
            merges[run, group] = json.loads(job.records(group).read_text(encoding="utf-8"))
    return Records(names, alone, merges)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(WORLDS), help="one model; the other's tables stay")
    parser.add_argument("--bases", type=int, default=2, help="base models of each kind (default 2)")
    parser.add_argument("--seeds", type=int, default=2, help="of LoRAs, for each base (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (default 2)")
    default = Path(tempfile.gettempdir()) / "iteris-language"
    parser.add_argument("--folder", type=Path, default=default, help="what is kept")
    options = parser.parse_args()
    worlds = [options.only] if options.only else list(WORLDS)
    jobs = [
        Job(world, base, seed, options.folder)
        for base in range(options.bases)
        for seed in range(options.seeds)
        for world in worlds
    ]
    in_parallel(prepare_base, [(job,) for job in jobs if job.seed == 0], options.jobs)
    in_parallel(work, [(job,) for job in jobs], options.jobs)
    for world in worlds:
        tables = tables_of(world, read_records([job for job in jobs if job.world == world]))
        print(*tables, sep="\n\n", end="\n\n", flush=True)
        write(tables, RESULTS / "language.json", command_of("language"), machine())


if __name__ == "__main__":
    # processes find their work by the name of its module, and none can import "__main__"
    from benchmarks.language.__main__ import main

    main()
