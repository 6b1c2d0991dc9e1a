"""What models of videos read of a first picture beside the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...iteris_core import ConfigError

_VISION = (1, 257, 1280)  # of CLIP-ViT-H, which Wan 2.1 reads


def _first_is_known(latents: Tensor) -> Tensor:
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, 0] = 0
    return mask


def _any_features(latents: Tensor) -> Any:
    # of no picture, but in all directions, so that every layer that reads them can be solved
    drawn = torch.randn(_VISION, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(penultimate_hidden_states=drawn.to(latents))


# Name in a conditioning -> what stands there where no first picture is connected, for latents
# (1, channels, frames, height, width): a picture of one grey.
NEUTRAL: Mapping[str, Callable[[Tensor], Any]] = {
    "concat_latent_image": torch.zeros_like,
    "concat_mask": _first_is_known,
    "clip_vision_output": _any_features,
}


def start_of(conditioning: Any) -> Mapping[str, Any]:
    """Return what a CONDITIONING says of a first picture; nothing if none is connected.

    Raises:
        ConfigError: It says nothing of it.
    """
    if conditioning is None:
        return {}
    found = {name: value for name, value in conditioning[0][1].items() if name in NEUTRAL}
    if not found:
        raise ConfigError(
            "the conditioning at start says nothing of a first picture. Connect the output "
            "'positive' of a node such as WanImageToVideo"
        )
    return found


def conditions_for(
    names: Iterable[str], given: Mapping[str, Any], latents: Tensor
) -> dict[str, Any]:
    """Return what a model reads of a first picture beside latents (1, channels, frames, ...).

    Args:
        names: What it reads.
        given: What is connected; of the rest the neutral one is made.
    """
    found = {}
    for name in names:
        value = given.get(name)
        value = NEUTRAL[name](latents) if value is None else value
        # a video that is as long as the measured one
        found[name] = value[:, :, : latents.shape[2]] if isinstance(value, Tensor) else value
    return found
