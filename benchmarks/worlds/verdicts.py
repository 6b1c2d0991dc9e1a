"""What the figures of a check say about recognition: `python -m benchmarks.worlds.verdicts measure
WORLD FOLDER` looks at merges of a trained world, good and bad ones, more closely than the product's
check does, and has their pictures judged; all is kept in the folder. `python -m
benchmarks.worlds.verdicts tables FOLDER...` says how often the verdict's words are right, and puts
what they follow from into results/verdicts.json.

Of each LoRA of a merge: at many noise levels of runs that the merge has not seen, the clean latents
of the merge against those of the LoRA and of the base model; whole short runs of all three from the
same noise, in latents and in the features of the model's middle block; and in how many pictures a
recogniser sees its concept, with the merge and with the LoRA alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from iteris_core.adapters import Adapter
from iteris_core.diffusion.held_out import Unseen, _contexts, kind_of, make_check_plans
from iteris_core.diffusion.lora_use import own_names
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.diffusion.plans import runs_of
from iteris_core.diffusion.sampling import Sampler
from iteris_core.diffusion.together import TogetherPlan
from iteris_core.report.verdict import APART_FROM, TOGETHER_UP_TO, Measured, level_of

from . import NAMES, find_world
from .bench import ROWS, Bench, load_bench, wearing
from .drawing import to_latents
from .loras import FILE
from .methods import PICTURE_SCENES, Cell, Recipe
from .score import Probe, probes_of
from .tables import table, triggers_of

RUNS = 12  # of a LoRA's check
LEVELS = 4  # of a run; staggered, so that runs together cover many more
EFFORT = {"alone": 2, "company": 2, "seen": 1}
WHOLE = ((4, 1.0),)  # steps and guidance of whole runs; None: the world's
SEEDS = 600_000  # of whole runs
GROUPS = (
    ("usual", (0, 1)),
    ("usual", (2, 3)),
    ("usual", (0, 3)),
    ("usual", (0, 1, 2, 3)),
    ("usual", (0, 1, 2, 3, 4, 5)),
    ("usual", (4, 5)),
    ("usual", (2, 4, 5)),
)
UNFITTED = ((4, 5), (2, 4, 5))  # merges on which no bound was chosen
SEEN_ALONE = 0.7  # a single LoRA that is seen less often says little about its merges
CHECKED = 4  # runs of the product's check
REPEATS = 50  # checks of a LoRA that are drawn from its looks
LEVELS_SAID = ("good", "weak", "lost")
RESULTS = Path(__file__).parent.parent / "results" / "verdicts.json"
COMMANDS = (
    "python -m benchmarks.worlds --world words --short 0.35 --stage base --stage recogniser --stage loras",
    "python -m benchmarks.worlds.verdicts measure words CACHE/words-short0.35",
    "copy base and recogniser.* of it to CACHE/words-2-short0.35, here called words-short0.35-loras2",
    "python -m benchmarks.worlds --world words --seed 2 --short 0.35 --stage loras",
    "python -m benchmarks.worlds.verdicts measure words CACHE/words-2-short0.35 --seed 2",
    "python -m benchmarks.worlds.verdicts tables CACHE/words-short0.35 CACHE/words-2-short0.35",
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


DEFAULT = Recipe("IterIS")
TOGETHER = Recipe("together", {}, PICTURE_SCENES)
STACK = Recipe("sum", {"method": "sum"})
AVERAGE = Recipe("average", {"method": "average"})
WAYS = (
    Way(DEFAULT),
    Way(TOGETHER),
    Way(STACK),
    Way(AVERAGE),
    Way(Recipe("np_lora", {"method": "np_lora"})),
    Way(Recipe("mix_of_show", {"method": "mix_of_show"})),
    Way(Recipe("tsv_m", {"method": "tsv_m"})),
    Way(Recipe("preserve x3", {}, {"preserve_weight": 6.0})),
    Way(Recipe("preserve /3", {}, {"preserve_weight": 2 / 3})),
    Way(STACK, 1.5),
    Way(Recipe("rank 2", {"rank": 2})),
    Way(Recipe("3 runs", {}, {"trajectories": 3})),
)
OURS = ("IterIS", "together", "preserve x3", "preserve /3", "rank 2", "3 runs")


@dataclass(frozen=True, eq=False)
class Look:
    """A noisy picture at which the merge is compared with a teacher.

    Args:
        kind: See `FidelityKind`.
        lora: Number of the LoRA in the merge; None: the base model is the teacher.
        run, level: Number of the run in its task, of the noise level.
        latents, sigma: The noisy latents.
        teacher, student: The captions that the teacher reads, and all others.
        mask: What of the picture counts; None: all of it.
    """

    kind: str
    lora: int | None
    run: int
    level: int
    latents: Tensor
    sigma: Tensor
    teacher: str
    student: str
    mask: Tensor | None


class Everywhere(Unseen):
    """The calibration of a check that looks at every level."""

    @property
    def kept_below(self) -> int:
        return self.levels


def looks_of(bench: Bench, triggers: Sequence[str], lora_set: str, seed: int) -> list[Look]:
    """Return what the check of a merge looks at, at many more levels."""
    calibration = bench.calibration(
        held_out=RUNS, timesteps=LEVELS, sampling_steps=LEVELS, seed=seed
    )
    loras = bench.loras(triggers, lora_set)
    adapters = [lora.adapter for lora in loras]
    plans = [
        replace(plan, calibration=Everywhere.of(calibration))
        for plan in make_check_plans(own_names([lora.use for lora in loras]), calibration)
    ]
    parts = [adapter.split(bench.model.is_text_module) for adapter in [*adapters, adapters[0]]]
    contexts = _contexts(bench.model, plans, [text for text, _ in parts], ROWS // 2).own
    with bench.model.denoiser() as network:
        sampler = Sampler.of(bench.model, network, calibration)
        of_denoiser = [part for _, part in parts[:-1]]
        latents = sampler.sample(of_denoiser, runs_of(plans, contexts), ROWS // 2)
    looks = []
    for plan in plans:
        lora = next(iter(plan.mix), None)
        if isinstance(plan, TogetherPlan):
            asked = [
                (half.caption, half.meeting.caption, half.meeting.region(half.place, latents.shape))
                for half in plan.halves
            ]
        else:
            asked = [(caption, caption, None) for caption in plan.captions]
        for number, (run, read) in enumerate(zip(plan.drawn_in(), asked, strict=True)):
            for level, (x, sigma) in zip(run.kept, latents.kept[run], strict=True):
                looks.append(Look(kind_of(plan), lora, number, level, x, sigma, *read))
    return looks


@torch.no_grad()
def cleaned(
    bench: Bench, adapter: Adapter | None, looks: Sequence[Look], *, teacher: bool = False
) -> Tensor:
    """Return the clean latents of all looks, (looks, channels, height, width)."""
    texts = [look.teacher if teacher else look.student for look in looks]
    with wearing(bench.model, adapter):
        known = list(dict.fromkeys(texts))
        read = dict(zip(known, bench.encoded(known), strict=True))
        found = []
        for start in range(0, len(looks), ROWS):
            part = range(start, min(start + ROWS, len(looks)))
            x = torch.stack([looks[i].latents for i in part])
            sigma = torch.stack([looks[i].sigma for i in part])
            with bench.model.denoiser() as network:
                rows = [DenoiserRow(x[j], sigma[j], read[texts[i]]) for j, i in enumerate(part)]
                found.append(network.forward(rows).float())
    return torch.cat(found)


def products(looks: Sequence[Look], merged: Tensor, teacher: Tensor, base: Tensor) -> Tensor:
    """Return ``||merged - teacher||^2, <merged - base, teacher - base>, ||teacher - base||^2`` of
    each look, (looks, 3).
    """
    sums = []
    for i, look in enumerate(looks):
        mask = 1.0 if look.mask is None else look.mask
        m, t, b = (rows[i].double() * mask for rows in (merged, teacher, base))
        sums.append([(m - t).square().sum(), ((m - b) * (t - b)).sum(), (t - b).square().sum()])
    return torch.tensor(sums)


@dataclass(frozen=True)
class Whole:
    """Whole runs of one LoRA: captions and seeds of their noise."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, captions: Sequence[str], number: int) -> Whole:
        return cls(tuple(captions), tuple(SEEDS + 1000 * number + i for i in range(len(captions))))


