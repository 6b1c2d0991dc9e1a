"""What the base model and the LoRAs of a world are trained with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .drawing import Label, Scene

MakeScene = Callable[[random.Random, list[Label]], tuple[Scene, str]]
Layers = Literal["attention", "feed_forward", "convolution"]


@dataclass(frozen=True)
class Phase:
    """A part of the training: its scenes, and how fast it learns."""

    steps: int
    learning_rate: float
    scene: MakeScene


@dataclass(frozen=True)
class BaseSettings:
    """How a base model is trained."""

    phases: tuple[Phase, ...]
    batch: int = 64
    scenes: int = 30_000
    dropped_captions: float = 0.1

    def shortened(self, share: float, batch: int | None) -> BaseSettings:
        """Return the same with a share of each phase's steps and scenes, in other batches."""
        phases = tuple(replace(p, steps=max(1, round(share * p.steps))) for p in self.phases)
        scenes = max(1, round(share * self.scenes))
        return replace(self, phases=phases, scenes=scenes, batch=batch or self.batch)

    def further(self, steps: int) -> BaseSettings:
        """Return the same with so many more steps on the scenes of the last phase."""
        if not steps:
            return self
        return replace(self, phases=(*self.phases, Phase(steps, 8e-4, self.phases[-1].scene)))


@dataclass(frozen=True)
class LoraKind:
    """How a LoRA is trained; a batch is of it `alone`, in `company`, and of the base's `prior`."""

    steps: int = 200
    rank: int = 4
    layers: tuple[Layers, ...] = ("attention",)
    text: bool = True
    learning_rate: float = 2e-3
    pictures: int = 8
    pictures_in_company: int = 24
    alone: int = 4
    company: int = 6
    prior: int = 4
    dropped_captions: float = 0.1


USUAL = LoraKind()
ALONE = LoraKind(steps=300, alone=6, company=0)
MIXED = (
    LoraKind(rank=16, layers=("attention", "feed_forward")),
    LoraKind(text=False, steps=250),
    LoraKind(
        steps=250,
        rank=16,
        layers=("attention", "feed_forward", "convolution"),
        text=False,
        alone=5,
        company=5,
        prior=0,
    ),
    ALONE,
    LoraKind(steps=300, rank=16, alone=5, company=5, prior=0),
    LoraKind(layers=("attention", "feed_forward", "convolution")),
)
SETS = {"usual": (USUAL,), "mixed": MIXED, "alone": (ALONE,)}
