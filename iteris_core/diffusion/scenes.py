"""Scenes: captions in which several LoRAs meet, with a caption for each LoRA's teacher.

The student reads "a <v1> and a <v2>". A LoRA does not know the others' triggers, so the teacher of
<v2> reads "a red chair and a <v2>", with an ordinary thing of as many tokens in the place of <v1>:
its own words then stand at the same positions in both captions, and only they count.

One subject in a style is another matter. A subject LoRA and a style LoRA can be worn together,
since one decides the content and the other the rendering of the whole picture. There the stack of
both is the teacher, and reads the student's caption (`styled_forms`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from ..errors import CalibrationError
from .calibration import Calibration
from .captions import DETAILS, STYLE_PLACE, SUBJECT_PLACES, placeholders
from .lora_use import Kind, LoraUse
from .regions import Layout, layout_of, region_masks, regions_of

T = TypeVar("T")
# Text -> where, in its context, the tokens of its words stand; without start, end and padding.
TokenPositions = Callable[[str], Sequence[int]]
_ARTICLES = frozenset(("a", "an", "the", "some"))
_PREPOSITIONS = frozenset(("of", "in", "on", "at", "with", "to", "for", "from", "by"))
_SMALL_WORDS = _ARTICLES | _PREPOSITIONS | frozenset(("and", "or"))


@dataclass(frozen=True)
class Member:
    """One LoRA of a scene.

    Args:
        lora: Number of the LoRA in the merge.
        caption: Caption of its teacher, in which something ordinary replaces every other trigger.
        positions: Positions of its words among the tokens, the same in this caption and in the
            scene's.
        region: Number of its region among those of the scene; None: it has none.
    """

    lora: int
    caption: str
    positions: tuple[int, ...]
    region: int | None = None


@dataclass(frozen=True)
class Scene:
    """A caption with several triggers, and its members.

    Args:
        caption: Caption of the student.
        members: LoRAs of the scene.
        layout: Layout of their regions; None: they have none.
    """

    caption: str
    members: tuple[Member, ...]
    layout: Layout | None

    def has_region(self, member: Member) -> bool:
        """Whether a member has a part of the picture to itself."""
        return self.layout is not None and member.region is not None


def region_of(scene: Scene, member: Member, shape: Sequence[int]) -> Tensor:
    """Return the mask (height, width) of a member's region.

    Args:
        scene: The scene.
        member: A member that has a region.
        shape: (channels, height, width) of the latents.
    """
    if scene.layout is None or member.region is None:
        raise ValueError(f"LoRA {member.lora} has no region in {scene.caption!r}")
    return region_masks(scene.layout, len(scene.members), shape[1], shape[2])[member.region]


def make_scenes(
    loras: Sequence[LoraUse], calibration: Calibration, token_positions: TokenPositions
) -> list[Scene]:
    """Return scenes in which each LoRA takes part often enough.

    Each takes part ``trajectories`` times on average; without pictures, as many times as it keeps
    latents. The kinds of forms (two subjects, three, two and a style) come in turn. In each kind,
    all choices of LoRAs in all orders come up, in random forms. Forms of one subject in a style are
    left to `styled_forms`.

    Args:
        loras: The LoRAs of the merge.
        calibration: Settings with the forms, the ordinary things, and the number of scenes per
            LoRA.
        token_positions: See `TokenPositions`.

    Raises:
        CalibrationError: No form fits these LoRAs, or a trigger whose tokens cannot be lined up.
    """
    subjects, styles = by_kind(loras)
    chance = random.Random(calibration.seed)
    draws = [
        zip(shuffled(forms, chance), shuffled(casts, chance), strict=False)
        for forms, casts in _forms_and_casts(calibration, subjects, styles)
    ]
    if not draws and subjects and styles and styled_forms(calibration):
        return []
    if not draws:
        raise CalibrationError(
            f"none of the scene forms fits {len(subjects)} subjects and {len(styles)} styles; give "
            "scene_forms that do, say which LoRAs are subjects, or set scene_weight to 0"
        )
    writer = _SceneWriter(loras, calibration, token_positions, chance)
    often = calibration.trajectories * (1 if calibration.scene_pictures else calibration.timesteps)
    scenes: list[Scene] = []
    members = 0
    for draw in itertools.cycle(draws):
        form, cast = next(draw)
        scenes.append(writer.scene(form, cast))
        members += len(scenes[-1].members)
        if members >= often * len(loras):
            break
    return scenes


def _forms_and_casts(
    calibration: Calibration, subjects: Sequence[int], styles: Sequence[int]
) -> list[tuple[list[str], list[tuple[int, ...]]]]:
    """Return the kinds of scene forms that these LoRAs can fill: the forms of a kind, and every
    choice of LoRAs for it, subjects first.
    """
    styled = styled_forms(calibration)
    kinds: dict[tuple[int, int], list[str]] = {}
    for form in calibration.scene_forms:
        if form not in styled:
            names = placeholders(form)
            of_styles = names.count(STYLE_PLACE)
            kinds.setdefault((len(names) - of_styles, of_styles), []).append(form)
    possible = []
    for (of_subjects, of_styles), forms in kinds.items():
        casts = [
            (*chosen, *style)
            for chosen, style in itertools.product(
                itertools.permutations(subjects, of_subjects),
                itertools.permutations(styles, of_styles),
            )
        ]
        if casts:
            possible.append((forms, casts))
    return possible


def styled_forms(calibration: Calibration) -> list[str]:
    """Return the scene forms of one subject in a style."""
    return [
        form
        for form in calibration.scene_forms
        if sorted(placeholders(form)) == sorted((SUBJECT_PLACES[0], STYLE_PLACE))
    ]


def by_kind(loras: Sequence[LoraUse]) -> tuple[list[int], list[int]]:
    """Return the numbers of the subjects, and of the styles."""

    def of(kind: Kind) -> list[int]:
        return [k for k, lora in enumerate(loras) if lora.kind == kind]

    return of("subject"), of("style")


def shuffled(items: Sequence[T], chance: random.Random) -> Iterator[T]:
    """Yield all items in random order, again and again."""
    while True:
        yield from chance.sample(items, len(items))


@dataclass
class _SceneWriter:
    """Writes the captions of a scene; shared words stand at the same token positions."""

    loras: Sequence[LoraUse]
    calibration: Calibration
    token_positions: TokenPositions
    chance: random.Random
    counts: dict[str, int] = field(default_factory=dict)  # text -> its tokens, as asked so far

    def scene(self, form: str, cast: Sequence[int]) -> Scene:
        """Return the scene of a form and the LoRAs for its places, subjects first."""
        names = placeholders(form)
        layout = layout_of(form)
        numbered = sorted(names, key=[*SUBJECT_PLACES, STYLE_PLACE].index)
        words = {name: self.loras[k].called for name, k in zip(numbered, cast, strict=True)}
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
        """Return something ordinary for every place but one. Before that place, it has as many
        tokens as the trigger that it replaces.
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
        """Return an ordinary phrase of this many tokens, perhaps shortened or with details; None if
        there is none.
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
        """Return the token positions, in the whole caption, of the words at one place of a form.

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
    """Yield the endings of a phrase that begin with one of its words: "a man in a blue coat" ->
    "blue coat", "coat".
    """
    words = phrase.split()
    for start in range(1, len(words)):
        if words[start].lower() not in _SMALL_WORDS and not _SMALL_WORDS.intersection(
            map(str.lower, words[start:])
        ):
            yield " ".join(words[start:])