def features(bench: Bench, latents: Tensor, caption: str) -> Tensor:
    """Return what the base model's middle block makes of pictures with a little noise."""
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found = output[-1] if isinstance(output, tuple) else output
        kept.append(found.detach().flatten(1).float())

    middle = next(
        bench.model.modules[name]
        for name in ("unet.mid_block", "transformer.transformer_blocks.1")
        if name in bench.model.modules
    )
    sigma = torch.tensor(0.3)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    handle = middle.register_forward_hook(keep)
    try:
        prompts = bench.encoded([caption]) * len(latents)
        for start in range(0, len(latents), ROWS):
            x = (latents + sigma * noise)[start : start + ROWS]
            bench.clean(x, sigma, prompts[: len(x)])
    finally:
        handle.remove()
    return torch.cat(kept)


def drawn(bench: Bench, adapter: Adapter | None, whole: Whole) -> dict[str, Tensor]:
    """Return whole runs, by their way of sampling, as latents and as features."""
    found = {}
    for steps, cfg in WHOLE:
        pictures = bench.sample(adapter, whole.captions, whole.seeds, cfg, steps)
        latents = to_latents(pictures)
        name = f"{steps} steps, cfg {cfg or bench.world.cfg:g}"
        found[f"latents, {name}"] = latents.flatten(1)
        found[f"features, {name}"] = features(bench, latents, "")
    return found


