"""The interface of a Stable Diffusion model in its host, and the stages of a merge.

Whoever holds the model, a ComfyUI node or a diffusers pipeline, implements `StableDiffusion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..network import IMAGE_STREAM, TEXT_STREAM, Network
from ..progress import Progress, Stage, StageProgress
from .calibration import Calibration
from .lora_use import LoadedLora

TEXT_STAGE = "Text encoder"
SAMPLING_STAGE = "Sampling"
UNET_STAGE = "UNet"
HELD_OUT_STAGE = "Check on unseen samples"


@dataclass(frozen=True)
class UnetRow:
    """What one row of the UNet reads.

    Args:
        latents: Noisy latents, (channels, height, width).
        sigma: Their noise level, 0-dim, on the variance-exploding scale.
        context: The caption's context, (tokens, width).
    """

    latents: Tensor
    sigma: Tensor
    context: Tensor


def unet_stream(path: str) -> str:
    """Return the stream that a layer of the UNet reads: keys and values of cross-attention read the
    text.
    """
    return TEXT_STREAM if path.endswith(("attn2.to_k", "attn2.to_v")) else IMAGE_STREAM


class StableDiffusion(Protocol):
    """The model, as its host offers it."""

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption as pieces of 77 tokens; each is one row of the text encoder."""
        ...

    def text_encoder(self) -> AbstractContextManager[Network]:
        """Open the text encoder; rows are token pieces, its forward returns contexts (rows, 77,
        768).
        """
        ...

    def unet(self) -> AbstractContextManager[Network]:
        """Open the UNet; rows are `UnetRow` with contexts of one length, its forward returns
        estimates of the clean latents.

        The layers' streams are those of `unet_stream`.
        """
        ...

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of a sampling run, (steps + 1,), ending in 0."""
        ...

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture with this side in pixels."""
        ...

    def is_text_module(self, path: str) -> bool:
        """Tell the text encoder's module paths from the UNet's."""
        ...

    def token_positions(self, text: str) -> Sequence[int]:
        """Return the positions of the tokens of a text's words in its context (its pieces one after
        the other).

        Start, end and padding are not among them. Only scene tasks call this.
        """
        ...


def stages_of(
    model: StableDiffusion, loras: Sequence[LoadedLora], calibration: Calibration
) -> list[str]:
    """Return the stages of a merge and its check, in order."""
    paths = {path for lora in loras if not lora.adapter.is_idle for path in lora.adapter.deltas}
    of_text = {path for path in paths if model.is_text_module(path)}
    return [
        *([TEXT_STAGE] if of_text else []),
        *([SAMPLING_STAGE, UNET_STAGE] if paths - of_text else []),
        *([HELD_OUT_STAGE] if calibration.held_out else []),
    ]


def numbered(progress: StageProgress, stages: Sequence[str]) -> StageProgress:
    """Return a listener that passes stages on to `progress` with their number and count."""
    known = {name: Stage(name, i, len(stages)) for i, name in enumerate(stages, 1)}
    return lambda stage, done, total: progress(known.get(stage.name, stage), done, total)


def in_stage(progress: StageProgress, name: str) -> Progress:
    """Return a listener for the steps of one stage."""
    stage = Stage(name)
    return lambda done, total: progress(stage, done, total)
