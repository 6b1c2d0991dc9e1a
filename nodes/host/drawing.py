"""Pictures drawn as core's own nodes draw them: CLIP Text Encode, KSampler, VAE Decode."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...iteris_core import IterisError
from ...iteris_core.progress import Progress
from .server import heed_cancel

if TYPE_CHECKING:
    from .diffusion_model import ComfyModel


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        seed: Seed of the noise, the same for all pictures.
        steps: Sampling steps.
        cfg: Guidance; 1 means no guidance.
        sampler: Name of one of the host's samplers.
        scheduler: Name of one of the host's schedulers.
        negative: Negative prompt.
    """

    width: int
    height: int
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    negative: str = ""


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


def check_vae(vae: Any, base: ComfyModel) -> None:
    """Refuse a VAE of another family.

    Raises:
        IterisError: There is none, or it reads other latents.
    """
    if vae is None:
        raise IterisError(
            "the VAE input is empty: this checkpoint has no VAE. Load one with a loader"
        )
    channels = base.shape_of_picture(0, 0)[0]
    if vae.latent_channels != channels:
        raise IterisError(
            f"the VAE reads latents of {vae.latent_channels} channels; {base.family.name} has "
            f"{channels}. Connect the VAE of this MODEL"
        )


def draw(
    base: ComfyModel,
    vae: Any,
    ways: Sequence[tuple[Any, Any]],
    wanted: Sequence[tuple[int, str]],
    how: Drawing,
    progress: Progress,
    drawn: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Draw pictures, (height, width, channels) from 0 to 1.

    All texts are encoded before any picture is sampled. They are sampled and decoded way by way, so
    that they are seen soon, and the model makes room for the VAE only where it is patched anew.

    Args:
        base: The model without LoRAs.
        ways: The MODEL and CLIP of each way, clones of the base's.
        wanted: The way and the prompt of each picture.
        how: How they are drawn.
        progress: Listener for (steps done, steps in all); may raise to cancel.
        drawn: Called with each picture's number, the picture, and its latents as the model has
            them, (channels, ..., height, width).
    """
    order = sorted(range(len(wanted)), key=lambda number: wanted[number][0])
    texts = {}
    negatives = {}
    for number in order:
        way, prompt = wanted[number]
        clip = ways[way][1]
        texts[number] = _encoded(clip, prompt)
        if way not in negatives:
            negatives[way] = _encoded(clip, how.negative)
    total = len(wanted) * how.steps
    count = 0
    for way, numbers in itertools.groupby(order, lambda number: wanted[number][0]):
        latents: dict[int, Tensor] = {}
        for number in numbers:
            before = (count + len(latents)) * how.steps

            def tell(step: int, *_: Any, before: int = before) -> None:
                progress(before + min(step + 1, how.steps), total)

            latents[number] = _sampled(base, ways[way][0], texts[number], negatives[way], how, tell)
        for number, latent in latents.items():
            drawn(
                number, _decoded(vae, latent), base.model.model.process_latent_in(latent)[0].cpu()
            )
        count += len(latents)


def _sampled(
    base: ComfyModel,
    model: Any,
    positive: Any,
    negative: Any,
    how: Drawing,
    tell: Callable[..., None],
) -> Tensor:
    shape = (1, *base.shape_of_picture(how.width, how.height))
    empty = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    latent: Tensor = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, how.seed),
        how.steps,
        how.cfg,
        how.sampler,
        how.scheduler,
        positive,
        negative,
        empty,
        callback=tell,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=how.seed,
    )
    return latent


def _encoded(clip: Any, text: str) -> Any:
    heed_cancel()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _decoded(vae: Any, latent: Tensor) -> Tensor:
    heed_cancel()
    pictures: Tensor = vae.decode(latent)
    return pictures.reshape(-1, *pictures.shape[-3:])[0].cpu()  # of a video, the first
