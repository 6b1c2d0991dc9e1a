"""The training of the demo's recogniser."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..recogniser import SIDE, Recogniser, new_network
from .base import descend, pictures_of, rate_at
from .captions import captioned
from .drawing import ALL, STYLE, Scene
from .model import Latents

LABELS = (*ALL, STYLE)
PICTURES = 6000
UNSEEN = 600
BATCH = 48
# below this share of a mixture nothing counts as drawn, and from that one on it does; between them
# nobody is asked
GONE, WHOLE = 0.35, 0.7


def scene(chance: random.Random) -> Scene:
    things = chance.sample(list(ALL), 1 if chance.random() < 0.4 else 2)
    styled = STYLE if chance.random() < 0.25 else ""
    return captioned(chance, things, style=styled)[0]


def labels_of(scenes: list[Scene]) -> Tensor:
    return torch.tensor(
        [[float(n in s.things) for n in ALL] + [float(s.is_blueprint)] for s in scenes]
    )


@torch.no_grad()
def drawings(count: int, seed: int, latents: Latents, decoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return pictures (n, 3, 64, 64), half of them as the decoder draws them, and their labels."""
    chance = random.Random(seed)
    scenes = [scene(chance) for _ in range(count)]
    draw = torch.Generator().manual_seed(seed)
    small = []
    for i in range(0, count, 100):
        part = pictures_of(scenes[i : i + 100]).float() / 255
        half = len(part) // 2
        z = latents.encode(part[:half])
        z = z + 0.1 * torch.randn(z.shape, generator=draw)
        part[:half] = decoder(z).clamp(0, 1)
        small.append(nn.functional.interpolate(part, (SIDE, SIDE), mode="area"))
    return torch.cat(small), labels_of(scenes)


def damaged(
    pictures: Tensor, labels: Tensor, others: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures of which some are mixed with another one, noise or a colour, their labels,
    and which of these count.
    """
    n = len(pictures)
    share = torch.rand(n, generator=draw)
    share = torch.where(torch.rand(n, generator=draw) < 0.5, 1.0, share)
    kind = torch.randint(3, (n, 1, 1, 1), generator=draw)
    colour = torch.rand(n, 3, 1, 1, generator=draw).expand_as(pictures)
    blobs = nn.functional.interpolate(
        torch.rand(n, 3, 8, 8, generator=draw), (SIDE, SIDE), mode="bilinear"
    )
    foreign = torch.where(kind == 0, others, torch.where(kind == 1, colour, blobs))
    mixed = torch.lerp(foreign, pictures, share.view(-1, 1, 1, 1))
    mixed = mixed + 0.03 * torch.randn(mixed.shape, generator=draw)
    counts = ((share <= GONE) & (kind.flatten() != 0)) | (share >= WHOLE)
    there = labels * (share >= WHOLE)[:, None]
    return mixed.clamp(0, 1), there, counts.float()[:, None].expand_as(labels)


def train_recogniser(
    latents: Latents, decoder: nn.Module, folder: Path, steps: int, tell: Callable[[str], None]
) -> Recogniser:
    """Train the recogniser, or read the trained one of the folder, and return it."""
    file = folder / "recogniser.pt"
    if file.exists():
        return Recogniser.of(LABELS, torch.load(file, weights_only=True))
    torch.manual_seed(0)
    network = new_network(len(LABELS))
    pictures, labels = drawings(PICTURES, 2, latents, decoder)
    draw = torch.Generator().manual_seed(2)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    for step in range(steps):
        rows, other = torch.randint(len(pictures), (2, BATCH), generator=draw)
        mixed, there, counts = damaged(pictures[rows], labels[rows], pictures[other], draw)
        errors = nn.functional.binary_cross_entropy_with_logits(
            network(mixed), there, reduction="none"
        )
        loss = (errors * counts).sum() / counts.sum()
        told = descend(optimiser, loss, 2e-3 * rate_at(step, steps))
        if (step + 1) % 100 == 0:
            tell(f"recogniser {step + 1}/{steps}: loss {told:.4f}")
    torch.save(network.state_dict(), file)
    found = Recogniser.of(LABELS, network.state_dict())
    unseen, truth = drawings(UNSEEN, 3, latents, decoder)
    right = sum(
        seen == {name for name, is_there in zip(LABELS, row, strict=True) if is_there}
        for seen, row in zip(found.sees(unseen), truth.tolist(), strict=True)
    )
    tell(f"recogniser: all right in {right / UNSEEN:.3f} of {UNSEEN} unseen drawings")
    return found
