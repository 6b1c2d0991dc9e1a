"""The LoRAs of benchmarks/world.py, DreamBooth-style: UNet and text encoder, a handful of pictures,
a trigger word.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from world_base import World, denoising_loss, rate_at
from world_scenes import (
    BACKGROUNDS,
    BETWEEN,
    CONCEPT_TRIGGERS,
    CONCEPTS,
    PREFIXES,
    STYLE_TRIGGERS,
    STYLES,
    TRIGGERS,
    Scene,
    base_labels,
    caption_of,
    draw,
    in_style,
    placed,
    random_scene,
    to_latents,
)

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
STYLE_UNET_LAYERS = [
    *UNET_LAYERS,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
]  # all that kohya's scripts train
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]
FILE = "pytorch_lora_weights.safetensors"


# The seed of usual LoRAs, or those that were trained for too long, or those that saw their concept
# alone.
LoraSet = int | Literal["strong", "alone"]


@dataclass(frozen=True)
class LoraSettings:
    """How a LoRA is trained; a batch is pictures of it `alone`, in `company` of a base thing, and
    `prior` ones.
    """

    steps: int = 200
    rank: int = 4
    learning_rate: float = 2e-3
    pictures: int = 8
    pictures_in_company: int = 24
    alone: int = 4
    company: int = 6
    prior: int = 4
    dropped_captions: float = 0.1


USUAL = LoraSettings()
STYLE = LoraSettings(steps=300, prior=6)
STRONG = LoraSettings(
    steps=300, alone=5, company=5, prior=0
)  # nothing keeps them from changing the rest of the model
ALONE = LoraSettings(steps=300, alone=6, company=0)


def settings_of(trigger: str, lora_set: LoraSet) -> LoraSettings:
    """Return the training settings of a LoRA of a set."""
    if trigger in STYLE_TRIGGERS:
        return STYLE
    return {"strong": STRONG, "alone": ALONE}.get(lora_set, USUAL)


def seed_of(lora_set: LoraSet) -> int:
    """Return the seed of a set's training and calibration."""
    return lora_set if isinstance(lora_set, int) else 0


def pictures_of(
    trigger: str, settings: LoraSettings, seed: int
) -> tuple[list[tuple[Scene, str]], list[tuple[Scene, str]]]:
    """Return the training pictures of a trigger word with their captions: alone, and in company of
    base things.

    A style's are base things rendered in it, one and two of them.
    """
    chance = random.Random(seed * 1009 + TRIGGERS.index(trigger))
    labels = base_labels()
    alone = []
    company = []
    if trigger in STYLE_TRIGGERS:
        style = STYLES[STYLE_TRIGGERS.index(trigger)]
        for count, share in ((settings.pictures, 0.0), (settings.pictures_in_company, 1.0)):
            for _ in range(count):
                scene, caption = random_scene(chance, labels, pair_share=share)
                caption = f"{caption.removesuffix(' in plain style')} in {trigger} style"
                (company if share else alone).append((in_style(scene, style), caption))
        return alone, company
    concept = CONCEPTS[CONCEPT_TRIGGERS.index(trigger)]
    for i in range(settings.pictures):
        scene = Scene(placed([concept], "left", chance), "stone")
        alone.append((scene, caption_of([trigger], prefix=PREFIXES[i % 3])))
    forms = list(BETWEEN)
    for i in range(settings.pictures_in_company):
        between = "and" if i % 3 == 0 else forms[i % len(forms)]
        other = chance.choice(labels)
        pairs = [(concept, trigger), (other, " ".join(other))]
        chance.shuffle(pairs)
        told = chance.random() < 0.2
        background = chance.choice(list(BACKGROUNDS)) if told else "stone"
        scene = Scene(placed([label for label, _ in pairs], BETWEEN[between], chance), background)
        prefix = chance.choice(PREFIXES)
        company.append(
            (
                scene,
                caption_of(
                    [name for _, name in pairs], between, prefix, background if told else None
                ),
            )
        )
    return alone, company


def _drawn(pairs: list[tuple[Scene, str]], world: World) -> tuple[Tensor, Tensor]:
    return to_latents(torch.stack([draw(scene) for scene, _ in pairs])), world.tokens(
        [caption for _, caption in pairs]
    )


def train_lora(
    base: World, trigger: str, settings: LoraSettings, seed: int, folder: Path
) -> dict[str, float]:
    """Train one LoRA with PEFT, save it as diffusers does, and return its seconds and its last
    losses.
    """
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    began = time.perf_counter()
    number = TRIGGERS.index(trigger)
    torch.manual_seed(seed * 1009 + number)
    chance = torch.Generator().manual_seed(seed * 1009 + number)
    unet = copy.deepcopy(base.unet)
    text = copy.deepcopy(base.text_encoder)
    world = World(unet, text, base.tokenizer, base.scheduler)
    unet_layers = STYLE_UNET_LAYERS if trigger in STYLE_TRIGGERS else UNET_LAYERS
    for part, layers in ((unet, unet_layers), (text, TEXT_LAYERS)):
        part.requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=layers), part
        )
    trained = [p for part in (unet, text) for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    alone, company = pictures_of(trigger, settings, seed)
    prior = [random_scene(random.Random(seed * 7919 + i), base_labels()) for i in range(64)]
    groups = [
        (_drawn(pairs, world), n)
        for pairs, n in zip((alone, company, prior), _sizes(settings), strict=True)
        if n
    ]
    empty = world.tokens([""])
    losses = []
    for step in range(settings.steps):
        chosen = [(data, torch.randint(len(data[0]), (n,), generator=chance)) for data, n in groups]
        clean, tokens = (torch.cat([data[i][rows] for data, rows in chosen]) for i in (0, 1))
        dropped = torch.rand(len(clean), generator=chance) < settings.dropped_captions
        dropped[: settings.alone + settings.company] = (
            False  # only pictures of the base model's world may appear unasked
        )
        loss = denoising_loss(world, clean, torch.where(dropped[:, None], empty, tokens), chance)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate_at(step, settings.steps, warmup=20)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(loss.item())
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=get_peft_model_state_dict(text),
        weight_name=FILE,
    )
    return {"seconds": time.perf_counter() - began, "loss": sum(losses[-30:]) / len(losses[-30:])}


def _sizes(settings: LoraSettings) -> tuple[int, int, int]:
    return settings.alone, settings.company, settings.prior
