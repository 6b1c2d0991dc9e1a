"""The training of the demo's decoder, in the layout of TAESD, on crops of drawn scenes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .base import descend, pictures_of, rate_at
from .captions import base_scene, style_scene, subject_scene
from .drawing import SUBJECTS, Scene
from .model import PATCH, Latents, new_decoder, trained_blocks

CROP = 8  # latents of a side
BATCH = 16
NOISE = 0.15  # of latents that a sampler makes, at most
RATE = 2e-3


def any_scene(chance: random.Random) -> Scene:
    """Return a scene of anything that the demo draws."""
    kind = chance.random()
    if kind < 0.6:
        return base_scene(chance)[0]
    if kind < 0.85:
        subject = chance.choice(list(SUBJECTS))
        return subject_scene(chance, subject, alone=chance.random() < 0.5)[0]
    return style_scene(chance)[0]


def train_decoder(
    latents: Latents, folder: Path, steps: int, tell: Callable[[str], None]
) -> nn.Module:
    """Train the decoder, or read the trained one of the folder, and return it."""
    decoder = new_decoder()
    trained = set(trained_blocks(decoder))
    for module in decoder:
        if hasattr(module, "fuse") and module not in trained:
            module.requires_grad_(False)
            for parameter in module.parameters():
                parameter.zero_()
            module.forward = torch.relu  # what such a block computes
    file = folder / "decoder.pt"
    if file.exists():
        decoder.load_state_dict(torch.load(file, weights_only=True))
        return decoder
    chance = random.Random(1)
    pictures = pictures_of([any_scene(chance) for _ in range(4000)])
    draw = torch.Generator().manual_seed(1)
    parameters = [p for p in decoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0, betas=(0.9, 0.99))
    losses: list[float] = []
    for step in range(steps):
        rows = torch.randint(len(pictures), (BATCH,), generator=draw)
        corners = torch.randint(16 - CROP + 1, (BATCH, 2), generator=draw).tolist()
        batch = torch.stack(
            [
                pictures[row, :, y * PATCH : (y + CROP) * PATCH, x * PATCH : (x + CROP) * PATCH]
                for row, (y, x) in zip(rows.tolist(), corners, strict=True)
            ]
        )
        clean = batch.float() / 255
        z = latents.encode(clean)
        level = NOISE * torch.rand(BATCH, 1, 1, 1, generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            found = decoder(z + level * torch.randn(z.shape, generator=draw))
        loss = _loss(found.float(), clean)
        losses.append(descend(optimiser, loss, RATE * rate_at(step, steps), 1.0))
        if (step + 1) % 50 == 0:
            tell(f"decoder {step + 1}/{steps}: loss {sum(losses[-50:]) / 50:.4f}")
    torch.save(decoder.state_dict(), file)
    return decoder


def _loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute error of pictures and of their edges."""
    edges = [(found.diff(dim=along) - wanted.diff(dim=along)).abs().mean() for along in (-1, -2)]
    return (found - wanted).abs().mean() + sum(edges) / 2
