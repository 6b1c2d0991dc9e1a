"""Regions of a scene's LoRAs in the picture, each a column or a row."""

from __future__ import annotations

import itertools
import re
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CalibrationError
from ..settings import setting_to
from .captions import STYLE_PLACE, placeholders

Layout = Literal["columns", "rows"]


def layout_of(form: str) -> Layout | None:
    """Return the layout of a form's subjects in the picture; None where they overlap, or a style
    takes all of it.
    """
    if f"{{{STYLE_PLACE}}}" in form or re.search(
        r"\b(behind|in front of|inside|on top of)\b", form
    ):
        return None
    return "rows" if re.search(r"\b(above|over|below|under|beneath)\b", form) else "columns"


def regions_of(form: str) -> dict[str, int]:
    """Return the number of the region of each place: in order of appearance, from the left or from
    above, unless the form says otherwise.
    """
    names = placeholders(form)
    backwards = re.search(
        r"\bright of\b|\bon the right\b.*\bon the left\b|\b(below|under|beneath)\b", form
    )
    return {name: i for i, name in enumerate(reversed(names) if backwards else names)}


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


def on_grid(mask: Tensor, tokens: int) -> Tensor:
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
            "latents, which is none of its halvings; scenes with pictures cannot tell whose tokens "
            f"they are. Set {setting_to('scene_pictures', False)}"
        )
    return functional.adaptive_avg_pool2d(mask[None, None].float(), (height, width)).flatten()
