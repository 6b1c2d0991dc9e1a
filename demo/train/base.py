"""The training of the demo's base model, in pieces: it goes on where it was ended."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .captions import base_scene
from .drawing import Scene
from .model import Latents, TextEncoder, alphas_cumprod, new_unet, weighted_loss

CAPTIONS = 4000
PICTURES = 3  # of each caption
DROPPED = 0.1
BATCH = 16
RATE = 5e-4
WARMUP = 150


def pictures_of(scenes: list[Scene]) -> Tensor:
    """Return drawn scenes as bytes (n, 3, 128, 128)."""
    drawn = np.stack([np.asarray(scene.draw()) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Data:
    """What a model is trained on.

    Args:
        latents: (pictures, 4, 16, 16).
        captions: Number of each picture's caption, (pictures,).
        contexts: (captions, 77, 768), fp16.
        empty: Context of the empty caption, (77, 768).
    """

    latents: Tensor
    captions: Tensor
    contexts: Tensor
    empty: Tensor

    def batch(self, rows: Tensor, chance: torch.Generator, dropped: float) -> tuple[Tensor, Tensor]:
        """Return latents and contexts of some pictures, a share of them without their caption."""
        contexts = self.contexts[self.captions[rows]].float()
        leave_out = torch.rand(len(rows), generator=chance) < dropped
        return self.latents[rows], torch.where(leave_out[:, None, None], self.empty, contexts)


def encoded(encoder: TextEncoder, captions: list[str]) -> Tensor:
    """Return the contexts of captions, in fp16."""
    return torch.cat([encoder(captions[i : i + 64]).half() for i in range(0, len(captions), 64)])


def make_data(scenes: list[tuple[Scene, str]], latents: Latents, encoder: TextEncoder) -> Data:
    """Return scenes with their captions as training data."""
    texts = list(dict.fromkeys(text for _, text in scenes))
    numbers = {text: i for i, text in enumerate(texts)}
    return Data(
        torch.cat(
            [
                latents.encode(pictures_of([s for s, _ in scenes[i : i + 500]]).float() / 255)
                for i in range(0, len(scenes), 500)
            ]
        ),
        torch.tensor([numbers[text] for _, text in scenes]),
        encoded(encoder, texts),
        encoder([""])[0],
    )


def base_scenes(seed: int) -> list[tuple[Scene, str]]:
    """Return the scenes of the base model: several pictures of each caption."""
    chance = random.Random(seed)
    pairs = [base_scene(chance) for _ in range(CAPTIONS)]
    return [
        (Scene(s.things, s.layout, s.place, s.is_blueprint, chance.randrange(2**31)), text)
        for s, text in pairs
        for _ in range(PICTURES)
    ]


def rate_at(step: int, steps: int) -> float:
    """Return the factor on the learning rate: a warmup, then a cosine down to 0.02."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def descend(
    optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, most: float = math.inf
) -> float:
    """Make one step at a learning rate, with gradients of a norm of `most` at most; return the
    loss.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    if most < math.inf:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, most)
    optimiser.step()
    return loss.item()


def train_base(
    data: Data, folder: Path, steps: int, tell: Callable[[str], None], seed: int = 0
) -> nn.Module:
    """Train the UNet to the last step, from a checkpoint in the folder if there is one; return it
    with averaged weights.
    """
    unet = new_unet(seed)
    average = copy.deepcopy(_weights(unet))
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    chance = torch.Generator().manual_seed(seed)
    file = folder / "base.pt"
    step = 0
    seconds = 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        unet.load_state_dict(state["unet"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        chance.set_state(state["chance"])
        step, seconds = state["step"], state["seconds"]
    kept = alphas_cumprod()
    losses: list[float] = []
    while step < steps:
        began = time.process_time()
        rows = torch.randint(len(data.latents), (BATCH,), generator=chance)
        clean, contexts = data.batch(rows, chance, DROPPED)
        loss = weighted_loss(unet, clean, contexts, chance, kept)
        losses.append(descend(optimiser, loss, RATE * rate_at(step, steps), 1.0))
        step += 1
        decay = min(0.997, step / (step + 9))
        torch._foreach_lerp_(list(average.values()), list(_weights(unet).values()), 1 - decay)
        seconds += time.process_time() - began
        if step % 50 == 0:
            tell(f"base {step}/{steps}: loss {sum(losses[-50:]) / 50:.4f}, {seconds:.0f} CPU s")
        if step % 200 == 0 or step == steps:
            state = {
                "unet": unet.state_dict(),
                "average": average,
                "optimiser": optimiser.state_dict(),
                "chance": chance.get_state(),
                "step": step,
                "seconds": seconds,
            }
            torch.save(state, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
    unet.load_state_dict({**unet.state_dict(), **average})
    return unet


def _weights(unet: nn.Module) -> dict[str, Any]:
    return {name: p.detach() for name, p in unet.named_parameters() if p.requires_grad}
