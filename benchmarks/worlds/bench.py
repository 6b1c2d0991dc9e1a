"""A trained world for experiments; import it from any script:

    bench = load_bench("words")                            # the model as the product sees it, the judge
    triggers = bench.world.triggers                        # ("sks drop", "ohwx arrow", ...)
    loras = bench.loras(triggers[:2], "usual")             # LoadedLoras, as trained
    calibration = bench.calibration(scene_weight=0.3)
    result = merge_diffusion(Job.of(bench.model, loras, calibration))
    pictures = bench.sample(result.adapter, ["a sks drop and a ohwx arrow"] * 8, seeds=range(8))
    bench.recogniser.judge(pictures)                       # what lies where
    probes = probes_of(bench.world, triggers[:2])          # see score.py
    scores = score(bench, result.adapter, probes, triggers[:2])

The same seed gives the same noise to every method.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iteris_core.adapters import Adapter
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.loading import read_lora
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.diffusion.sampling import noise as noise_of

from ..common import in_weights
from . import WORLDS
from .drawing import to_pictures
from .loras import FILE, lora_folder
from .recogniser import Recogniser, load_recogniser
from .world import World

DEFAULT_CACHE = Path(os.environ.get("ITERIS_WORLD_CACHE", Path.home() / ".cache" / "iteris-world"))
ROWS = 48  # pictures sampled at once


class Half(NamedTuple):
    """What one LoRA draws of pictures: its caption and its part (1, height, width) of each."""

    adapter: Adapter
    captions: Sequence[str]
    masks: Tensor


@dataclass(frozen=True)
class Bench:
    """A trained world, ready for merges and for sampling."""

    world: World
    model: Any
    recogniser: Recogniser
    folder: Path

    def loras(self, triggers: Sequence[str], lora_set: str = "usual") -> list[LoadedLora]:
        """Return trained LoRAs with the prompts that a user would give."""
        return [self.lora(trigger, lora_set) for trigger in triggers]

    def lora(self, trigger: str, lora_set: str = "usual") -> LoadedLora:
        file = lora_folder(self.folder, self.world, trigger, lora_set) / FILE
        adapter = Adapter(trigger, read_lora(self.model, file).deltas)
        return LoadedLora.of(
            adapter, (f"a {trigger}", f"a photo of a {trigger}"), trigger=f"a {trigger}"
        )

    def calibration(self, **settings: Any) -> Calibration:
        """Return the product's calibration in this world's words, with some settings replaced."""
        words = {"resolution": 64, "cfg": self.world.cfg, **self.world.calibration}
        return Calibration(**{**words, **settings})

    @torch.no_grad()
    def sample(
        self, adapter: Adapter | None, captions: Sequence[str], seeds: Sequence[int]
    ) -> Tensor:
        """Return a picture per caption, (n, 3, 24, 24), by Euler's method from its seed's noise."""
        pictures = []
        with self.wearing(adapter):
            for start in range(0, len(captions), ROWS):
                part = slice(start, start + ROWS)
                texts = captions[part]
                prompts = self.encoded([*texts, *[""] * len(texts)])
                pictures.append(self.drawn(seeds[part], functools.partial(self._guided, prompts)))
        return torch.cat(pictures)

    @torch.no_grad()
    def sample_by_region(self, halves: Sequence[Half], seeds: Sequence[int]) -> Tensor:
        """Return pictures (n, 3, 24, 24) of which each LoRA draws its part."""
        contexts = []
        for half in halves:
            with self.wearing(half.adapter):
                contexts.append(self.encoded([*half.captions, *[""] * len(seeds)]))

        def clean(x: Tensor, sigma: Tensor) -> Tensor:
            whole = torch.zeros_like(x)
            for half, context in zip(halves, contexts, strict=True):
                with self.wearing(half.adapter):
                    whole += half.masks * self._guided(context, x, sigma)
            return whole

        return self.drawn(seeds, clean)

    @torch.no_grad()
    def encoded(self, texts: Sequence[str]) -> list[Any]:
        """Return texts as the model's text encoder writes them in the weights that it has now."""
        with self.model.text_encoder() as network:
            outputs = network.forward([self.model.tokenize(text)[0] for text in texts])
        return [
            self.model.encoded(text, [output]) for text, output in zip(texts, outputs, strict=True)
        ]

    @torch.no_grad()
    def clean(self, x: Tensor, sigma: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return the model's clean latents of noisy ones, (n, channels, height, width)."""
        with self.model.denoiser(self.world.steps) as network:
            return network.forward(
                [
                    DenoiserRow(*row)
                    for row in zip(x, sigma.expand(len(prompts)), prompts, strict=True)
                ]
            )

    @torch.no_grad()
    def drawn(self, seeds: Sequence[int], clean: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return pictures (n, 3, 24, 24) by Euler's method.

        Args:
            seeds: Seeds of the noise, one per picture.
            clean: Function (noisy latents, noise level) -> clean latents.
        """
        sigmas = self.model.probe_sigmas(self.world.steps)
        shape = self.model.latent_shape(64)
        x = self.model.start(torch.stack([noise_of(shape, seed) for seed in seeds]), sigmas[0])
        for sigma, following in itertools.pairwise(sigmas):
            x = x + (x - clean(x, sigma)) / sigma * (following - sigma)
        return to_pictures(x).clamp(-1, 1)

    def wearing(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """Let the model wear an adapter in its weights."""
        deltas = adapter.deltas if adapter else {}
        return in_weights(self.model.modules, {path: d.dense() for path, d in deltas.items()})

    def _guided(self, prompts: Sequence[Any], x: Tensor, sigma: Tensor) -> Tensor:
        """Return clean latents under guidance; the second half of the prompts is unconditional."""
        conditional, unconditional = self.clean(x.repeat(2, 1, 1, 1), sigma, prompts).chunk(2)
        return unconditional + self.world.cfg * (conditional - unconditional)


def load_bench(world: World | str, folder: Path | None = None) -> Bench:
    """Return a world that has been trained into a folder.

    Args:
        world: The world, or its name.
        folder: The folder; None: the world's in the cache.
    """
    world = WORLDS[world] if isinstance(world, str) else world
    folder = folder or DEFAULT_CACHE / world.name
    model = world.model.load(folder / "base").product()
    return Bench(world, model, load_recogniser(world, folder / "recogniser.pt"), folder)
