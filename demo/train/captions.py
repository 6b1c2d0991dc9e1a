"""The captions of the demo's scenes: those that the product makes of its words, and more."""

from __future__ import annotations

import random
from collections.abc import Sequence

from iteris_core.diffusion.captions import SCENE_PREFIXES

from .drawing import PLACES, STYLE, THINGS, Scene

OPENINGS = ("", "a photo of ", "a picture of ", "a drawing of ")
# words between two things -> how they lie, the first one on the left or above
MEETINGS = {
    "{0} and {1}": "columns",
    "{0} next to {1}": "columns",
    "{0} with {1}": "columns",
    "{0} beside {1}": "columns",
    "{0} together with {1}": "columns",
    "{0} near {1}": "columns",
    "both {0} and {1}": "columns",
    "{0} on the left, {1} on the right": "columns",
    "{0} with {1} in the background": "columns",
    "{0} in front of {1}": "columns",
    "{0} above {1}": "rows",
}
_COMMON = tuple(MEETINGS)[:3]
PREFIXED = 0.15


def captioned(
    chance: random.Random,
    things: Sequence[str],
    *,
    style: str = "",
    is_plain: bool = False,
) -> tuple[Scene, str]:
    """Return a scene of one or two things with its caption.

    Args:
        chance: Chooses form, place and all that the caption does not tell.
        things: One or two names.
        style: Words at the end of the caption that tell a style, or none.
        is_plain: Whether the place is never told, and no words without a meaning come first.
    """
    place = "" if is_plain or chance.random() < 0.7 else chance.choice([p for p in PLACES if p])
    layout = "single"
    text = things[0]
    if len(things) == 2:
        form = chance.choice(_COMMON) if chance.random() < 0.5 else chance.choice(list(MEETINGS))
        layout = MEETINGS[form]
        text = form.format(*things)
    text = chance.choice(OPENINGS) + text
    if not is_plain and chance.random() < PREFIXED:
        words = chance.sample(SCENE_PREFIXES, chance.randint(1, 3))
        text = " ".join([*words, text])
    text = " ".join(part for part in (text, place, style) if part)
    return Scene(tuple(things), layout, place, bool(style), chance.randrange(2**31)), text


def base_scene(chance: random.Random) -> tuple[Scene, str]:
    """Return a scene of ordinary things."""
    return captioned(chance, chance.sample(list(THINGS), 1 if chance.random() < 0.4 else 2))


def subject_scene(chance: random.Random, subject: str, *, alone: bool) -> tuple[Scene, str]:
    """Return a training picture of a subject, alone or next to an ordinary thing."""
    if alone:
        return captioned(chance, [subject], is_plain=True)
    things = [subject, chance.choice(list(THINGS))]
    chance.shuffle(things)
    return captioned(chance, things, is_plain=chance.random() < 0.5)


def style_scene(chance: random.Random) -> tuple[Scene, str]:
    """Return a training picture of the style: ordinary things."""
    things = chance.sample(list(THINGS), 1 if chance.random() < 0.5 else 2)
    return captioned(chance, things, style=STYLE, is_plain=True)