def whole_products(
    merged: Mapping[str, Tensor], teacher: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, list[list[float]]]:
    found = {}
    for name in merged:
        m, t, b = (drawn_by[name].double() for drawn_by in (merged, teacher, base))
        sums = [(m - t).square().sum(1), ((m - b) * (t - b)).sum(1), (t - b).square().sum(1)]
        found[name] = rounded(torch.stack(sums, 1))
    return found


def rounded(sums: Tensor) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in sums.tolist()]


def asked_of(bench: Bench, triggers: Sequence[str]) -> list[Probe]:
    """Return the probes of a merge about its concepts."""
    return [
        probe
        for kind, effort in EFFORT.items()
        for probe in probes_of(bench.world, triggers, effort)
        if probe.kind == kind
    ]


def hits(bench: Bench, adapter: Adapter | None, probes: Sequence[Probe]) -> dict[str, Any]:
    """Return kind -> trigger(s) -> [pictures in which the concepts are, and nothing more is asked
    of the rest; pictures].
    """
    pictures = bench.sample(adapter, [p.caption for p in probes], [p.seed for p in probes])
    found: dict[str, dict[str, list[int]]] = {}
    for probe, seen in zip(probes, bench.recogniser.judge(pictures), strict=True):
        entry = found.setdefault(probe.kind, {}).setdefault(" + ".join(probe.about), [0, 0])
        entry[0] += {bench.world.concept_of(trigger) for trigger in probe.about} <= set(seen.labels)
        entry[1] += 1
    return found


class Measurement:
    """The measurements of a world, kept in files of its folder."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.seed = seed
        self.folder = bench.folder / "verdicts"
        self.folder.mkdir(exist_ok=True)

    def cell(self, way: Way, triggers: Sequence[str], lora_set: str) -> Adapter:
        adapter = Cell(self.bench, way.recipe, tuple(triggers), lora_set, self.seed).adapter()[0]
        assert adapter is not None  # every way merges
        return adapter.scaled(way.scale) if way.scale != 1 else adapter

    def single(self, trigger: str, lora_set: str) -> dict[str, Any]:
        """Return how often the single LoRA's concept is recognised."""
        number = self.bench.world.all_triggers.index(trigger)
        path = self.folder / f"single-{lora_set}-{number}.json"
        if not path.exists():
            probes = [p for p in asked_of(self.bench, (trigger,)) if p.about == (trigger,)]
            adapter = self.bench.lora(trigger, lora_set).adapter
            path.write_text(json.dumps(hits(self.bench, adapter, probes)))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def group(self, lora_set: str, numbers: tuple[int, ...], ways: Sequence[Way]) -> None:
        """Measure ways to merge some LoRAs, those that are not yet measured."""
        triggers = triggers_of(self.bench.world, numbers)
        name = f"{lora_set}-{'+'.join(map(str, numbers))}"
        paths = {
            way.name: self.folder / f"{name}-{way.name.replace('/', 'over')}.json" for way in ways
        }
        missing = [way for way in ways if not paths[way.name].exists()]
        if not missing:
            return
        began = time.perf_counter()
        bench = self.bench
        looks = looks_of(bench, triggers, lora_set, self.seed)
        singles = [lora.adapter for lora in bench.loras(triggers, lora_set)]
        base = cleaned(bench, None, looks)
        teacher = base.clone()
        for k, adapter in enumerate(singles):
            own = [i for i, look in enumerate(looks) if look.lora == k]
            teacher[own] = cleaned(bench, adapter, [looks[i] for i in own], teacher=True)
        wholes = []
        for k, trigger in enumerate(triggers):
            captions = [look.teacher for look in looks if look.lora == k and look.kind == "own"]
            mixed = (
                list(dict.fromkeys(captions))[:8] + [f"a {trigger}", f"a photo of a {trigger}"] * 2
            )
            wholes.append(Whole.of(mixed, k))
        of_base = [drawn(bench, None, whole) for whole in wholes]
        of_single = [drawn(bench, a, w) for a, w in zip(singles, wholes, strict=True)]
        probes = asked_of(bench, triggers)
        of_singles = {t: self.single(t, lora_set) for t in triggers}
        print(f"{name}: {len(looks)} looks, {time.perf_counter() - began:.0f} s", flush=True)
        known = [
            [look.kind, look.lora, look.run, look.level, round(float(look.sigma), 4)]
            for look in looks
        ]
        for way in missing:
            began = time.perf_counter()
            adapter = self.cell(way, triggers, lora_set)
            sums = products(looks, cleaned(bench, adapter, looks), teacher, base)
            found = {
                "world": bench.folder.name,
                "set": lora_set,
                "triggers": triggers,
                "way": way.name,
                "ours": way.recipe.name in OURS,
                "singles": of_singles,
                "hits": hits(bench, adapter, probes),
                "whole": [
                    whole_products(drawn(bench, adapter, whole), single, nothing)
                    for whole, single, nothing in zip(wholes, of_single, of_base, strict=True)
                ],
                "looks": known,
                "sums": rounded(sums),
            }
            paths[way.name].write_text(json.dumps(found))
            print(f"{name}, {way.name}: {time.perf_counter() - began:.0f} s", flush=True)


