"""The merges of a world and their cached results: one cell per merge."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iteris_core.adapters import Adapter, LowRankDelta
from iteris_core.config import BaselineOptions, MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check, merge_diffusion
from iteris_core.diffusion.model import SAMPLING_STAGE
from iteris_core.progress import Stage
from iteris_core.report.records import MergeReport

from .bench import Bench
from .score import Probe, probes_of, score, score_by_region

RIVALS = (
    "sum",
    "np_lora",
    "tsv_m",
    "mix_of_show",
    "regmean_pp",
    "ssr",
    "ace",
)


@dataclass(frozen=True)
class Recipe:
    """A way to merge: settings that replace the product's defaults.

    Args:
        name: Name of the row in the tables.
        config: Fields of `MergeConfig` -> value.
        calibration: Fields of `Calibration` -> value.
        adapter: ``merge``, or one of the bounds: ``none`` for the base model, ``regions`` for each
            LoRA alone, and two at once, each in its part of the picture.
        job: Fields of `MergeSettings` -> value. With any, the merge is the product's whole job, the
            check included.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = "merge"
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        told: list[Any] = [dict(self.config), dict(self.calibration), self.adapter]
        told += [{"job": self.job}] if self.job else []
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


BOUNDS = (Recipe("base model", adapter="none"), Recipe("single LoRAs", adapter="regions"))
FULL = {"target": "full_output"}
DELTA = {"target": "delta"}
PICTURE_SCENES = {"scene_weight": 0.3, "scene_pictures": True}
ITERIS = (
    Recipe("IterIS"),
    Recipe("IterIS + scenes", {}, PICTURE_SCENES),
    Recipe("IterIS, no unit gain", {"unit_gain": 1.0}),
    Recipe("IterIS, preserve weight 1", {}, {"preserve_weight": 1.0}),
)


def main_recipes(own: Sequence[Recipe] = ITERIS) -> list[Recipe]:
    """Return the rows of the main table: bounds, rivals, and the ways of IterIS that are asked
    for.
    """
    return [*BOUNDS, *(Recipe(name, {"method": name}) for name in RIVALS), *own]


def ablation_recipes() -> dict[str, list[Recipe]]:
    """Return heading -> rows: one setting changed in IterIS with the full-output target, in some
    with scenes in pictures.
    """
    full = dict(FULL)
    both = {"scene_pictures": True}
    return {
        "iterations": [
            *(
                Recipe(
                    f"iterate, {n}", {**full, "engine": "iterate", "max_iter": n, "tolerance": 0.0}
                )
                for n in (1, 2, 5, 20)
            ),
            Recipe("sweep", full),
        ],
        "alpha": [
            Recipe(f"alpha {a:g}", {**full, "alpha": a}) for a in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        ],
        "balance": [
            Recipe(f"balance {b}", {**full, "balance": b}) for b in ("delta", "full", "uniform")
        ],
        "unit gain": [
            Recipe(f"unit gain {g:g}", {**full, "unit_gain": g}) for g in (1.0, 1.5, 2.0, 4.0)
        ],
        "target, equal rank": [
            Recipe("delta, rank 4", {**DELTA, "rank": 4}),
            Recipe("full output, rank 4", {**full, "rank": 4}),
            Recipe("delta, rank sum", DELTA),
            Recipe("full output, rank sum", full),
            Recipe("full output, nothing cut", {**full, "rank": "full"}),
        ],
        "trajectories": [
            Recipe(f"trajectories {n}", full, {"trajectories": n}) for n in (5, 10, 20, 50)
        ],
        "sampling runs": [
            Recipe(
                f"{runs} runs of {steps} steps, {kept} kept",
                full,
                {"trajectories": runs, "sampling_steps": steps, "timesteps": kept},
            )
            for runs, steps, kept in ((10, 12, 2), (20, 6, 1), (20, 12, 1), (20, 6, 2))
        ],
        "unconditional share": [
            Recipe(f"unconditional {s:g}", full, {"unconditional_share": s})
            for s in (0.0, 0.25, 0.5, 1.0)
        ],
        "preserve weight": [
            Recipe(f"preserve {w:g}", full, {"preserve_weight": w})
            for w in (0.0, 0.3, 1.0, 2.0, 3.0, 5.0)
        ],
        "composition share": [
            Recipe(f"composition {s:g}", full, {"composition_share": s})
            for s in (0.0, 0.25, 0.5, 0.75, 1.0)
        ],
        "scene weight, text": [
            Recipe(f"text scenes {w:g}", full, {"scene_weight": w}) for w in (0.1, 0.3, 1.0, 3.0)
        ],
        "scene weight, pictures": [
            Recipe(f"picture scenes {w:g}", full, {**both, "scene_weight": w})
            for w in (0.1, 0.3, 1.0, 3.0)
        ],
        "random words before picture scenes": [
            Recipe(f"prefix share {s:g}", full, {**PICTURE_SCENES, "scene_prefix_share": s})
            for s in (0.0, 0.5, 1.0)
        ],
        "tokens per row": [
            Recipe(f"tokens {n}", {**full, "tokens_per_row": n}) for n in (4, 16, None)
        ],
        "cut": [Recipe("sum, cut to the rank of one", {"method": "sum", "rank": 4})],
    }


