"""The interface of a diffusion model in its host.

Whoever holds the model, a ComfyUI node or a diffusers pipeline, implements `DiffusionHost`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..adapters import Adapter, sha256_of_tensors
from ..files.families import Family
from ..network import IMAGE_STREAM, TEXT_STREAM, Network


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt as the host's model reads it.

    Args:
        tokens: Its tokens, (tokens, width).
        others: What else the model reads of it, under the host's own names: tensors such as the
            pooled output of SDXL, or constants.
    """

    tokens: Tensor
    others: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a hash of all that the model reads."""
        tensors = {"": self.tokens}
        constants = []
        for name, value in self.others.items():
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                constants.append((name, value))
        return sha256_of_tensors(tensors) + repr(constants)


@dataclass(frozen=True, eq=False)
class DenoiserRow:
    """What one row of the diffusion model reads.

    Args:
        latents: Noisy latents, (channels, height, width), with a time in between for video models.
        sigma: Their noise level, 0-dim, on the host's scale.
        is_negative: Whether the caption is the negative prompt, which some hosts tell the model.
    """

    latents: Tensor
    sigma: Tensor
    prompt: Encoded
    is_negative: bool = False

    def digest(self) -> str:
        """Return a hash of all that the model reads."""
        tensors = {"latents": self.latents, "sigma": self.sigma}
        return sha256_of_tensors(tensors) + self.prompt.digest() + str(self.is_negative)


# Ends of the paths of a UNet's layers that read the text: keys and values of cross-attention.
UNET_TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")


def stream_of(path: str, text_layers: tuple[str, ...]) -> str:
    """Return the stream that a layer of a diffusion model reads.

    Args:
        text_layers: Ends of the paths of layers that read the text.
    """
    return TEXT_STREAM if path.endswith(text_layers) else IMAGE_STREAM


@dataclass(frozen=True, eq=False)
class PatchedWeight:
    """A weight with a LoRA that the host has put on it.

    Args:
        before: The base model's weight, float32, (d_out, d_in); zeros if only the layer's own code
            can read it.
        after: The weight with the LoRA, likewise, before it is rounded to the model's own numbers.
    """

    path: str
    before: Tensor
    after: Tensor


class HostLoader(Protocol):
    """The host's own way to put an adapter on the model, to compare with what was read.

    Changes of biases and norms, which rows do not wear, are left out.
    """

    def weights_with(self, adapter: Adapter) -> Iterator[PatchedWeight]:
        """Yield all weights that the host changes."""
        ...


@dataclass(frozen=True)
class PictureTokens:
    """How to tell the picture from the text where words cannot be paired.

    Args:
        patch: Side of the square of latents that is one token.
        length: Caption -> a key of its number of tokens; captions with one key can share a call.
        multiple: Where a layer also reads the text, the picture's tokens are padded at their end to
            a multiple of this number.
        come_first: Whether they come before the text there, and not after it.
    """

    patch: int
    length: Callable[[str], Hashable]
    multiple: int = 1
    come_first: bool = False


class DiffusionHost(Protocol):
    """The model, as its host offers it."""

    @property
    def loader(self) -> HostLoader | None:
        """The host's own way to put adapters on the model; None: it has none."""
        ...

    @property
    def family(self) -> Family:
        """The family of the model."""
        ...

    @property
    def has_text_layers(self) -> bool:
        """Whether some layers of the diffusion model read nothing but the outputs of text encoders
        that can be merged, without positions. There, tokens may be repeated, so that rows of texts
        of different lengths can share a call.
        """
        ...

    @property
    def picture_tokens(self) -> PictureTokens | None:
        """How scenes tell the picture from the text; None where they pair words in the text, and
        all other layers read only the picture, at the size of its latents or a halving of it.
        """
        ...

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption as pieces of 77 tokens; each is one row of the text encoders that can be
        merged. Empty if there are none.
        """
        ...

    def text_encoder(self) -> AbstractContextManager[Network]:
        """Open the text encoders that can be merged; rows are token pieces, its forward returns one
        output per row.
        """
        ...

    def encoded(self, caption: str, outputs: Sequence[Any]) -> Encoded:
        """Return a caption as the diffusion model reads it.

        Args:
            outputs: What the text encoder returned for each of its pieces.
        """
        ...

    def denoiser(self, levels: int) -> AbstractContextManager[Network]:
        """Open the diffusion model; rows are `DenoiserRow`, its forward returns estimates of the
        clean latents.

        Args:
            levels: Steps of the sampling runs that its calls are of, see `sigmas`.
        """
        ...

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of a sampling run, (steps + 1,), ending in 0."""
        ...

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return what a sampling run begins with: unit noise (runs, ...) at the first level."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return clean latents with unit noise of the same shape at a noise level, 0-dim."""
        ...

    def latent_shape(self, resolution: int, frames: int = 1) -> tuple[int, ...]:
        """Return (channels, ..., height, width) of the latents of a picture with this side in
        pixels, or of a video of so many frames, with the time in between.
        """
        ...

    def is_text_module(self, path: str) -> bool:
        """Tell the text encoders' module paths from the diffusion model's."""
        ...

    def token_positions(self, text: str) -> Sequence[int]:
        """Return the positions of the tokens of a text's words among the encoded ones (its pieces
        one after the other).

        Start, end and padding are not among them. Only scene tasks call this.
        """
        ...