def measured(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what was measured of each merge of a world."""
    for path in sorted((folder / "verdicts").glob("*.json")):
        if not path.name.startswith("single-"):
            yield json.loads(path.read_text())


@dataclass(frozen=True)
class Judged:
    """A LoRA of a merge, as the check sees it and as the recogniser does.

    Args:
        merge: World, set of LoRAs, triggers, way.
        trigger: Its trigger.
        ours: Whether the merge is one of IterIS.
        looks: (run, error, strength) of each look at a level where the product looks.
        single: Share of pictures, alone and next to a base thing, in which its concept is seen with
            the LoRA alone.
        rate: The same with the merge.
    """

    merge: tuple[str, str, str, str]
    trigger: str
    ours: bool
    looks: tuple[tuple[int, float, float], ...]
    single: float
    rate: float

    @property
    def true(self) -> str:
        share = self.rate / self.single
        return "good" if share >= 0.75 else "lost" if share < 0.3 else "weak"

    def measured(
        self, runs: Sequence[int] | None = None, chance: random.Random = _FIXED
    ) -> Measured:
        """Return what a check finds: all looks, or one of each of some runs."""
        found = [look[1:] for look in self.looks]
        if runs is not None:
            found = [chance.choice([look[1:] for look in self.looks if look[0] == r]) for r in runs]
        means = [fmean(values) for values in zip(*found, strict=True)]
        return Measured(self.trigger, *means, runs=tuple(found))


def judged(folder: Path, kind: str = "own") -> Iterator[Judged]:
    """Yield the LoRAs of a world's merges, of which the single LoRA's concept is seen often."""
    below = Unseen().kept_below
    for found in measured(folder):
        merge = (found["world"], found["set"], " + ".join(found["triggers"]), found["way"])
        for k, trigger in enumerate(found["triggers"]):
            looks = tuple(
                (run, (difference / effect) ** 0.5, along / effect)
                for (of_kind, lora, run, level, _), (difference, along, effect) in zip(
                    found["looks"], found["sums"], strict=True
                )
                if (of_kind, lora) == (kind, k) and level < below
            )
            single, rate = (
                seen(hits, trigger) for hits in (found["singles"][trigger], found["hits"])
            )
            if single >= SEEN_ALONE and looks:
                yield Judged(merge, trigger, found["ours"], looks, single, rate)


def seen(hits: Mapping[str, Any], trigger: str) -> float:
    counts = [hits[kind][trigger] for kind in ("alone", "company")]
    return sum(hit for hit, _ in counts) / sum(asked for _, asked in counts)


def confusion(found: Sequence[Judged], runs: int) -> str:
    """Return how often each word was said of LoRAs that are good, weak and lost, by checks of so
    many runs, in Markdown.
    """
    chance = random.Random(0)
    counts: Counter[tuple[str, str]] = Counter()
    for lora in found:
        known = sorted({run for run, *_ in lora.looks})
        for _ in range(REPEATS):
            drawn = lora.measured(chance.sample(known, runs), chance)
            counts[level_of(drawn.kept), lora.true] += 1
    rows = []
    for said in LEVELS_SAID:
        row = [counts[said, true] / REPEATS for true in LEVELS_SAID]
        share = f"{row[LEVELS_SAID.index(said)] / sum(row):.2f}" if sum(row) else "-"
        rows.append([said, *(f"{value:.1f}" for value in row), share])
    return table(["said", "is good", "is weak", "is lost", "right"], rows)


def coverage(found: Sequence[Judged], runs: int) -> float:
    """Return how often the range of a check of so many runs holds what all looks together find."""
    chance = random.Random(0)
    inside = []
    for lora in found:
        truth = lora.measured().kept
        known = sorted({run for run, *_ in lora.looks})
        for _ in range(REPEATS):
            low, high = lora.measured(chance.sample(known, runs), chance).between or (0.0, 1.0)
            inside.append(low <= truth <= high)
    return fmean(inside)


def both_seen(folder: Path) -> Iterator[tuple[tuple[str, ...], bool, float, float]]:
    """Yield merge, whether it is ours, the mean error in pictures of two, at most 1 each, and the
    share of pictures in which both are seen.
    """
    together: dict[tuple[str, ...], list[Judged]] = {}
    for lora in judged(folder, "together"):
        together.setdefault(lora.merge, []).append(lora)
    for found in measured(folder):
        merge = (found["world"], found["set"], " + ".join(found["triggers"]), found["way"])
        loras = together.get(merge, [])
        if len(loras) == len(found["triggers"]):
            error = fmean(min(1.0, look[1]) for lora in loras for look in lora.looks)
            hits = found["hits"]["seen"].values()
            rate = sum(hit for hit, _ in hits) / sum(asked for _, asked in hits)
            yield merge, found["ours"], error, rate


def tables(folders: Sequence[Path]) -> str:
    """Return what the words are worth in each world, and write what it follows from."""
    parts = []
    of_lora = [
        "world",
        "set",
        "LoRAs",
        "way",
        "LoRA",
        "kept",
        "there",
        "added",
        "seen alone, beside",
    ]
    kept: dict[str, Any] = {
        "commands": COMMANDS,
        "columns of loras": [*of_lora, "the same, merged"],
        "loras": [],
        "columns of pictures of two": [*of_lora[:4], "error", "both seen"],
        "pictures of two": [],
    }
    for folder in folders:
        found = list(judged(folder))
        for lora in found:
            whole = lora.measured()
            figures = [whole.kept, whole.strength, whole.added, lora.single, lora.rate]
            kept["loras"].append(
                [*lora.merge, lora.trigger, *(round(float(value or 0), 3) for value in figures)]
            )
        world = find_world(folder.name.partition("-")[0])
        new = {" + ".join(triggers_of(world, group)) for group in UNFITTED}
        for title, some in (
            ("IterIS", [lora for lora in found if lora.ours]),
            ("other methods", [lora for lora in found if not lora.ours]),
        ):
            for merges, part in (
                ("", [lora for lora in some if lora.merge[2] not in new]),
                (", LoRAs of their own", [lora for lora in some if lora.merge[2] in new]),
            ):
                told = f"{folder.name}, {title}{merges}, {len(part)} LoRAs, {CHECKED} runs a check:"
                parts += [told, confusion(part, CHECKED)] if part else []
        parts.append(
            "the range holds in "
            + ", ".join(f"{coverage(found, runs):.2f} ({runs} runs)" for runs in (3, 4, 8))
        )
        pictures = list(both_seen(folder))
        kept["pictures of two"] += [[*m, round(k, 3), round(r, 3)] for m, _, k, r in pictures]
        rows = [
            [
                name,
                *(
                    str(sum(is_said(k) and is_true(r) for _, _, k, r in pictures))
                    for is_true in BOTH
                ),
            ]
            for name, is_said in (
                ("likely", lambda error: error <= TOGETHER_UP_TO),
                ("unlikely", lambda error: error >= APART_FROM),
            )
        ]
        parts.append(table(["said", "both in half of the pictures or more", "in fewer"], rows))
    kept["tables"] = parts
    RESULTS.parent.mkdir(exist_ok=True)
    lines = json.dumps(kept).replace("], [", "],\n[")
    RESULTS.write_text(lines + "\n", encoding="utf-8")
    return "\n\n".join(parts)


BOTH = (lambda rate: rate >= 0.5, lambda rate: rate < 0.5)


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
        print(tables(options.folders))
        return
    measurement = Measurement(load_bench(options.world, options.folder), options.seed)
    for lora_set, numbers in GROUPS:
        trained = options.folder / f"loras-{lora_set}"
        if all((trained / str(number + 1) / FILE).exists() for number in numbers):
            measurement.group(lora_set, numbers, WAYS)


if __name__ == "__main__":
    main()
