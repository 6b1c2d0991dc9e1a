"""The merges of a world and their cached results: one cell per merge."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iteris_core.adapters import Adapter, LowRankDelta
from iteris_core.config import MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.memory import Room
from iteris_core.merging import MergeResult

from .bench import Bench
from .score import Probe, probes_of, score, score_by_region

RIVALS = ("sum", "np_lora", "mix_of_show", "regmean_pp")


@dataclass(frozen=True)
class Recipe:
    """A way to merge: settings that replace the product's defaults.

    Args:
        name: Name of the row in the tables.
        config: Fields of `MergeConfig` -> value.
        calibration: Fields of `Calibration` -> value.
        adapter: ``merge``, or one of the bounds: ``none`` for the base model, ``regions`` for each
            LoRA alone, and two at once, each in its part of the picture.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = "merge"

    @property
    def key(self) -> str:
        told = [dict(self.config), dict(self.calibration), self.adapter]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


BOUNDS = (Recipe("base model", adapter="none"), Recipe("single LoRAs", adapter="regions"))
MAIN = (*(Recipe(name, {"method": name}) for name in RIVALS), *BOUNDS, Recipe("IterIS"))


def merged(
    bench: Bench, recipe: Recipe, triggers: Sequence[str], lora_set: str, seed: int
) -> MergeResult:
    """Merge LoRAs by a recipe."""
    calibration = bench.calibration(**{"seed": seed, **recipe.calibration})
    config = MergeConfig(**recipe.config)
    torch.manual_seed(0)
    loras = bench.loras(triggers, lora_set)
    settings = MergeSettings(config)
    return merge_diffusion(Job.of(bench.model, loras, calibration, settings, Room(48)))


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
        known = self.bench.world.triggers
        numbers = "+".join(str(known.index(trigger) + 1) for trigger in self.triggers)
        name = f"{self.lora_set}-{numbers}-{self.recipe.key}.scores.json"
        return self.bench.folder / "cells" / name

    def adapter(self) -> Adapter | None:
        """Return the merge, None for the base model; from its file if it is there."""
        if self.recipe.adapter == "none":
            return None
        file = self.path.with_suffix(".pt")
        if not file.exists():
            result = merged(self.bench, self.recipe, self.triggers, self.lora_set, self.seed)
            deltas = result.adapter.deltas
            factors = {path: (delta.up, delta.down) for path, delta in deltas.items()}
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"factors": factors}, file)
        state = torch.load(file, weights_only=True)
        deltas = {path: LowRankDelta(*factors) for path, factors in state["factors"].items()}
        return Adapter(self.recipe.name, deltas)

    def entry(self) -> dict[str, Any]:
        """Return the scores, measured unless they are stored."""
        if not self.path.exists():
            probes = probes_of(self.bench.world, self.triggers)
            if self.recipe.adapter == "regions":
                found = self._single(probes)
            else:
                found = score(self.bench, self.adapter(), probes, self.triggers)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"recipe": self.recipe.name, **found}))
        entry: dict[str, Any] = json.loads(self.path.read_text())
        return entry

    def _single(self, probes: Sequence[Probe]) -> dict[str, Any]:
        """Score each LoRA alone, and two by regions: what a method that merges nothing reaches."""
        hits: dict[str, dict[str, list[int]]] = {}
        leaks = [0, 0]
        loras = {
            trigger: self.bench.lora(trigger, self.lora_set).adapter for trigger in self.triggers
        }
        for trigger, adapter in loras.items():
            asked = [probe for probe in probes if probe.about in ((trigger,), ())]
            found = score(self.bench, adapter, asked, (trigger,))
            for kind, of_kind in found["hits"].items():
                for about, counts in of_kind.items():
                    hits.setdefault(kind, {})[about or trigger] = counts
            leaks = [a + b for a, b in zip(leaks, found["leaks"], strict=True)]
        for pair in itertools.combinations(self.triggers, 2):
            asked = [probe for probe in probes if probe.about == pair]
            for kind, of_kind in score_by_region(self.bench, loras, asked)["hits"].items():
                hits.setdefault(kind, {}).update(of_kind)
        return {"hits": hits, "leaks": leaks}
