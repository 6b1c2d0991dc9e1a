"""A small recogniser of what the demo's pictures show.

`demo/train` trains it on drawings, among them damaged and mixed ones, where it should see
nothing whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64  # pixels of a side that it looks at
SURE_FROM = 0.5


def new_network(labels: int) -> nn.Module:
    """Return the untrained network: (n, 3, 64, 64) from 0 to 1 -> (n, labels)."""

    def level(d_in: int, d_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(d_in, d_out, 3, stride=2, padding=1),
            nn.GroupNorm(8, d_out),
            nn.SiLU(),
            nn.Conv2d(d_out, d_out, 3, padding=1),
            nn.GroupNorm(8, d_out),
            nn.SiLU(),
        ]

    return nn.Sequential(
        *level(3, 32),
        *level(32, 64),
        *level(64, 96),
        *level(96, 128),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, labels),
    )


@dataclass(frozen=True)
class Recogniser:
    """The trained recogniser.

    Args:
        labels: What it knows: things, subjects and the style.
        network: See `new_network`.
    """

    labels: tuple[str, ...]
    network: nn.Module

    @classmethod
    def read(cls, file: Path) -> Recogniser:
        """Return the recogniser of a .safetensors file, whose metadata has the labels."""
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(file, "pt") as opened:
            labels = opened.metadata()["labels"]
        return cls.of(tuple(labels.split("; ")), load_file(file))

    @classmethod
    def of(cls, labels: tuple[str, ...], weights: Mapping[str, Tensor]) -> Recogniser:
        network = new_network(len(labels))
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return cls(labels, network.eval())

    def sees_in(self, images: Sequence[Image]) -> list[frozenset[str]]:
        """Return what is in each picture, all of them RGB and of one size."""
        bytes_of = torch.stack(
            [
                torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
                    image.height, image.width, 3
                )
                for image in images
            ]
        )
        return self.sees(bytes_of.permute(0, 3, 1, 2) / 255)

    @torch.no_grad()
    def sees(self, pictures: Tensor) -> list[frozenset[str]]:
        """Return what is in each picture.

        Args:
            pictures: (n, 3, height, width) from 0 to 1.
        """
        small = nn.functional.interpolate(pictures.float(), (SIDE, SIDE), mode="area")
        sure = self.network(small).sigmoid() > SURE_FROM
        return [
            frozenset(label for label, is_there in zip(self.labels, row, strict=True) if is_there)
            for row in sure.tolist()
        ]
