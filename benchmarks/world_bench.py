"""The common part of experiments in the trained world; import it from any script:

    bench = load_bench(cache)                                   # base model, recogniser, and the product's view of the model
    loras = bench.loras(("<v1>", "<v2>"), 0)                # LoadedLoras, as trained
    result = merge_stable_diffusion(bench.model, loras, bench.calibration(scene_weight=0.1), MergeConfig(...))
    pictures = bench.sample(result.adapter, ["a <v1> and a <v2>"] * 8, seeds=range(8), cfg=3.0)
    bench.recogniser.judge(pictures)                            # what lies where
    scores = score(bench, result.adapter, probes_of(("<v1>", "<v2>")), ("<v1>", "<v2>"))   # see world_score.py

The same seed gives the same noise to every method.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_base import World, load_base
from world_loras import FILE, LoraSet
from world_recogniser import Recogniser, load_recogniser
from world_scenes import STYLE_TRIGGERS, base_labels, caption_of, to_pictures

from iteris_core.adapters import Adapter
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_files import read_lora
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.pipeline import DiffusersStableDiffusion
from iteris_core.diffusion.sampling import noise as noise_of
from iteris_core.network import Network

DEFAULT_CACHE = Path(os.environ.get("ITERIS_WORLD_CACHE", Path.home() / ".cache" / "iteris-world"))
STEPS = 6  # of a sampling run; 16 look the same
ROWS = 64  # pictures sampled at once

# What the calibration of a merge may know of this world: ordinary things and captions, nothing of
# concepts and scenes in tests.
COMPANIONS = (
    "a red square",
    "a green circle",
    "a blue triangle",
    "a yellow heart",
    "a striped moon",
    "a spotted diamond",
    "a purple cross",
    "a halved circle",
    "a circle",
    "a square",
    "a heart",
    "a star",
)
COMPOSITIONS = (
    "{prompt} and {thing}",
    "{thing} and {prompt}",
    "{prompt} next to {thing}",
    "{thing} with {prompt}",
)
SCENE_FORMS = (
    *(
        f"{prefix}{{first}} {between} {{second}}"
        for prefix in ("", "a photo of ")
        for between in ("and", "next to", "with")
    ),
    *("{first} {style}", "a photo of {first} {style}", "{first} and {second} {style}"),
)
SCENE_PREFIXES = ("plain", "far", "from", "on", "in", "left", "right", "with")  # no words of tests
STYLE_PROMPTS = (
    "a red circle in {trigger} style",
    "a striped square in {trigger} style",
    "a blue moon and a green heart in {trigger} style",
    "a banded star next to a yellow cross in {trigger} style",
)


def preserve_captions(count: int = 24) -> tuple[str, ...]:
    """Return captions of what the base model knows, half of them with two things."""
    chance = random.Random(2024)
    labels = base_labels()
    captions = []
    for i in range(count):
        names = [" ".join(chance.choice(labels)) for _ in range(1 + i % 2)]
        between = ("and", "next to", "above", "with", "near")[i // 2 % 5]
        captions.append(caption_of(names, between, ("", "a photo of ", "a picture of ")[i % 3]))
    return tuple(captions)


class RememberingModel(DiffusersStableDiffusion):
    """Keeps the teachers' sampling runs, which do not depend on how is merged."""

    @cached_property
    def runs(self) -> dict[str, Any]:
        return {}

    @contextmanager
    def unet(self) -> Iterator[Network]:
        with super().unet() as network:
            yield replace(network, memory=self.runs)


@dataclass(frozen=True)
class Bench:
    """The trained world, ready for merges and for sampling."""

    world: World
    model: DiffusersStableDiffusion
    recogniser: Recogniser
    folder: Path

    def loras(self, triggers: Sequence[str], lora_set: LoraSet = 0) -> list[LoadedLora]:
        """Return trained LoRAs with the prompts that a user would give."""
        return [self.lora(trigger, lora_set) for trigger in triggers]

    def lora(self, trigger: str, lora_set: LoraSet = 0) -> LoadedLora:
        adapter = read_lora(self.model, lora_folder(self.folder, trigger, lora_set) / FILE)
        adapter = Adapter(trigger, adapter.deltas)
        if trigger in STYLE_TRIGGERS:
            prompts = tuple(prompt.format(trigger=trigger) for prompt in STYLE_PROMPTS)
            return LoadedLora.of(adapter, prompts, trigger=f"in {trigger} style", kind="style")
        return LoadedLora.of(
            adapter, (f"a {trigger}", f"a photo of a {trigger}"), trigger=f"a {trigger}"
        )

    def calibration(self, **settings: Any) -> Calibration:
        """Return the product's calibration in this world's words; settings replace the product's
        defaults.
        """
        words = {
            "resolution": 64,
            "cfg": 3.0,
            "companions": COMPANIONS,
            "compositions": COMPOSITIONS,
            "preserve_captions": preserve_captions(),
            "scene_forms": SCENE_FORMS,
            "scene_prefixes": SCENE_PREFIXES,
            "ordinary_styles": ("in plain style",),
            "scene_pictures": False,
        }
        return Calibration(**{**words, **settings})

    @torch.no_grad()
    def sample(
        self,
        adapter: Adapter | None,
        captions: Sequence[str],
        seeds: Sequence[int],
        cfg: float = 3.0,
        steps: int = STEPS,
    ) -> Tensor:
        """Return one picture per caption, (n, 3, 24, 24), by DDIM from the noise of its seed."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(
            self.world.scheduler.config, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(steps)
        pictures = []
        with wearing(self.model, adapter):
            for start in range(0, len(captions), ROWS):
                texts = list(captions[start : start + ROWS])
                x = torch.stack(
                    [noise_of((27, 8, 8), seed) for seed in seeds[start : start + ROWS]]
                )
                rows = [*texts, *[""] * (len(texts) if cfg != 1 else 0)]
                context = self.world.text_encoder(self.world.tokens(rows)).last_hidden_state
                for t in scheduler.timesteps:
                    found = self.world.unet(
                        x.repeat(len(rows) // len(texts), 1, 1, 1), t, context
                    ).sample
                    if cfg != 1:
                        conditional, unconditional = found.chunk(2)
                        found = unconditional + cfg * (conditional - unconditional)
                    x = scheduler.step(found, t, x).prev_sample
                pictures.append(to_pictures(x).clamp(-1, 1))
        return torch.cat(pictures)


@contextmanager
def wearing(model: DiffusersStableDiffusion, adapter: Adapter | None) -> Iterator[None]:
    """Let the model wear an adapter in its weights."""
    before = {path: model.modules[path].weight.data for path in (adapter.deltas if adapter else ())}
    try:
        for path, weight in before.items():
            model.modules[path].weight.data = weight + adapter.deltas[path].dense().float().view_as(
                weight
            )
        yield
    finally:
        for path, weight in before.items():
            model.modules[path].weight.data = weight


def lora_folder(folder: Path, trigger: str, lora_set: LoraSet) -> Path:
    return folder / f"loras-{lora_set}" / trigger.strip("<>")


def load_bench(folder: Path = DEFAULT_CACHE / "full") -> Bench:
    """Return the world that `world.py` has trained into a folder."""
    world = load_base(folder / "base")
    model = RememberingModel(world.unet, world.text_encoder, world.tokenizer, world.scheduler)
    return Bench(world, model, load_recogniser(folder / "recogniser.pt"), folder)
