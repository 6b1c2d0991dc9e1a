"""The LoRAs of a world, DreamBooth-style: a handful of pictures, a trigger."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import Tensor

from .drawing import Scene, to_latents
from .model import WorldModel
from .settings import LoraKind
from .training import optimise, rate_at
from .world import World

FILE = "pytorch_lora_weights.safetensors"


def kind_of(world: World, trigger: str, lora_set: str) -> LoraKind:
    """Return how a LoRA of a set is trained."""
    kinds = world.lora_sets[lora_set]
    return kinds[world.triggers.index(trigger) % len(kinds)]


def lora_folder(folder: Path, world: World, trigger: str, lora_set: str) -> Path:
    return folder / f"loras-{lora_set}" / f"{world.triggers.index(trigger) + 1}"


def pictures_of(
    world: World, trigger: str, kind: LoraKind, seed: int
) -> tuple[list[tuple[Scene, str]], list[tuple[Scene, str]]]:
    """Return training pictures of a trigger, alone and in company."""
    chance = random.Random(seed * 1009 + world.triggers.index(trigger))
    concept = world.concept_of(trigger)
    alone = [world.lora_scene(chance, i, concept, trigger, None) for i in range(kind.pictures)]
    company = [
        world.lora_scene(chance, i, concept, trigger, chance.choice(world.base_labels))
        for i in range(kind.pictures_in_company)
    ]
    return alone, company


def train_lora(
    world: World, base: WorldModel, trigger: str, kind: LoraKind, seed: int, folder: Path
) -> float:
    """Train one LoRA with PEFT, save it as diffusers does, and return its last losses."""
    from peft import LoraConfig, inject_adapter_in_model

    number = seed * 1009 + world.triggers.index(trigger)
    torch.manual_seed(number)
    chance = torch.Generator().manual_seed(number)
    model = copy.deepcopy(base)
    parts = model.parts
    parts.requires_grad_(False)
    for name, layers in model.lora_layers(kind.layers, text=kind.text).items():
        config = LoraConfig(r=kind.rank, lora_alpha=kind.rank, target_modules=layers)
        inject_adapter_in_model(config, parts[name])
    trained = [p for p in parts.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=kind.learning_rate, weight_decay=0.0)
    alone, company = pictures_of(world, trigger, kind, seed)
    prior = [world.scene(random.Random(seed * 7919 + i), world.base_labels) for i in range(64)]
    sizes = (kind.alone, kind.company, kind.prior)
    groups = [
        (_drawn(world, pairs, model), n)
        for pairs, n in zip((alone, company, prior), sizes, strict=True)
        if n
    ]
    empty = model.tokens([""])
    losses = []
    for step in range(kind.steps):
        chosen = [(data, torch.randint(len(data[0]), (n,), generator=chance)) for data, n in groups]
        clean, tokens = (torch.cat([data[i][rows] for data, rows in chosen]) for i in (0, 1))
        dropped = torch.rand(len(clean), generator=chance) < kind.dropped_captions
        # only pictures of the base model's world may appear unasked
        dropped[: kind.alone + kind.company] = False
        loss = model.loss(clean, torch.where(dropped[:, None], empty, tokens), chance)
        optimise(loss, optimiser, kind.learning_rate * rate_at(step, kind.steps, warmup=20))
        losses.append(loss.item())
    model.save_loras(folder, FILE)
    return sum(losses[-30:]) / len(losses[-30:])


def _drawn(
    world: World, pairs: list[tuple[Scene, str]], model: WorldModel
) -> tuple[Tensor, Tensor]:
    pictures = torch.stack([world.drawing.draw(scene) for scene, _ in pairs])
    return to_latents(pictures), model.tokens([caption for _, caption in pairs])
