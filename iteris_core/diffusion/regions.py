"""Regions of scenes: parts of the picture, as masks of latents and weights of a layer's tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CalibrationError
from ..settings import setting_to
from .captions import Layout
from .model import PictureTokens


@dataclass(frozen=True)
class Area:
    """One of several equal parts of a picture.

    Args:
        layout: How they lie.
        count: Number of parts.
        number: Which of them, from the left or from the top.
    """

    layout: Layout
    count: int
    number: int

    def mask(self, shape: Sequence[int]) -> Tensor:
        """Return its mask (height, width) in latents of the shape (channels, ..., height,
        width).
        """
        return region_masks(self.layout, self.count, *shape[-2:])[self.number]


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the picture as weights of a layer's tokens; see `tasks.PerToken`.

    Args:
        mask: The part in the latents, (height, width).
        picture: See `model.DiffusionHost.picture_tokens`.
        frames: Latent frames, whose tokens follow each other.
    """

    mask: Tensor
    picture: PictureTokens | None = None
    frames: int = 1
    _known: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, tokens: int) -> Tensor:
        if tokens not in self._known:
            self._known[tokens] = (
                mask_on_grid(self.mask, tokens)
                if self.picture is None
                else mask_in_row(self.mask, tokens, self.picture, self.frames)
            )
        return self._known[tokens]


def mask_in_row(mask: Tensor, tokens: int, picture: PictureTokens, frames: int = 1) -> Tensor:
    """Return a mask (height, width) as weights of a layer's tokens, (tokens,), where each square of
    latents is a token; the text before or after the picture's does not count.

    >>> mask_in_row(torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2), 3, PictureTokens(2, len))
    tensor([0., 1., 0.])

    Args:
        tokens: Tokens of the layer; a single one is for the whole picture.
        frames: Latent frames of a video, all under the mask.

    Raises:
        CalibrationError: Fewer tokens than the picture has.
    """
    if tokens == 1:
        return mask.float().mean().reshape(1)
    height, width = (-(-side // picture.patch) for side in mask.shape)
    grid = functional.adaptive_avg_pool2d(mask[None, None].float(), (height, width)).flatten()
    grid = grid.repeat(frames)
    if tokens > len(grid):
        grid = functional.pad(grid, (0, -len(grid) % picture.multiple))
    if tokens < len(grid):
        raise CalibrationError(
            f"a layer sees {tokens} tokens, and {frames} x {mask.shape[0]} x {mask.shape[1]} "
            f"latents have {len(grid)}; scenes cannot tell whose tokens they are. Set "
            f"{setting_to('scene_weight', 0)}"
        )
    others = tokens - len(grid)
    return functional.pad(grid, (0, others) if picture.come_first else (others, 0))


def region_masks(layout: Layout, count: int, height: int, width: int) -> list[Tensor]:
    """Return masks (height, width) that cut a picture into equal parts; together they are 1
    everywhere.
    """
    along = width if layout == "columns" else height
    edges = torch.linspace(0, along, count + 1)
    cells = torch.arange(along)
    masks = [
        ((cells + 1).clamp(max=stop) - cells.clamp(min=start)).clamp(0, 1)
        for start, stop in itertools.pairwise(edges)
    ]
    return [
        m.expand(height, width) if layout == "columns" else m[:, None].expand(height, width)
        for m in masks
    ]


def mask_on_grid(mask: Tensor, tokens: int) -> Tensor:
    """Return a mask (height, width) as weights of a layer's tokens, (tokens,): the picture halved
    as often as needed.

    Raises:
        CalibrationError: No halving has this many tokens.
    """
    height, width = mask.shape
    while height * width > max(tokens, 1):
        height = -(-height // 2)
        width = -(-width // 2)
    if height * width != tokens:
        raise CalibrationError(
            f"a layer sees {tokens} tokens of a picture of {mask.shape[0]} x {mask.shape[1]} "
            "latents, and no halving of it has so many; scenes cannot tell whose "
            f"tokens they are. Set {setting_to('scene_weight', 0)}"
        )
    return functional.adaptive_avg_pool2d(mask[None, None].float(), (height, width)).flatten()
