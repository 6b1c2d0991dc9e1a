"""The judge of a world: a small detector that says which things lie where in a picture,
or that one is garbage.

It is trained on drawn pictures only, concepts included, and never sees a picture of the diffusion
model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional

from .drawing import PATCH, SIDE, Drawing, Label, Scene, Thing
from .training import Tell, from_bytes, to_bytes
from .world import World

GARBAGE = "garbage"
CELLS = SIDE // PATCH
_APART = 3  # cells between things
_CHECKED = 400  # drawn pictures of each kind by which a recogniser is checked


@dataclass(frozen=True)
class Names:
    """What a recogniser tells apart, in the order of its outputs."""

    surfaces: tuple[str, ...]
    shapes: tuple[str, ...]
    styles: tuple[str | None, ...]

    @classmethod
    def of(cls, drawing: Drawing) -> Names:
        return cls(
            (*drawing.surfaces, GARBAGE), (*drawing.shapes, GARBAGE), (None, *drawing.styles)
        )


@dataclass(frozen=True)
class Found:
    """One recognised thing in a picture, with its place in cells of three pixels."""

    surface: str
    shape: str
    row: int
    column: int

    @property
    def label(self) -> Label:
        return self.surface, self.shape


@dataclass(frozen=True)
class Judgement:
    """The things and the style that the recogniser sees in one picture."""

    things: tuple[Found, ...]
    style: str | None

    @property
    def labels(self) -> list[Label]:
        return [thing.label for thing in self.things]


class Recogniser(nn.Module):
    """Per cell whether a thing has its centre there, its shape and surface; the picture's style."""

    def __init__(self, names: Names, width: int = 96) -> None:
        super().__init__()
        self.names = names
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 64, 3, stride=PATCH),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.sizes = (1, len(names.surfaces), len(names.shapes))
        self.cells = nn.Conv2d(width, sum(self.sizes), 1)
        self.style = nn.Linear(width, len(names.styles))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits: thing (n, 1, 8, 8), surface and shape (n, k, 8, 8), style (n, styles)."""
        features = self.body(pictures)
        return *self.cells(features).split(self.sizes, 1), self.style(features.mean((2, 3)))

    @torch.no_grad()
    def judge(self, pictures: Tensor) -> list[Judgement]:
        """Return the judgements of pictures (n, 3, 24, 24)."""
        things, surfaces, shapes, styles = self(pictures)
        surfaces = surfaces.argmax(1).tolist()
        shapes = shapes.argmax(1).tolist()
        styles = styles.argmax(1).tolist()
        judgements = []
        for n, logits in enumerate(things[:, 0]):
            cells = peaks(logits)
            found = [
                Found(
                    self.names.surfaces[surfaces[n][r][c]], self.names.shapes[shapes[n][r][c]], r, c
                )
                for r, c in cells
            ]
            judgements.append(Judgement(tuple(found), self.names.styles[styles[n]]))
        return judgements


def peaks(logits: Tensor) -> list[tuple[int, int]]:
    """Return the cells with a logit above 0, the highest first, without those near a higher one."""
    chosen: list[tuple[int, int]] = []
    cells = [(row, column) for row, column in (logits > 0).nonzero().tolist()]
    for row, column in sorted(cells, key=lambda cell: -float(logits[cell])):
        if all(max(abs(row - r), abs(column - c)) >= _APART for r, c in chosen):
            chosen.append((row, column))
    return chosen


def random_thing(world: World, chance: random.Random) -> Thing:
    label = (
        chance.choice(world.concepts)
        if chance.random() < 0.3
        else (
            chance.choice(list(world.drawing.surfaces)),
            chance.choice(list(world.drawing.shapes)),
        )
    )
    return Thing(*label, chance.uniform(4, 20), chance.uniform(4, 20), chance.uniform(4.2, 8.2))


def training_scene(world: World, chance: random.Random) -> Scene:
    """Return a scene of up to three things of any kind that hardly touch."""
    things: list[Thing] = []
    for _ in range(chance.choice([0, 1, 1, 2, 2, 2, 3])):
        thing = random_thing(world, chance)
        if things:
            thing = replace(thing, radius=min(thing.radius, 5.6))
            things = [replace(other, radius=min(other.radius, 5.6)) for other in things]
        if all(
            (thing.x - o.x) ** 2 + (thing.y - o.y) ** 2 > (0.85 * (thing.radius + o.radius)) ** 2
            for o in things
        ):
            things.append(thing)
    drawing = world.drawing
    style = chance.choice(drawing.styles) if drawing.styles and chance.random() < 0.35 else None
    return Scene(tuple(things), chance.choice(list(drawing.backgrounds)), style)


def with_garbage(world: World, scene: Scene, chance: random.Random) -> tuple[Tensor, list[Label]]:
    """Return a picture whose first thing is mixed with another, in halves or blended; labels."""
    thing = scene.things[0]
    other = random_thing(world, chance)
    kind = chance.choice(["surface", "shape", "both"])
    mixed = replace(
        thing,
        surface=thing.surface if kind == "shape" else other.surface,
        shape=thing.shape if kind == "surface" else other.shape,
    )
    first = world.drawing.draw(scene)
    second = world.drawing.draw(replace(scene, things=(mixed, *scene.things[1:])))
    pixels = torch.arange(SIDE) + 0.5
    mask = {
        "column": (pixels < thing.x).float().expand(SIDE, SIDE),
        "row": (pixels < thing.y).float()[:, None].expand(SIDE, SIDE),
        "blend": torch.tensor(chance.uniform(0.35, 0.65)),
    }[chance.choice(["column", "row", "blend"])]
    label = (
        thing.surface if mixed.surface == thing.surface else GARBAGE,
        thing.shape if mixed.shape == thing.shape else GARBAGE,
    )
    return first * mask + second * (1 - mask), [label, *(other.label for other in scene.things[1:])]


def training_data(world: World, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures as bytes, targets (n, 3, 8, 8), -1 where nothing counts, and styles."""
    chance = random.Random(seed)
    names = Names.of(world.drawing)
    pictures = []
    targets = torch.full((count, 3, CELLS, CELLS), -1)
    styles = []
    targets[:, 0] = 0
    for n in range(count):
        scene = training_scene(world, chance)
        labels = [thing.label for thing in scene.things]
        if scene.things and chance.random() < 0.25:
            picture, labels = with_garbage(world, scene, chance)
        else:
            picture = world.drawing.draw(scene)
        pictures.append(to_bytes(picture))
        styles.append(names.styles.index(scene.style))
        cells = [(int(thing.y / PATCH), int(thing.x / PATCH)) for thing in scene.things]
        for row, column in cells:  # next to a centre nothing is asked
            targets[n, 0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = -1
        for (row, column), (surface, shape) in zip(cells, labels, strict=True):
            targets[n, :, row, column] = torch.tensor(
                [1, names.surfaces.index(surface), names.shapes.index(shape)]
            )
    return torch.stack(pictures), targets, torch.tensor(styles)


def disturbed(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Make drawn pictures as imperfect as generated ones: blur, contrast, noise."""
    n = len(pictures)
    share = torch.rand(n, 1, 1, 1, generator=chance) * 0.7
    blurred = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    contrast = 0.85 + 0.25 * torch.rand(n, 1, 1, 1, generator=chance)
    strength = 0.15 * torch.rand(n, 1, 1, 1, generator=chance)
    pictures = (pictures + share * (blurred - pictures)) * contrast
    return pictures + strength * torch.randn(pictures.shape, generator=chance)


def loss_of(outputs: Sequence[Tensor], targets: Tensor, styles: Tensor) -> Tensor:
    things, surfaces, shapes, style = outputs
    asked = targets[:, 0] >= 0
    loss = functional.binary_cross_entropy_with_logits(
        things[:, 0][asked], targets[:, 0][asked].float()
    )
    loss = 4 * loss + functional.cross_entropy(surfaces, targets[:, 1], ignore_index=-1)
    return (
        loss
        + functional.cross_entropy(shapes, targets[:, 2], ignore_index=-1)
        + 0.3 * functional.cross_entropy(style, styles)
    )


def train_recogniser(
    world: World, path: Path, steps: int, tell: Tell, seed: int = 7
) -> dict[str, float]:
    """Train the recogniser, save it, and return its accuracy on pictures that it has not seen."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    pictures, targets, styles = training_data(world, steps * 16, seed)
    model = Recogniser(Names.of(world.drawing))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(pictures), (64,), generator=chance)
        loss = loss_of(
            model(disturbed(from_bytes(pictures[rows]), chance)), targets[rows], styles[rows]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        tell(step + 1, steps, loss.item())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return accuracy(world, model.eval(), seed + 1)


def accuracy(world: World, model: Recogniser, seed: int) -> dict[str, float]:
    """Return how often concepts, scenes and mixtures are recognised in disturbed drawn pictures."""
    chance = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)

    def judged(pictures: list[Tensor]) -> list[Judgement]:
        return model.judge(disturbed(torch.stack(pictures), noise))

    draw = world.drawing.draw
    ground = next(iter(world.drawing.backgrounds))
    concepts = [chance.choice(world.concepts) for _ in range(_CHECKED)]
    alone = judged(
        [draw(Scene((Thing(*label, chance.uniform(10, 14), 12, 7),), ground)) for label in concepts]
    )
    scenes = [training_scene(world, chance) for _ in range(_CHECKED)]
    whole = judged([draw(scene) for scene in scenes])
    mixtures = [with_garbage(world, scene, chance) for scene in scenes if scene.things]
    passed = judged([picture for picture, _ in mixtures])
    seen = [judged.labels == [label] for judged, label in zip(alone, concepts, strict=True)]
    right = [
        sorted(judged.labels) == sorted(thing.label for thing in scene.things)
        for judged, scene in zip(whole, scenes, strict=True)
    ]
    styles = [judged.style == scene.style for judged, scene in zip(whole, scenes, strict=True)]
    taken = [
        any(label in world.concepts and label not in labels for label in judged.labels)
        for judged, (_, labels) in zip(passed, mixtures, strict=True)
    ]
    return {
        "concepts": fmean(seen),
        "scenes": fmean(right),
        "styles": fmean(styles),
        "garbage taken for a concept": fmean(taken),
    }


def load_recogniser(world: World, path: Path) -> Recogniser:
    model = Recogniser(Names.of(world.drawing))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().requires_grad_(False)
