"""Scenes drawn by procedure: things with a surface and a shape on a background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SIDE = 24  # pixels
PATCH = 3  # a fixed pixel-unshuffle stands for the VAE: (3, 24, 24) pictures are (27, 8, 8) latents
BLACK = (0.08, 0.08, 0.08)

Colour = tuple[float, float, float]
Label = tuple[str, str]  # surface, shape
Mask = Callable[[Tensor, Tensor], Tensor]  # points (u, v), v downwards, radius 1 -> inside or not


@dataclass(frozen=True)
class Surface:
    """A colour; textures have a second one where their mask says so, which knows the shape's."""

    colour: Colour
    second: Colour = BLACK
    mask: Callable[[Mask, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Thing:
    """A surface on a shape, and where it lies, in pixels."""

    surface: str
    shape: str
    x: float = SIDE / 2
    y: float = SIDE / 2
    radius: float = 7.0

    @property
    def label(self) -> Label:
        return self.surface, self.shape


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str
    style: str | None = None


@dataclass(frozen=True)
class Drawing:
    """What a world draws: shapes, surfaces, backgrounds, and ways to render a whole picture."""

    shapes: Mapping[str, Mask]
    surfaces: Mapping[str, Surface]
    backgrounds: Mapping[str, Colour]
    floors: Mapping[str, Colour] = field(default_factory=dict)  # colour of the lower third
    styles: tuple[str, ...] = ()  # of "outlined" and "shadowed"

    def draw(self, scene: Scene) -> Tensor:
        """Return a scene as a picture (3, 24, 24) in [-1, 1], with soft edges."""
        fine = 2 * SIDE
        centres = (torch.arange(fine) + 0.5) / 2
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        ground = torch.tensor(self.backgrounds[scene.background])
        picture = ground.view(3, 1, 1).expand(3, fine, fine)
        if scene.background in self.floors:
            floor = torch.tensor(self.floors[scene.background]).view(3, 1, 1)
            picture = torch.where(y >= 2 / 3 * SIDE, floor, picture)
        for thing in scene.things:
            shape = self.shapes[thing.shape]
            surface = self.surfaces[thing.surface]
            u = (x - thing.x) / thing.radius
            v = (y - thing.y) / thing.radius
            inside = shape(u, v)
            layers = [(surface.colour, inside)]
            if surface.mask is not None:
                layers.append((surface.second, inside & surface.mask(shape, u, v)))
            if scene.style == "outlined":
                layers.insert(0, (BLACK, shape(u / 1.25, v / 1.25)))
            elif scene.style == "shadowed":  # a little to the right and below
                layers.insert(0, (BLACK, shape(u - 0.35, v - 0.35)))
            for colour, where in layers:
                picture = torch.where(where, torch.tensor(colour).view(3, 1, 1), picture)
        return torch.nn.functional.avg_pool2d(picture, 2) * 2 - 1


def to_latents(pictures: Tensor) -> Tensor:
    """Return pictures (n, 3, 24, 24) as latents (n, 27, 8, 8)."""
    return torch.nn.functional.pixel_unshuffle(pictures, PATCH)


def to_pictures(latents: Tensor) -> Tensor:
    """Return latents (n, 27, 8, 8) as pictures (n, 3, 24, 24)."""
    return torch.nn.functional.pixel_shuffle(latents, PATCH)
