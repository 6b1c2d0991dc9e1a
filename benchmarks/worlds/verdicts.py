"""How often the verdict's words are right: `python -m benchmarks.worlds.verdicts measure WORLD
FOLDER` checks merges of a trained world, good and bad ones, on more pictures than the product does,
and has other pictures of them judged by a recogniser; all is kept in the folder. `python -m
benchmarks.worlds.verdicts tables FOLDER...` compares the two, and puts the figures into
results/verdicts.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from iteris_core.adapters import Adapter
from iteris_core.config import MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import check_of
from iteris_core.report.runs import RunFidelity, TaskFidelity
from iteris_core.report.verdict import APART_FROM, TOGETHER_UP_TO, level_of

from ..results import RESULTS, Table, machine, write
from . import NAMES
from .bench import ROWS, Bench, load_bench
from .loras import FILE
from .methods import PICTURE_SCENES, Cell, Recipe
from .score import Probe, probes_of

PICTURES = 8  # of a LoRA's check
EFFORT = {"alone": 2, "company": 2, "seen": 1}
GROUPS = (
    ("usual", (0, 1)),
    ("usual", (2, 3)),
    ("usual", (0, 3)),
    ("usual", (0, 1, 2, 3)),
    ("usual", (0, 1, 2, 3, 4, 5)),
    ("usual", (4, 5)),
    ("usual", (2, 4, 5)),
)
SEEN_ALONE = 0.7  # a single LoRA that is seen less often says little about its merges
CHECKED = 2  # pictures of the product's check
REPEATS = 50  # checks of a LoRA that are drawn from its pictures
LEVELS_SAID = ("good", "weak", "lost")
COMMANDS = (
    "python -m benchmarks.worlds --world WORLD --seed SEED --short SHARE --stage base --stage "
    "recogniser --stage loras; python -m benchmarks.worlds.verdicts measure WORLD FOLDER --seed "
    "SEED; python -m benchmarks.worlds.verdicts tables FOLDER..."
)
_FIXED = random.Random(0)


@dataclass(frozen=True)
class Way:
    """A recipe at a scale of what it makes."""

    recipe: Recipe
    scale: float = 1.0

    @property
    def name(self) -> str:
        return self.recipe.name + (f" x{self.scale:g}" if self.scale != 1 else "")

    @property
    def is_ours(self) -> bool:
        return "method" not in self.recipe.config


STACK = Recipe("sum", {"method": "sum"})
WAYS = (
    Way(Recipe("IterIS")),
    Way(Recipe("together", {}, PICTURE_SCENES)),
    Way(STACK),
    Way(Recipe("average", {"method": "average"})),
    Way(Recipe("np_lora", {"method": "np_lora"})),
    Way(Recipe("mix_of_show", {"method": "mix_of_show"})),
    Way(Recipe("tsv_m", {"method": "tsv_m"})),
    Way(Recipe("preserve x3", {}, {"preserve_weight": 6.0})),
    Way(Recipe("preserve /3", {}, {"preserve_weight": 2 / 3})),
    Way(STACK, 1.5),
    Way(Recipe("rank 2", {"rank": 2})),
    Way(Recipe("3 runs", {}, {"trajectories": 3})),
)


def asked_of(bench: Bench, triggers: Sequence[str]) -> list[Probe]:
    """Return the probes of a merge about its concepts."""
    return [
        probe
        for kind, effort in EFFORT.items()
        for probe in probes_of(bench.world, triggers, effort)
        if probe.kind == kind
    ]


def hits(bench: Bench, adapter: Adapter | None, probes: Sequence[Probe]) -> dict[str, Any]:
    """Return kind -> trigger(s) -> [pictures in which the concepts are, pictures]."""
    pictures = bench.sample(adapter, [p.caption for p in probes], [p.seed for p in probes])
    found: dict[str, dict[str, list[int]]] = {}
    for probe, seen in zip(probes, bench.recogniser.judge(pictures), strict=True):
        entry = found.setdefault(probe.kind, {}).setdefault(" + ".join(probe.about), [0, 0])
        entry[0] += {bench.world.concept_of(trigger) for trigger in probe.about} <= set(seen.labels)
        entry[1] += 1
    return found


@dataclass(frozen=True)
class Measurement:
    """The measurements of a world, kept in files of its folder."""

    bench: Bench
    seed: int

    @property
    def folder(self) -> Path:
        return self.bench.folder / "verdicts"

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a file has, which is made if it is not there."""
        path = self.folder / f"{name.replace('/', 'over')}.json"
        if not path.exists():
            began = time.perf_counter()
            self.folder.mkdir(exist_ok=True)
            path.write_text(json.dumps(make()))
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        return json.loads(path.read_text())

    def cell(self, way: Way, triggers: Sequence[str], lora_set: str) -> Adapter:
        adapter = Cell(self.bench, way.recipe, tuple(triggers), lora_set, self.seed).adapter()
        assert adapter is not None  # every way merges
        return adapter.scaled(way.scale) if way.scale != 1 else adapter

    def check(self, adapter: Adapter, triggers: Sequence[str], lora_set: str) -> list[Any]:
        """Return what the product's check says of a merge, on more pictures."""
        calibration = self.bench.calibration(held_out=PICTURES, seed=self.seed)
        settings = MergeSettings(MergeConfig(samples_per_chunk=ROWS // 2))
        loras = self.bench.loras(triggers, lora_set)
        job = Job.of(self.bench.model, loras, calibration, settings)
        return [asdict(entry) for entry in check_of(job).measure(adapter)]

    def single(self, trigger: str, lora_set: str) -> Any:
        """Return how often the single LoRA's concept is recognised."""
        number = self.bench.world.all_triggers.index(trigger)
        probes = [p for p in asked_of(self.bench, (trigger,)) if p.about == (trigger,)]
        adapter = self.bench.lora(trigger, lora_set).adapter
        return self.kept(f"single-{lora_set}-{number}", lambda: hits(self.bench, adapter, probes))

    def group(self, lora_set: str, numbers: tuple[int, ...], ways: Sequence[Way]) -> None:
        """Measure ways to merge some LoRAs, those that are not yet measured."""
        triggers = tuple(self.bench.world.all_triggers[number] for number in numbers)
        probes = asked_of(self.bench, triggers)
        for way in ways:
            adapter = self.cell(way, triggers, lora_set)
            name = f"{lora_set}-{'+'.join(map(str, numbers))}-{way.name}"
            seen = self.kept(f"seen-{name}", lambda made=adapter: hits(self.bench, made, probes))
            self.kept(
                f"check-{name}",
                lambda way=way, made=adapter, seen=seen: {
                    "merge": [self.bench.folder.name, lora_set, " + ".join(triggers), way.name],
                    "triggers": triggers,
                    "ours": way.is_ours,
                    "singles": {t: self.single(t, lora_set) for t in triggers},
                    "hits": seen,
                    "check": self.check(made, triggers, lora_set),
                },
            )


def measured(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what was measured of each merge of a world."""
    for path in sorted((folder / "verdicts").glob("check-*.json")):
        yield json.loads(path.read_text())


@dataclass(frozen=True)
class Judged:
    """A LoRA of a merge, as the check sees it and as the recogniser does.

    Args:
        merge: World, set of LoRAs, triggers, way.
        trigger: Its trigger.
        ours: Whether the merge is one of IterIS.
        runs: (error, strength) in each picture of the check.
        single: Share of pictures, alone and next to a base thing, in which its concept is seen with
            the LoRA alone.
        rate: The same with the merge.
    """

    merge: tuple[str, ...]
    trigger: str
    ours: bool
    runs: tuple[tuple[float, float | None], ...]
    single: float
    rate: float

    @property
    def true(self) -> str:
        share = self.rate / self.single
        return "good" if share >= 0.75 else "lost" if share < 0.3 else "weak"

    def measured(self, pictures: int | None = None, chance: random.Random = _FIXED) -> TaskFidelity:
        """Return what a check finds on some of the pictures; None: on all."""
        runs = self.runs if pictures is None else tuple(chance.sample(self.runs, pictures))
        return TaskFidelity.of(self.trigger, list(itertools.starmap(RunFidelity, runs)), len(runs))


def judged(folder: Path) -> Iterator[Judged]:
    """Yield the LoRAs of a world's merges, of which the single LoRA's concept is seen often."""
    for found in measured(folder):
        own = [entry for entry in found["check"] if entry["kind"] == "own"]
        for trigger, entry in zip(found["triggers"], own, strict=True):
            single, rate = (
                seen(hits, trigger) for hits in (found["singles"][trigger], found["hits"])
            )
            if single >= SEEN_ALONE:
                runs = tuple((run["error"], run["strength"]) for run in entry["runs"])
                merge = tuple(found["merge"])
                yield Judged(merge, trigger, found["ours"], runs, single, rate)


def seen(hits: Mapping[str, Any], trigger: str) -> float:
    counts = [hits[kind][trigger] for kind in ("alone", "company")]
    return sum(hit for hit, _ in counts) / sum(asked for _, asked in counts)


def confusion(title: str, found: Sequence[Judged]) -> Table:
    """Return how often each word was said of good, weak and lost LoRAs, by `CHECKED` pictures."""
    chance = random.Random(0)
    counts: Counter[tuple[str, str]] = Counter()
    for lora in found:
        for _ in range(REPEATS):
            counts[level_of(lora.measured(CHECKED, chance).kept), lora.true] += 1
    rows = []
    for said in LEVELS_SAID:
        row = [counts[said, true] / REPEATS for true in LEVELS_SAID]
        share = f"{row[LEVELS_SAID.index(said)] / sum(row):.2f}" if sum(row) else "-"
        rows.append([said, *(f"{value:.1f}" for value in row), share])
    heads = ["said", *(f"is {true}" for true in LEVELS_SAID), "right"]
    return Table(f"{title}, {len(found)} LoRAs, checks of {CHECKED} pictures", heads, rows)


def coverage(found: Sequence[Judged], pictures: int) -> float:
    """Return how often the range of a check of so many pictures holds what all together find."""
    chance = random.Random(0)
    inside = []
    for lora in found:
        truth = lora.measured().kept
        for _ in range(REPEATS):
            low, high = lora.measured(pictures, chance).between or (0.0, 1.0)
            inside.append(low <= truth <= high)
    return fmean(inside)


def both_seen(folder: Path) -> Iterator[tuple[tuple[str, ...], bool, float, float]]:
    """Yield merge, whether it is ours, the error in pictures of two, how often both are seen."""
    for found in measured(folder):
        halves = [entry for entry in found["check"] if entry["kind"] == "together"]
        errors = [min(1.0, run["error"]) for entry in halves for run in entry["runs"]]
        hits = found["hits"].get("seen", {}).values()
        if errors and hits:
            rate = sum(hit for hit, _ in hits) / sum(asked for _, asked in hits)
            yield tuple(found["merge"]), found["ours"], fmean(errors), rate


def tables_of(folder: Path) -> list[Table]:
    """Return what the words are worth in a world, and what it follows from."""
    found = list(judged(folder))
    name = folder.name
    pictures = list(both_seen(folder))
    ranges = [[str(count), f"{coverage(found, count):.2f}"] for count in (2, 3, 4, 8)]
    loras = [
        [
            *lora.merge[1:],
            lora.trigger,
            round(lora.measured().kept, 3),
            *map(_short, (lora.single, lora.rate)),
        ]
        for lora in found
    ]
    both = [[*merge[1:], _short(error), _short(rate)] for merge, _, error, rate in pictures]
    of_merge = ["set", "LoRAs", "way"]
    return [
        confusion(f"{name}, IterIS", [lora for lora in found if lora.ours]),
        confusion(f"{name}, other methods", [lora for lora in found if not lora.ours]),
        Table(f"{name}: the range of so many pictures holds", ["pictures", "in"], ranges),
        _of_both(f"{name}: two in one picture", pictures),
        Table(
            f"{name}: LoRAs",
            [*of_merge, "LoRA", "kept", "seen alone, beside", "the same, merged"],
            loras,
        ),
        Table(f"{name}: pictures of two", [*of_merge, "error", "both seen"], both),
    ]


def _short(value: float) -> float:
    return round(value, 3)


def _of_both(title: str, pictures: Sequence[tuple[tuple[str, ...], bool, float, float]]) -> Table:
    said: dict[str, Callable[[float], bool]] = {
        "likely": lambda error: error <= TOGETHER_UP_TO,
        "unlikely": lambda error: error >= APART_FROM,
    }
    rows = []
    for name, is_said in said.items():
        rates = [rate for _, _, error, rate in pictures if is_said(error)]
        often = sum(rate >= 0.5 for rate in rates)
        rows.append([name, often, len(rates) - often])
    return Table(title, ["said", "both in half of the pictures or more", "in fewer"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds.verdicts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("world", choices=NAMES)
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--seed", type=int, default=0)
    commands.add_parser("tables").add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "tables":
        tables = [table for folder in options.folders for table in tables_of(folder)]
        print(*tables, sep="\n\n")
        write(tables, RESULTS / "verdicts.json", COMMANDS, machine())
        return
    measurement = Measurement(load_bench(options.world, options.folder), options.seed)
    for lora_set, numbers in GROUPS:
        trained = options.folder / f"loras-{lora_set}"
        if all((trained / str(number + 1) / FILE).exists() for number in numbers):
            measurement.group(lora_set, numbers, WAYS)


if __name__ == "__main__":
    main()
