"""The training of the demo's three LoRAs on a few pictures each, as many LoRAs are trained."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Data, descend, make_data, rate_at
from .captions import style_scene, subject_scene
from .drawing import STYLE, SUBJECTS
from .model import Latents, TextEncoder, alphas_cumprod, new_unet, weighted_loss

RANK = 8
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
PICTURES = 16
IN_COMPANY = 48


@dataclass(frozen=True)
class Kind:
    """How a LoRA is trained.

    Args:
        steps: Steps.
        rate: Learning rate.
        alone, company: Pictures of a batch that show the subject alone, and next to another thing.
    """

    steps: int = 600
    rate: float = 2e-3
    alone: int = 3
    company: int = 5


def lora_data(name: str, latents: Latents, encoder: TextEncoder) -> tuple[Data, Data]:
    """Return the training pictures of a subject, or of the style: alone, and in company."""
    chance = random.Random(sum(map(ord, name)))
    if name == STYLE:
        found = [style_scene(chance) for _ in range(3 * (PICTURES + IN_COMPANY))]
        alone = [pair for pair in found if len(pair[0].things) == 1][:PICTURES]
        company = [pair for pair in found if len(pair[0].things) == 2][:IN_COMPANY]
    else:
        alone = [subject_scene(chance, name, alone=True) for _ in range(PICTURES)]
        company = [subject_scene(chance, name, alone=False) for _ in range(IN_COMPANY)]
    return make_data(alone, latents, encoder), make_data(company, latents, encoder)


def train_lora(
    name: str,
    base: dict[str, Tensor],
    data: tuple[Data, Data],
    kind: Kind,
    tell: Callable[[str], None],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Train a LoRA with PEFT, and return the down and up factors of each layer of the UNet."""
    from peft import LoraConfig, inject_adapter_in_model

    number = sum(map(ord, name))
    unet = new_unet(0)
    unet.load_state_dict(base)
    unet.requires_grad_(False)
    torch.manual_seed(number)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS)
    inject_adapter_in_model(config, unet)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0)
    chance = torch.Generator().manual_seed(number)
    kept = alphas_cumprod()
    losses: list[float] = []
    for step in range(kind.steps):
        parts = [
            of_kind.batch(torch.randint(len(of_kind.latents), (n,), generator=chance), chance, 0.0)
            for of_kind, n in zip(data, (kind.alone, kind.company), strict=True)
        ]
        clean, contexts = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        loss = weighted_loss(unet, clean, contexts, chance, kept)
        losses.append(descend(optimiser, loss, kind.rate * rate_at(step, kind.steps), 1.0))
        if (step + 1) % 50 == 0:
            tell(f"{name} {step + 1}/{kind.steps}: loss {sum(losses[-50:]) / 50:.4f}")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            factors[path] = (down.detach(), up.detach())
    return factors


NAMES = (*SUBJECTS, STYLE)
