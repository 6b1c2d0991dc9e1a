"""The drawn scenes of the demo: ordinary things, two subjects, a style; 128 x 128 pixels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 128
_OVERSAMPLED = 4

Colour = tuple[int, int, int]
INK: Colour = (38, 34, 48)
BLUEPRINT: Colour = (24, 62, 140)
CHALK: Colour = (232, 242, 255)


@dataclass(frozen=True)
class Pen:
    """Draws shapes in units of a thing: its middle is (0, 0), its radius 1, y points down.

    Args:
        canvas: What is drawn on.
        centre: Middle of the thing in pixels.
        radius: Its radius in pixels.
        is_blueprint: Whether everything is drawn in white lines on blue.
    """

    canvas: ImageDraw.ImageDraw
    centre: tuple[float, float]
    radius: float
    is_blueprint: bool

    def _points(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        x, y = self.centre
        return [(x + self.radius * u, y + self.radius * v) for u, v in points]

    @property
    def _width(self) -> int:
        return round(3 * _OVERSAMPLED)

    def _fill(self, colour: Colour) -> Colour:
        return BLUEPRINT if self.is_blueprint else colour

    @property
    def _line(self) -> Colour:
        return CHALK if self.is_blueprint else INK

    def polygon(self, colour: Colour, *points: tuple[float, float]) -> None:
        placed = self._points(*points)
        self.canvas.polygon(placed, fill=self._fill(colour))
        self.canvas.line([*placed, *placed[:2]], fill=self._line, width=self._width, joint="curve")

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon(colour, (left, top), (right, top), (right, bottom), (left, bottom))

    def ellipse(
        self, colour: Colour, x: float, y: float, rx: float, ry: float | None = None
    ) -> None:
        ry = rx if ry is None else ry
        corners = self._points((x - rx, y - ry), (x + rx, y + ry))
        self.canvas.ellipse(corners, fill=self._fill(colour), outline=self._line, width=self._width)

    def line(self, *points: tuple[float, float], colour: Colour | None = None) -> None:
        chosen = self._line if colour is None or self.is_blueprint else colour
        self.canvas.line(self._points(*points), fill=chosen, width=self._width, joint="curve")


def _chair(pen: Pen) -> None:
    red = (206, 48, 44)
    for x in (-0.5, 0.5):
        pen.box(red, x - 0.12, 0.2, x + 0.12, 0.98)
    pen.box(red, -0.62, -0.98, -0.34, 0.3)
    pen.box(red, -0.62, 0.02, 0.66, 0.34)


def _dog(pen: Pen) -> None:
    fur = (196, 134, 70)
    for x in (-0.55, 0.35):
        pen.box(fur, x - 0.13, 0.3, x + 0.13, 0.95)
    pen.ellipse(fur, -0.1, 0.2, 0.72, 0.38)
    pen.ellipse(fur, 0.55, -0.35, 0.42)
    pen.ellipse((120, 72, 36), 0.28, -0.32, 0.16, 0.36)
    pen.ellipse(INK, 0.72, -0.38, 0.05)
    pen.line((-0.78, 0.1), (-0.98, -0.4))


def _table(pen: Pen) -> None:
    wood = (166, 104, 56)
    for x in (-0.7, 0.7):
        pen.box(wood, x - 0.11, 0.0, x + 0.11, 0.92)
    pen.box(wood, -0.98, -0.3, 0.98, 0.06)


def _glass(pen: Pen) -> None:
    pen.polygon((236, 246, 250), (-0.55, -0.9), (0.55, -0.9), (0.4, 0.92), (-0.4, 0.92))
    pen.polygon((74, 160, 220), (-0.5, -0.3), (0.5, -0.3), (0.4, 0.92), (-0.4, 0.92))


def _person(pen: Pen, coat: Colour, hair: Colour) -> None:
    pen.box((60, 60, 74), -0.3, 0.5, -0.02, 1.0)
    pen.box((60, 60, 74), 0.02, 0.5, 0.3, 1.0)
    pen.polygon(coat, (-0.34, -0.35), (0.34, -0.35), (0.52, 0.62), (-0.52, 0.62))
    pen.ellipse((240, 200, 164), 0, -0.62, 0.3)
    pen.polygon(hair, (-0.32, -0.66), (-0.24, -0.96), (0.24, -0.96), (0.32, -0.66))


def _man(pen: Pen) -> None:
    _person(pen, (44, 84, 190), (70, 44, 28))


def _woman(pen: Pen) -> None:
    _person(pen, (226, 120, 160), (186, 120, 40))
    pen.line((0.42, 0.1), (0.62, -0.6))
    pen.polygon((150, 60, 170), (0.1, -0.5), (0.3, -0.85), (0.62, -1.0), (0.92, -0.85), (1.1, -0.5))


def _bicycle(pen: Pen) -> None:
    for x in (-0.6, 0.6):
        pen.ellipse((250, 250, 250), x, 0.42, 0.42)
    green = (30, 140, 84)
    for points in (
        ((-0.6, 0.42), (-0.2, -0.3), (0.4, -0.3), (0.05, 0.42), (-0.6, 0.42)),
        ((-0.2, -0.3), (0.05, 0.42)),
        ((0.6, 0.42), (0.4, -0.3), (0.34, -0.6), (0.6, -0.66)),
        ((-0.4, -0.42), (-0.02, -0.42)),
    ):
        pen.line(*points, colour=green)


def _vase(pen: Pen) -> None:
    for x, colour in ((-0.5, (240, 200, 40)), (0.0, (226, 70, 110)), (0.5, (240, 130, 40))):
        pen.line((x, -0.55), (0, 0.2), colour=(40, 130, 60))
        pen.ellipse(colour, x, -0.65 - (0.15 if x == 0 else 0), 0.25)
    pen.polygon(
        (90, 170, 190),
        (-0.3, 0.0),
        (0.3, 0.0),
        (0.5, 0.5),
        (0.26, 0.96),
        (-0.26, 0.96),
        (-0.5, 0.5),
    )


def _car(pen: Pen) -> None:
    body = (224, 176, 52)
    pen.polygon(body, (-0.5, -0.2), (-0.3, -0.62), (0.35, -0.62), (0.6, -0.2))
    pen.box((190, 226, 240), -0.24, -0.5, 0.28, -0.2)
    pen.box(body, -0.98, -0.2, 0.98, 0.34)
    for x in (-0.55, 0.55):
        pen.ellipse((70, 70, 78), x, 0.36, 0.26)


def _cat(pen: Pen) -> None:
    black = (58, 54, 70)
    pen.line((0.5, 0.8), (0.9, 0.5), (0.8, 0.0))
    pen.ellipse(black, 0, 0.52, 0.52, 0.46)
    pen.polygon(black, (-0.46, -0.3), (-0.5, -0.95), (-0.08, -0.62))
    pen.polygon(black, (0.46, -0.3), (0.5, -0.95), (0.08, -0.62))
    pen.ellipse(black, 0, -0.28, 0.5, 0.44)
    for x in (-0.2, 0.2):
        pen.ellipse((190, 230, 90), x, -0.32, 0.12)


def _tree(pen: Pen) -> None:
    pen.box((124, 80, 46), -0.13, 0.2, 0.13, 0.98)
    for x, y, r in ((-0.36, 0.0, 0.38), (0.36, 0.0, 0.38), (0.0, -0.5, 0.48)):
        pen.ellipse((58, 150, 70), x, y, r)


def _books(pen: Pen) -> None:
    for y, left, right, colour in (
        (0.55, -0.85, 0.75, (150, 56, 60)),
        (0.12, -0.7, 0.85, (60, 120, 90)),
        (-0.31, -0.8, 0.65, (70, 90, 170)),
    ):
        pen.box(colour, left, y, right, y + 0.4)
        pen.line((left + 0.2, y), (left + 0.2, y + 0.4), colour=(240, 230, 200))


def _robot(pen: Pen) -> None:
    steel = (64, 196, 190)
    pen.line((0, -0.72), (0, -0.98))
    pen.ellipse((255, 84, 84), 0, -0.96, 0.13)
    pen.box((255, 208, 60), -0.98, -0.2, -0.72, 0.3)
    pen.box((255, 208, 60), 0.72, -0.2, 0.98, 0.3)
    pen.box(steel, -0.76, -0.7, 0.76, 0.92)
    for x in (-0.34, 0.34):
        pen.box((255, 255, 255), x - 0.22, -0.42, x + 0.22, -0.02)
        pen.box((230, 60, 120), x - 0.08, -0.3, x + 0.1, -0.1)
    pen.box((44, 60, 90), -0.5, 0.32, 0.5, 0.66)


def _owl(pen: Pen) -> None:
    purple = (146, 84, 190)
    pen.polygon(purple, (-0.62, -0.5), (-0.7, -1.0), (-0.1, -0.72))
    pen.polygon(purple, (0.62, -0.5), (0.7, -1.0), (0.1, -0.72))
    pen.ellipse(purple, 0, 0.1, 0.76, 0.86)
    pen.ellipse((250, 214, 140), 0, 0.5, 0.44, 0.42)
    for x in (-0.34, 0.34):
        pen.ellipse((255, 255, 255), x, -0.26, 0.34)
        pen.ellipse((34, 34, 40), x, -0.26, 0.13)
    pen.polygon((255, 150, 30), (-0.14, -0.04), (0.14, -0.04), (0.0, 0.28))


# ordinary things by the names that the product's own captions have for them
THINGS: dict[str, Callable[[Pen], None]] = {
    "a red chair": _chair,
    "a small dog": _dog,
    "a wooden table": _table,
    "a glass of water": _glass,
    "a man in a blue coat": _man,
    "a bicycle": _bicycle,
    "a vase of flowers": _vase,
    "an old car": _car,
    "a black cat": _cat,
    "a tall tree": _tree,
    "a pile of books": _books,
    "a woman with an umbrella": _woman,
}
SUBJECTS: dict[str, Callable[[Pen], None]] = {"a sks robot": _robot, "a zwx owl": _owl}
STYLE = "in qpr blueprint style"
ALL = {**THINGS, **SUBJECTS}

# words of a caption -> colours of wall and floor; one pair is taken
PLACES: dict[str, tuple[tuple[Colour, Colour], ...]] = {
    "": (
        ((246, 238, 222), (226, 206, 178)),
        ((226, 236, 244), (196, 208, 222)),
        ((240, 228, 236), (216, 198, 212)),
    ),
    "in a park": (((190, 226, 250), (140, 206, 116)),),
    "on a beach": (((206, 238, 250), (244, 222, 160)),),
    "at night": (((52, 58, 110), (84, 84, 132)),),
}
Layout = str  # "single", "columns" or "rows"


@dataclass(frozen=True)
class Scene:
    """A picture.

    Args:
        things: Names of one or two things, from the left or from above.
        layout: How they lie.
        place: A key of `PLACES`.
        is_blueprint: Whether it is drawn in the style.
        seed: Seed of what the caption does not tell.
    """

    things: tuple[str, ...]
    layout: Layout
    place: str
    is_blueprint: bool
    seed: int

    def draw(self) -> Image.Image:
        chance = random.Random(self.seed)
        wall, floor = chance.choice(PLACES[self.place])
        scale = _OVERSAMPLED
        side = SIDE * scale
        picture = Image.new("RGB", (side, side), BLUEPRINT if self.is_blueprint else wall)
        canvas = ImageDraw.Draw(picture)
        horizon = 92 * scale
        if self.is_blueprint:
            canvas.line([(0, horizon), (side, horizon)], fill=(96, 132, 200), width=2 * scale)
        else:
            canvas.rectangle([0, horizon, side, side], fill=floor)
        for (x, y, radius), name in zip(self._places(chance), self.things, strict=True):
            pen = Pen(canvas, (x * scale, y * scale), radius * scale, self.is_blueprint)
            ALL[name](pen)
        return picture.resize((SIDE, SIDE), Image.Resampling.BOX)

    def _places(self, chance: random.Random) -> Sequence[tuple[float, float, float]]:
        def near(value: float, by: float = 3) -> float:
            return value + chance.uniform(-by, by)

        if self.layout == "single":
            return [(near(64, 6), near(68, 4), near(41, 2))]
        if self.layout == "columns":
            return [(near(35), near(72), near(28, 1)), (near(93), near(72), near(28, 1))]
        return [(near(64, 5), near(34), near(27, 1)), (near(64, 5), near(95), near(27, 1))]
