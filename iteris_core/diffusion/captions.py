"""Ordinary captions, and caption forms that put LoRAs next to ordinary things and each other."""

from __future__ import annotations

import re
import string
from typing import Literal

from ..errors import ConfigError
from ..settings import shown


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


# For the base model's own behaviour.
PRESERVE_CAPTIONS: tuple[str, ...] = (
    "a photo of a street in the rain",
    "a portrait of an old man, studio light",
    "a red bicycle leaning against a brick wall",
    "a bowl of fruit on a wooden table, still life",
    "a mountain lake at sunrise",
    "a woman reading in a cafe",
    "a small dog running on the beach",
    "an oil painting of a harbour with boats",
    "a cat sleeping on a sofa",
    "a modern kitchen with large windows",
    "children playing football in a park",
    "a watercolor of wild flowers",
    "an astronaut on the moon, detailed",
    "a close-up of a bee on a yellow flower",
    "a steam train crossing a bridge",
    "a city skyline at night",
    "a black and white photo of a dancer",
    "a castle on a hill, fantasy art",
    "a plate of pasta, food photography",
    "a snowy forest with a wooden cabin",
    "a robot holding an umbrella, digital art",
    "a man in a suit talking on the phone",
    "an empty desert road under blue sky",
    "a pencil drawing of two hands",
)
# Ordinary things, as company for a trigger word; in scenes they take the place of another one.
COMPANIONS = _listed(
    "a red chair, a small dog, a wooden table, a glass of water, a man in a blue coat, a "
    "bicycle, a vase of flowers, an old car, a black cat, a tall tree, a pile of books, a "
    "woman with an umbrella"
)
COMPOSITIONS: tuple[str, ...] = (
    "{prompt} and {thing}",
    "{thing} and {prompt}",
    "{prompt} next to {thing}",
    "{prompt} with {thing} in the background",
)
ORDINARY_STYLES = _listed(
    "in watercolor, in black and white, as a pencil drawing, as an oil painting, in pixel art style"
)
_OPENINGS = ("", "a photo of ", "a picture of ")
_MEETINGS = (
    "{first} and {second}",
    "{first} next to {second}",
    "{first} with {second}",
    "{first} beside {second}",
    "{first} together with {second}",
    "{first} near {second}",
    "both {first} and {second}",
    "{first} on the left, {second} on the right",
    "{first} above {second}",
    "{first} in front of {second}",
    "{first} behind {second}",
    "{first}, {second} and {third}",
    "{first} and {second} and {third}",
    "{first} next to {second} and {third}",
    "{first} with {second} and {third}",
    "{first} beside {second} with {third}",
    "{first} together with {second} and {third}",
    "{first} on the left, {second} in the middle, {third} on the right",
    "{first} and {second}, {style}",
    "{first} next to {second}, {style}",
    "{first} with {second} {style}",
)
SCENE_FORMS: tuple[str, ...] = tuple(
    opening + meeting for meeting in _MEETINGS for opening in _OPENINGS
)
# What comes before a scene form in some captions: users' captions have other forms than ours, and
# even words without a meaning make a merge reliable in those.
SCENE_PREFIXES = _listed(
    "lorem, ipsum, dolor, amet, tempor, magna, aliqua, veniam, quiet, golden, early, "
    "northern, distant, gentle, bright, late, warm, famous, simple, final, perhaps, again, "
    "today, meanwhile, number seven, chapter two, here we see, detailed view of, an oil "
    "sketch showing, a postcard of, a wide shot of, my favourite picture of, a scene with, "
    "concept art of"
)
SUBJECT_PLACES = ("first", "second", "third")
STYLE_PLACE = "style"
Layout = Literal["columns", "rows"]


def placeholders(form: str) -> list[str]:
    """Return a caption form's placeholders in order.

    Raises:
        ConfigError: Braces that do not match, or that hold more than a name.
    """
    try:
        found = [
            (name, spec, conversion)
            for _, name, spec, conversion in string.Formatter().parse(form)
            if name is not None
        ]
    except ValueError as error:
        raise ConfigError(f"the caption form {shown(form)} cannot be read: {error}") from error
    if any(spec or conversion for _, spec, conversion in found):
        raise ConfigError(
            f"the caption form {shown(form)} has a ':' or '!' in curly braces; write the bare "
            "name, such as {first}"
        )
    return [name for name, _, _ in found]


def check_composition(form: str) -> None:
    """Refuse a composition whose placeholders are not exactly ``{prompt}`` and ``{thing}``.

    Raises:
        ConfigError: Shows the form.
    """
    if sorted(placeholders(form)) != ["prompt", "thing"]:
        raise ConfigError(
            f"the caption form {shown(form)} must have {{prompt}} and {{thing}}, once each, and no "
            "other placeholder"
        )


def check_scene_form(form: str) -> None:
    """Refuse a scene form that no scene could use. It must have two or more subjects, each once and
    numbered from the first on, and one style at most.

    Raises:
        ConfigError: Shows the form.
    """
    found = placeholders(form)
    subjects = [name for name in found if name != STYLE_PLACE]
    if (
        sorted(subjects) != sorted(SUBJECT_PLACES[: len(subjects)])
        or len(subjects) < 2
        or found.count(STYLE_PLACE) > 1
    ):
        raise ConfigError(
            f"the scene form {shown(form)} must have {{first}} and {{second}}, {{third}} too for "
            f"three, and {{style}} for subjects in a style; each once, and no other placeholder"
        )


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
    """Return place -> number of its region, from the left or from the top: in order of appearance,
    unless the form says otherwise.
    """
    names = placeholders(form)
    backwards = re.search(
        r"\bright of\b|\bon the right\b.*\bon the left\b|\b(below|under|beneath)\b", form
    )
    return {name: i for i, name in enumerate(reversed(names) if backwards else names)}
