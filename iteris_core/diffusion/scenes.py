"""Scenes: captions in which several LoRAs meet, and for each of them a caption that its own teacher
can draw.

The student reads "a <v1> and a <v2>". A LoRA does not know the others' triggers, so the teacher of
<v2> reads "a red chair and a <v2>", with an ordinary thing of as many tokens in the place of <v1>:
its own words then stand at the same positions in both captions, and only they count.

One subject in a style is another matter: the style is in all of the picture, and two LoRAs of which
one says what and one how can be worn together. There the stack of both is the teacher and reads the
student's caption (`styled_forms`).
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CalibrationError
from .calibration import Calibration
from .captions import DETAILS, STYLE_PLACE, SUBJECT_PLACES, placeholders

T = TypeVar("T")
Kind = Literal["subject", "style"]
# Text -> where, in its context, the tokens of its words stand; without start, end and padding.
TokenPositions = Callable[[str], Sequence[int]]
_SMALL_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "with",
        "and",
        "or",
        "to",
        "for",
        "from",
        "by",
        "some",
    )
)


@dataclass(frozen=True)
class Trigger:
    """What a LoRA is called in captions: a noun phrase with its article for a subject, "in <s>
    style" for a style.
    """

    words: str
    kind: Kind = "subject"


@dataclass(frozen=True)
class Member:
    """One LoRA of a scene.

    Args:
        lora: Its number.
        caption: What its teacher reads; every other trigger is replaced by something ordinary.
        positions: Where its own words stand, in this caption and in the scene's.
        region: Which of the scene's regions is its; None: it has none.
    """

    lora: int
    caption: str
    positions: tuple[int, ...]
    region: int | None = None


@dataclass(frozen=True)
class Scene:
    """A caption with several triggers, and its members. ``layout``: how their regions lie; None:
    they have none.
    """

    caption: str
    members: tuple[Member, ...]
    layout: Literal["columns", "rows"] | None


def make_scenes(
    triggers: Sequence[Trigger], calibration: Calibration, token_positions: TokenPositions
) -> list[Scene]:
    """Return scenes: on average a LoRA takes part in ``trajectories``, or without pictures in as
    many as it keeps latents.

    Kinds of forms (two subjects, three, two and a style) come in turn; in each, all casts in all
    orders, in random forms. Forms of one subject in a style are left to `styled_forms`.

    Raises:
        CalibrationError: No form fits these LoRAs, or a trigger whose tokens cannot be lined up.
    """
    subjects, styles = by_kind(triggers)
    chance = random.Random(calibration.seed)
    decks = []
    forms: dict[tuple[int, int], list[str]] = {}
    styled = styled_forms(calibration)
    for form in calibration.scene_forms:
        if form not in styled:
            names = placeholders(form)
            forms.setdefault(
                (len(names) - names.count(STYLE_PLACE), names.count(STYLE_PLACE)), []
            ).append(form)
    for (of_subjects, of_styles), of_kind in forms.items():
        casts = itertools.product(
            itertools.permutations(subjects, of_subjects), itertools.permutations(styles, of_styles)
        )
        known = [(*cast, *style) for cast, style in casts]
        if known:
            decks.append(zip(shuffled(of_kind, chance), shuffled(known, chance), strict=False))
    if not decks and subjects and styles and styled:
        return []
    if not decks:
        raise CalibrationError(
            f"none of the scene forms fits {len(subjects)} subjects and {len(styles)} styles; give "
            "scene_forms that do, say which LoRAs are subjects, or set scene_weight to 0"
        )
    stage = _Stage(triggers, calibration, token_positions, chance)
    runs = calibration.trajectories * (1 if calibration.scene_pictures else calibration.timesteps)
    scenes = []
    parts = 0
    for deck in itertools.cycle(decks):
        scenes.append(stage.scene(*next(deck)))
        parts += len(scenes[-1].members)
        if parts >= runs * len(triggers):
            break
    return scenes


def styled_forms(calibration: Calibration) -> list[str]:
    """Return the scene forms of one subject in a style."""
    return [
        form
        for form in calibration.scene_forms
        if sorted(placeholders(form)) == sorted((SUBJECT_PLACES[0], STYLE_PLACE))
    ]


def by_kind(triggers: Sequence[Trigger]) -> tuple[list[int], list[int]]:
    """Return the numbers of the subjects, and of the styles."""
    subjects, styles = (
        [k for k, t in enumerate(triggers) if t.kind == kind] for kind in ("subject", "style")
    )
    return subjects, styles


def shuffled(cards: Sequence[T], chance: random.Random) -> Iterator[T]:
    """Yield all cards in random order, again and again."""
    while True:
        yield from chance.sample(cards, len(cards))


@dataclass
class _Stage:
    triggers: Sequence[Trigger]
    calibration: Calibration
    token_positions: TokenPositions
    chance: random.Random
    counts: dict[str, int] = field(default_factory=dict)

    def scene(self, form: str, cast: Sequence[int]) -> Scene:
        names = placeholders(form)
        layout = layout_of(form)
        numbered = sorted(names, key=[*SUBJECT_PLACES, STYLE_PLACE].index)
        words = {name: self.triggers[k].words for name, k in zip(numbered, cast, strict=True)}
        regions = regions_of(form) if layout else {}
        caption = form.format(**words)
        members = []
        for name, k in zip(numbered, cast, strict=True):
            alone = {**self.stand_ins(names, words, name), name: words[name]}
            positions = self.positions(form, words, name)
            if positions != self.positions(form, alone, name):
                raise CalibrationError(
                    f"{words[name]!r} stands at other tokens in {form.format(**alone)!r} than in "
                    f"{caption!r}"
                )
            members.append(Member(k, form.format(**alone), positions, regions.get(name)))
        return Scene(caption, tuple(members), layout)

    def stand_ins(self, names: Sequence[str], words: Mapping[str, str], own: str) -> dict[str, str]:
        """Return something ordinary for every place but one; before that place, of as many tokens
        as what it replaces.
        """
        found: dict[str, str] = {}
        for name in names:
            if name == own:
                continue
            is_style = name == STYLE_PLACE
            length = self.count(words[name])
            known = self.calibration.ordinary_styles if is_style else self.calibration.companions
            others = [phrase for phrase in known if phrase not in found.values()] or known
            fits = self.of_length(others, length, exact=names.index(name) < names.index(own))
            if fits is None:
                raise CalibrationError(
                    f"nothing ordinary has the {length} tokens of {words[name]!r}, so that "
                    f"{words[own]!r} cannot stand at the same place without it; add "
                    f"{'ordinary_styles' if is_style else 'companions'} of other lengths"
                )
            found[name] = fits
        return found

    def of_length(self, known: Sequence[str], length: int, *, exact: bool) -> str | None:
        """Return a known phrase, or the end of one, or one with details, that has this many tokens;
        None: there is none.
        """
        whole = [phrase for phrase in known if self.count(phrase) == length]
        if whole or not exact:
            return self.chance.choice(whole or list(known))
        ends = [end for phrase in known for end in _endings(phrase) if self.count(end) == length]
        if ends:
            return self.chance.choice(ends)
        detailed = (
            self.with_details(phrase, length) for phrase in self.chance.sample(known, len(known))
        )
        return next((phrase for phrase in detailed if phrase is not None), None)

    def with_details(self, phrase: str, length: int) -> str | None:
        details = [f", {detail}" for detail in DETAILS]
        while (gap := length - self.count(phrase)) > 0:
            fitting = [
                more
                for more in details
                if gap - self.count(more) == 0 or gap - self.count(more) > 1
            ]
            if not fitting:
                return None
            phrase += self.chance.choice(fitting)
        return phrase if gap == 0 else None

    def count(self, text: str) -> int:
        if text not in self.counts:
            self.counts[text] = len(self.token_positions(text))
        return self.counts[text]

    def positions(self, form: str, words: Mapping[str, str], own: str) -> tuple[int, ...]:
        """Return where the words at one place of a form stand, among the tokens of its whole
        caption.

        Raises:
            CalibrationError: The tokenizer joins them with their neighbours.
        """
        before, after = form.split(f"{{{own}}}")
        texts = [before.format(**words), words[own], after.format(**words)]
        start, count, rest = (self.count(text) for text in texts)
        whole = self.token_positions("".join(texts))
        if len(whole) != start + count + rest:
            raise CalibrationError(
                f"the tokens of {words[own]!r} cannot be told from their neighbours in "
                f"{''.join(texts)!r}: the tokenizer joins them. Set spaces around "
                "{...} in the scene form, or change the trigger"
            )
        return tuple(whole[start : start + count])


def _endings(phrase: str) -> Iterator[str]:
    """Yield what is left of a phrase without its first words: "a man in a blue coat" -> "blue
    coat", "coat".
    """
    words = phrase.split()
    for start in range(1, len(words)):
        if words[start].lower() not in _SMALL_WORDS and not _SMALL_WORDS.intersection(
            map(str.lower, words[start:])
        ):
            yield " ".join(words[start:])


def layout_of(form: str) -> Literal["columns", "rows"] | None:
    """Return how a form's subjects lie in the picture; None where they overlap, or a style takes
    all of it.
    """
    if f"{{{STYLE_PLACE}}}" in form or re.search(
        r"\b(behind|in front of|inside|on top of)\b", form
    ):
        return None
    return "rows" if re.search(r"\b(above|over|below|under|beneath)\b", form) else "columns"


def regions_of(form: str) -> dict[str, int]:
    """Return the region of each place: in order of appearance, from the left or from above, unless
    the form says otherwise.
    """
    names = placeholders(form)
    backwards = re.search(
        r"\bright of\b|\bon the right\b.*\bon the left\b|\b(below|under|beneath)\b", form
    )
    return {name: i for i, name in enumerate(reversed(names) if backwards else names)}


def region_masks(
    layout: Literal["columns", "rows"], count: int, height: int, width: int
) -> list[Tensor]:
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
            "they are. Set scene_pictures to False"
        )
    return functional.adaptive_avg_pool2d(mask[None, None].float(), (height, width)).flatten()
