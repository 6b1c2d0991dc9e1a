"""Pictures of the demo's models without a host, to look at while they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .model import LATENTS, STEPS, TextEncoder, alphas_cumprod

Factors = Mapping[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def sample(
    unet: nn.Module,
    encoder: TextEncoder,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    cfg: float = 4.0,
    steps: int = 20,
) -> Tensor:
    """Return latents (n, 4, 16, 16), one per caption and seed, by Euler's method."""
    kept = alphas_cumprod()
    sigmas_of = ((1 - kept) / kept).sqrt()
    times = [round(STEPS - i * STEPS / steps) - 1 for i in range(steps)]
    sigmas = torch.cat([sigmas_of[times], torch.zeros(1)])
    contexts = torch.cat([encoder(list(captions)), encoder([""]).expand(len(captions), -1, -1)])
    noise = [
        torch.randn(LATENTS, 16, 16, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    x = torch.stack(noise) * (1 + sigmas[0] ** 2).sqrt()
    for i, time in enumerate(times):
        sigma = sigmas[i]
        scaled = (x / (1 + sigma**2).sqrt()).repeat(2, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(scaled, torch.full((len(scaled),), time), contexts).float()
        told, untold = predicted.chunk(2)
        x = x + (untold + cfg * (told - untold)) * (sigmas[i + 1] - sigma)
    return x


@contextmanager
def wearing(unet: nn.Module, loras: Sequence[Factors]):
    """Add LoRAs to the weights of a UNet."""
    before: dict[str, Tensor] = {}
    try:
        for factors in loras:
            for path, (down, up) in factors.items():
                weight = unet.get_submodule(path).weight
                before.setdefault(path, weight.data.clone())
                weight.data += (up.flatten(1) @ down.flatten(1)).view_as(weight)
        yield
    finally:
        for path, weight in before.items():
            unet.get_submodule(path).weight.data = weight


def decoded(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Return pictures (n, 3, 128, 128) from 0 to 1."""
    with torch.no_grad():
        return decoder(latents).clamp(0, 1)
