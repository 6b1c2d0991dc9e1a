"""A trained world for experiments; import it from any script:

    bench = load_bench("clip")                             # base model, judge, the product's view
    triggers = bench.world.triggers                        # ("sks drop", "ohwx arrow", ...)
    loras = bench.loras(triggers[:2], "usual")             # LoadedLoras, as trained
    calibration = bench.calibration(scene_weight=0.3)
    result = merge_diffusion(bench.model, loras, calibration, MergeConfig(...))
    pictures = bench.sample(result.adapter, ["a sks drop and a ohwx arrow"] * 8, seeds=range(8))
    bench.recogniser.judge(pictures)                       # what lies where
    probes = probes_of(bench.world, triggers[:2])          # see score.py
    scores = score(bench, result.adapter, probes, triggers[:2])

The same seed gives the same noise to every method.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iteris_core.adapters import Adapter
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_files import read_lora
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.diffusion.sampling import noise as noise_of

from .drawing import to_pictures
from .loras import FILE, lora_folder
from .recogniser import Recogniser, load_recogniser
from .world import World

DEFAULT_CACHE = Path(os.environ.get("ITERIS_WORLD_CACHE", Path.home() / ".cache" / "iteris-world"))
ROWS = 48  # pictures sampled at once


@dataclass(frozen=True)
class Bench:
    """A trained world, ready for merges and for sampling."""

    world: World
    base: Any
    model: Any
    recogniser: Recogniser
    folder: Path

    def loras(self, triggers: Sequence[str], lora_set: str = "usual") -> list[LoadedLora]:
        """Return trained LoRAs with the prompts that a user would give."""
        return [self.lora(trigger, lora_set) for trigger in triggers]

    def lora(self, trigger: str, lora_set: str = "usual") -> LoadedLora:
        file = lora_folder(self.folder, self.world, trigger, lora_set) / FILE
        adapter = Adapter(trigger, read_lora(self.model, file).deltas)
        if trigger in self.world.style_triggers:
            prompts = tuple(prompt.format(trigger=trigger) for prompt in self.world.style_prompts)
            return LoadedLora.of(adapter, prompts, trigger=f"in {trigger} style", kind="style")
        return LoadedLora.of(
            adapter, (f"a {trigger}", f"a photo of a {trigger}"), trigger=f"a {trigger}"
        )

    def calibration(self, **settings: Any) -> Calibration:
        """Return the product's calibration in this world's words; settings replace the product's
        defaults.
        """
        words = {"resolution": 64, "cfg": self.world.cfg, **self.world.calibration}
        return Calibration(**{**words, **settings})

    @torch.no_grad()
    def sample(
        self,
        adapter: Adapter | None,
        captions: Sequence[str],
        seeds: Sequence[int],
        cfg: float | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Return one picture per caption, (n, 3, 24, 24), by Euler's method from the noise of its
        seed.
        """
        cfg = self.world.cfg if cfg is None else cfg
        sigmas = self.world.sampling_sigmas(self.model, steps or self.world.steps)
        shape = self.model.latent_shape(64)
        pictures = []
        with wearing(self.model, adapter):
            for start in range(0, len(captions), ROWS):
                texts = list(captions[start : start + ROWS])
                x = torch.stack([noise_of(shape, seed) for seed in seeds[start : start + ROWS]])
                x = self.model.start(x, sigmas[0])
                rows = [*texts, *[""] * (len(texts) if cfg != 1 else 0)]
                with self.model.text_encoder() as network:
                    outputs = network.forward([self.model.tokenize(text)[0] for text in rows])
                prompts = [
                    self.model.encoded(text, [output])
                    for text, output in zip(rows, outputs, strict=True)
                ]
                with self.model.denoiser() as network:
                    for sigma, following in itertools.pairwise(sigmas):
                        latents = x.repeat(len(rows) // len(texts), 1, 1, 1)
                        clean = network.forward(
                            [
                                DenoiserRow(*row)
                                for row in zip(
                                    latents, sigma.expand(len(rows)), prompts, strict=True
                                )
                            ]
                        )
                        if cfg != 1:
                            conditional, unconditional = clean.chunk(2)
                            clean = unconditional + cfg * (conditional - unconditional)
                        x = x + (x - clean) / sigma * (following - sigma)
                pictures.append(to_pictures(x).clamp(-1, 1))
        return torch.cat(pictures)


@contextmanager
def wearing(model: Any, adapter: Adapter | None) -> Iterator[None]:
    """Let the model wear an adapter in its weights."""
    deltas = adapter.deltas if adapter else {}
    before = {path: model.modules[path].weight.data for path in deltas}
    try:
        for path, weight in before.items():
            model.modules[path].weight.data = weight + deltas[path].dense().float().view_as(weight)
        yield
    finally:
        for path, weight in before.items():
            model.modules[path].weight.data = weight


def load_bench(world: World | str, folder: Path | None = None) -> Bench:
    """Return a world that has been trained into a folder.

    Args:
        world: The world, or its name.
        folder: The folder; None: the world's in the cache.
    """
    from . import find_world

    world = find_world(world) if isinstance(world, str) else world
    folder = folder or DEFAULT_CACHE / world.name
    base = world.load_model(folder / "base")
    recogniser = load_recogniser(world, folder / "recogniser.pt")
    return Bench(world, base, world.product(base, {}), recogniser, folder)
