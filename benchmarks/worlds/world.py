"""What makes up a world."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .drawing import Drawing, Label, Scene
from .model import WorldModel
from .settings import BaseSettings, LoraKind, MakeScene

# merges of six concepts, by number
SIX_GROUPS = {
    "pairs": ((0, 1), (2, 3), (4, 5), (0, 3), (2, 5), (1, 4)),
    "triples": ((0, 2, 4), (1, 3, 5), (0, 1, 5), (2, 3, 4)),
    "all six": ((0, 1, 2, 3, 4, 5),),
}


@dataclass(frozen=True)
class Forms:
    """Captions that probes ask with, with ``{a}`` and ``{b}`` for names.

    Args:
        alone: One concept.
        company: A concept next to a thing that the base model knows, with this thing.
        seen: Two concepts, in forms that calibrations read.
        unseen: Two concepts, in forms that no calibration caption contains.
        base: What the base model knows, with its things.
    """

    alone: tuple[str, ...]
    company: tuple[tuple[str, Label], ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    base: tuple[tuple[str, tuple[Label, ...]], ...]


@dataclass(frozen=True)
class World:
    """The description of a world.

    Args:
        name: Its name on the command line and in the cache.
        drawing: What is drawn.
        concepts: Things that the base model never sees, one per trigger.
        triggers: What LoRAs call them, without an article.
        scene: Function (chance, things to choose from) -> a scene of the base model's world and its
            caption.
        lora_scene: Function (chance, number of the picture, concept, trigger, base thing next to it
            or None) -> a training picture of a LoRA and its caption.
        model: Class of the base model.
        make_tokenizer: Function that returns its tokenizer.
        training: How the base model is trained.
        forms: Captions of the probes.
        calibration: Fields of the product's `Calibration` in this world's words.
        lora_sets: Name -> kinds of LoRAs, which triggers take in turn.
        groups: Title -> merges, as numbers of triggers.
        rare_words: Words that no training caption has.
        sizes: Sizes of the model that are not its defaults.
        steps: Steps of the probes' sampling.
        cfg: Guidance of the probes' sampling.
    """

    name: str
    drawing: Drawing
    concepts: tuple[Label, ...]
    triggers: tuple[str, ...]
    scene: MakeScene
    lora_scene: Callable[[random.Random, int, Label, str, Label | None], tuple[Scene, str]]
    model: type[WorldModel]
    make_tokenizer: Callable[[], Any]
    training: BaseSettings
    forms: Forms
    calibration: Mapping[str, Any]
    lora_sets: Mapping[str, tuple[LoraKind, ...]]
    groups: Mapping[str, tuple[tuple[int, ...], ...]]
    rare_words: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 6
    cfg: float = 3.0

    @cached_property
    def base_labels(self) -> list[Label]:
        return labels_of(self.drawing, self.concepts)

    def new_model(self) -> WorldModel:
        """Return the untrained model."""
        return self.model.new(self.make_tokenizer(), **self.sizes)

    def concept_of(self, trigger: str) -> Label:
        return self.concepts[self.triggers.index(trigger)]


def labels_of(drawing: Drawing, concepts: Collection[Label]) -> list[Label]:
    """Return what the base model learns: every surface on every shape, without the concepts."""
    return [
        (surface, shape)
        for surface in drawing.surfaces
        for shape in drawing.shapes
        if (surface, shape) not in concepts
    ]
