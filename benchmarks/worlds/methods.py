"""The merges of a world and their cached results: one cell per merge."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iteris_core.adapters import Adapter, LowRankDelta
from iteris_core.config import BaselineOptions, MergeConfig
from iteris_core.diffusion.model import SAMPLING_STAGE
from iteris_core.diffusion.stable_diffusion import merge_stable_diffusion
from iteris_core.progress import Stage

from .bench import Bench
from .score import Probe, probes_of, score

RIVALS = ("sum", "average", "np_lora", "tsv_m", "mix_of_show", "regmean_pp", "ssr")


@dataclass(frozen=True)
class Recipe:
    """A way to merge: settings that replace the product's defaults.

    Args:
        name: Name of the row in the tables.
        config: Fields of `MergeConfig` -> value.
        calibration: Fields of `Calibration` -> value.
        adapter: ``merge``, or one of the two bounds: ``none`` for the base model, ``single`` for
            each LoRA alone.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = "merge"

    @property
    def key(self) -> str:
        told = json.dumps(
            [dict(self.config), dict(self.calibration), self.adapter], sort_keys=True, default=str
        )
        return hashlib.sha256(told.encode()).hexdigest()[:12]


BOUNDS = (Recipe("base model", adapter="none"), Recipe("single LoRAs", adapter="single"))
FULL = {"target": "full_output"}
ITERIS = (
    Recipe("IterIS"),
    Recipe("IterIS, balance full, unit gain 2", {"balance": "full", "unit_gain": 2.0}),
    Recipe("IterIS, unit gain 2", {"unit_gain": 2.0}),
    Recipe("IterIS + scenes", FULL, {"scene_weight": 1.0}),
    Recipe("IterIS + scenes, unit gain 2", {**FULL, "unit_gain": 2.0}, {"scene_weight": 0.3}),
)


def main_recipes(own: Sequence[Recipe] = ITERIS) -> list[Recipe]:
    """Return the rows of the main table: bounds, rivals, and the ways of IterIS that are asked
    for.
    """
    return [*BOUNDS, *(Recipe(name, {"method": name}) for name in RIVALS), *own]


def merged(
    bench: Bench, recipe: Recipe, triggers: Sequence[str], lora_set: str, seed: int = 0
) -> tuple[Adapter | None, float]:
    """Return the LoRAs merged by a recipe, and the CPU seconds of the merge, see `Clock`."""
    if recipe.adapter == "none":
        return None, 0.0
    config = {"samples_per_chunk": 48, **recipe.config}
    if "baseline" in config:
        config["baseline"] = BaselineOptions(**config["baseline"])
    calibration = bench.calibration(**{"held_out": 0, "seed": seed, **recipe.calibration})
    torch.manual_seed(0)
    loras = bench.loras(triggers, lora_set)
    clock = Clock()
    result = merge_stable_diffusion(bench.model, loras, calibration, MergeConfig(**config), clock)
    clock(Stage("the rest"), 1, 1)
    return result.adapter, clock.seconds


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

    def adapter(self) -> tuple[Adapter | None, float]:
        """Return the merged adapter, from its file if it is there."""
        file = self.path.with_suffix(".pt")
        if not file.exists():
            adapter, seconds = merged(self.bench, self.recipe, self.triggers, self.lora_set)
            deltas = adapter.deltas if adapter else {}
            factors = {path: (delta.up, delta.down) for path, delta in deltas.items()}
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"factors": factors, "seconds": seconds}, file)
        state = torch.load(file, weights_only=True)
        deltas = {path: LowRankDelta(*factors) for path, factors in state["factors"].items()}
        return (Adapter(self.recipe.name, deltas) if deltas else None), state["seconds"]

    def entry(
        self, scale: float = 1.0, cfg: float | None = None, effort: int = 1
    ) -> dict[str, Any]:
        """Return the scores at a scale and a guidance, measured unless they are stored."""
        found = self.read()
        name = entry_name(self.bench, scale, cfg, effort)
        if name not in found["entries"]:
            began = time.perf_counter()
            probes = probes_of(self.bench.world, self.triggers, effort)
            if self.recipe.adapter == "single":
                scores = self._single(probes, cfg)
            else:
                adapter, found["merge_seconds"] = self.adapter()
                adapter = adapter.scaled(scale) if adapter else None
                scores = score(self.bench, adapter, probes, self.triggers, cfg)
            found["entries"][name] = scores | {"seconds": time.perf_counter() - began}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(found))
        return found["entries"][name]

    def _single(self, probes: Sequence[Probe], cfg: float | None) -> dict[str, Any]:
        """Score each LoRA alone on the questions about it; questions about two LoRAs have no
        answer.
        """
        hits: dict[str, dict[str, list[int]]] = {}
        leaks = [0, 0]
        for trigger in self.triggers:
            asked = [probe for probe in probes if probe.about in ((trigger,), ())]
            adapter = self.bench.lora(trigger, self.lora_set).adapter
            found = score(self.bench, adapter, asked, (trigger,), cfg)
            for kind, of_kind in found["hits"].items():
                for about, counts in of_kind.items():
                    hits.setdefault(kind, {})[about or trigger] = counts
            leaks = [a + b for a, b in zip(leaks, found["leaks"], strict=True)]
        return {"hits": hits, "leaks": leaks}


def entry_name(bench: Bench, scale: float, cfg: float | None, effort: int) -> str:
    cfg = bench.world.cfg if cfg is None else cfg
    return f"scale {scale:g}, cfg {cfg:g}, effort {effort}"