def merged(
    bench: Bench, recipe: Recipe, triggers: Sequence[str], lora_set: str, seed: int = 0
) -> tuple[Adapter | None, float, dict[str, Any]]:
    """Return the LoRAs merged by a recipe, the CPU seconds of the merge, see `Clock`, and what the
    product's job tells: the factor of the strength.
    """
    if recipe.adapter == "none":
        return None, 0.0, {}
    config = {"samples_per_chunk": 48, **recipe.config}
    if "baseline" in config:
        config["baseline"] = BaselineOptions(**config["baseline"])
    calibration = bench.calibration(**{"held_out": 0, "seed": seed, **recipe.calibration})
    torch.manual_seed(0)
    loras = [bench.lora(trigger, lora_set) for trigger in triggers]
    clock = Clock()
    if recipe.job:
        settings = MergeSettings(MergeConfig(**config), **recipe.job)
        result = merge_and_check(Job.of(bench.model, loras, calibration, settings), clock)
    else:
        result = merge_diffusion(
            Job.of(bench.model, loras, calibration, MergeSettings(MergeConfig(**config))), clock
        )
    clock(Stage("the rest"), 1, 1)
    return result.adapter, clock.seconds, _told(result.report)


def _told(report: MergeReport) -> dict[str, Any]:
    factor = report.settings.get("strength_correction")
    return {} if factor is None else {"strength": factor}


@dataclass
class Clock:
    """CPU seconds of a merge without the teachers' sampling runs, which the methods of a group
    share.
    """

    last: float = field(default_factory=time.process_time)
    seconds: float = 0.0

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        now = time.process_time()
        self.seconds += 0.0 if stage.name == SAMPLING_STAGE else now - self.last
        self.last = now


@dataclass(frozen=True)
class Cell:
    """A merge of some LoRAs and its scores, kept in files."""

    bench: Bench
    recipe: Recipe
    triggers: tuple[str, ...]
    lora_set: str = "usual"
    seed: int = 0

    @property
    def path(self) -> Path:
        known = self.bench.world.all_triggers
        numbers = "+".join(str(known.index(trigger) + 1) for trigger in self.triggers)
        name = f"{self.lora_set}-{numbers}-{self.recipe.key}.json"
        return self.bench.folder / "cells" / name

    def read(self) -> dict[str, Any]:
        if self.path.exists():
            return json.loads(self.path.read_text())
        return {"recipe": self.recipe.name, "entries": {}}

    @property
    def is_measured(self) -> bool:
        return bool(self.read()["entries"])

    def adapter(self) -> tuple[Adapter | None, float, dict[str, Any]]:
        """Return what `merged` returns, from its file if it is there."""
        file = self.path.with_suffix(".pt")
        if not file.exists():
            adapter, seconds, told = merged(
                self.bench, self.recipe, self.triggers, self.lora_set, self.seed
            )
            deltas = adapter.deltas if adapter else {}
            factors = {path: (delta.up, delta.down) for path, delta in deltas.items()}
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"factors": factors, "seconds": seconds, "told": told}, file)
        state = torch.load(file, weights_only=True)
        deltas = {path: LowRankDelta(*factors) for path, factors in state["factors"].items()}
        adapter = Adapter(self.recipe.name, deltas) if deltas else None
        return adapter, state["seconds"], state.get("told", {})

    def entry(
        self, scale: float = 1.0, cfg: float | None = None, effort: int = 1
    ) -> dict[str, Any]:
        """Return the scores at a scale and a guidance, measured unless they are stored."""
        found = self.read()
        name = entry_name(self.bench, scale, cfg, effort)
        if name not in found["entries"]:
            began = time.perf_counter()
            probes = probes_of(self.bench.world, self.triggers, effort)
            if self.recipe.adapter == "regions":
                scores = self._single(probes, cfg)
            else:
                adapter, found["merge_seconds"], found["told"] = self.adapter()
                adapter = adapter.scaled(scale) if adapter else None
                scores = score(self.bench, adapter, probes, self.triggers, cfg)
            found["entries"][name] = scores | {"seconds": time.perf_counter() - began}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(found))
        return found["entries"][name]

    def _single(self, probes: Sequence[Probe], cfg: float | None) -> dict[str, Any]:
        """Score each LoRA alone on the questions about it, and two, each in its part of the
        picture, on those about both: what a method that merges nothing reaches.
        """
        hits: dict[str, dict[str, list[int]]] = {}
        leaks = [0, 0]
        loras = {
            trigger: self.bench.lora(trigger, self.lora_set).adapter for trigger in self.triggers
        }
        for trigger, adapter in loras.items():
            asked = [probe for probe in probes if probe.about in ((trigger,), ())]
            found = score(self.bench, adapter, asked, (trigger,), cfg)
            for kind, of_kind in found["hits"].items():
                for about, counts in of_kind.items():
                    hits.setdefault(kind, {})[about or trigger] = counts
            leaks = [a + b for a, b in zip(leaks, found["leaks"], strict=True)]
        for pair in itertools.combinations(self.triggers, 2):
            asked = [probe for probe in probes if probe.about == pair]
            for kind, of_kind in score_by_region(self.bench, loras, asked)["hits"].items():
                hits.setdefault(kind, {}).update(of_kind)
        return {"hits": hits, "leaks": leaks}


def entry_name(bench: Bench, scale: float, cfg: float | None, effort: int) -> str:
    cfg = bench.world.cfg if cfg is None else cfg
    return f"scale {scale:g}, cfg {cfg:g}, effort {effort}"
