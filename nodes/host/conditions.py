"""What models read of pictures beside the text: of a video's first one, or of one to edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...iteris_core import ConfigError

if TYPE_CHECKING:
    from .families import HostFamily

_VISION = (1, 257, 1280)  # of CLIP-ViT-H, which Wan 2.1 reads


def _first_is_known(latents: Tensor) -> Tensor:
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, 0] = 0
    return mask


def _any_features(latents: Tensor) -> Any:
    # of no picture, but in all directions, so that every layer that reads them can be solved
    drawn = torch.randn(_VISION, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(penultimate_hidden_states=drawn.to(latents))


# Name in a conditioning -> its value if no first picture is connected, for latents (1, channels,
# frames, height, width): that of a plain grey picture.
NEUTRAL: Mapping[str, Callable[[Tensor], Any]] = {
    "concat_latent_image": torch.zeros_like,
    "concat_mask": _first_is_known,
    "clip_vision_output": _any_features,
}


# What a conditioning says of pictures to edit: their latents, and how they are placed.
REFERENCES = "reference_latents"
_OF_REFERENCES = (REFERENCES, "reference_latents_method")


def start_of(conditioning: Any) -> Mapping[str, Any]:
    """Return what a CONDITIONING says of pictures; nothing if none is connected.

    Raises:
        ConfigError: It says nothing of them.
    """
    if conditioning is None:
        return {}
    known = {*NEUTRAL, *_OF_REFERENCES}
    found = {name: value for name, value in conditioning[0][1].items() if name in known}
    if not found:
        raise ConfigError(
            "the conditioning at start has no picture. Connect the output 'positive' of a node "
            "such as WanImageToVideo, or for editing models of ReferenceLatent"
        )
    return found


def check_start(given: Mapping[str, Any], row: HostFamily) -> None:
    """Refuse pictures that a model does not read.

    Raises:
        ConfigError: It reads none of them.
    """
    read = {*row.start, *(_OF_REFERENCES if row.edits else ())}
    if given and read.isdisjoint(given):
        raise ConfigError(
            f"a picture is connected to start ({', '.join(given)}), which this kind of "
            f"{row.family.name} does not read. Disconnect it"
        )


def conditions_for(
    names: Iterable[str], given: Mapping[str, Any], latents: Tensor
) -> dict[str, Any]:
    """Return what a model reads of pictures beside latents (1, channels, ..., height, width).

    Args:
        names: What it reads of a first picture.
        given: What is connected; what a first picture lacks comes from `NEUTRAL`.
    """
    found = {name: given[name] for name in _OF_REFERENCES if name in given}
    if REFERENCES in found:
        found[REFERENCES] = [_middle(picture, latents) for picture in found[REFERENCES]]
    for name in names:
        value = given.get(name)
        value = NEUTRAL[name](latents) if value is None else value
        # a video that is as long as the measured one
        found[name] = value[:, :, : latents.shape[2]] if isinstance(value, Tensor) else value
    return found


def _middle(picture: Tensor, latents: Tensor) -> Tensor:
    """Return the middle of a picture's latents, which is no larger than the measured ones: larger
    ones would cost more than all the rest.
    """
    for side in (-2, -1):
        size = min(picture.shape[side], latents.shape[side])
        picture = picture.narrow(side, (picture.shape[side] - size) // 2, size)
    return picture
