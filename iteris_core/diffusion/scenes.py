"""Scenes: captions where several LoRAs meet, with a caption for each LoRA's teacher.

The student reads "a <v1> and a <v2>". A LoRA does not know the others' triggers, so the teacher of
<v2> reads "a red chair and a <v2>", with an ordinary thing in the place of <v1>. Its own words
count, wherever they stand in the two captions. So do the end and the padding, which have read all
of a caption. In the picture, the part that shows the LoRA's subject counts. Where text and
picture are read together, words cannot be told apart, and that part alone counts.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import CalibrationError
from ..settings import label, setting_to
from .calibration import Calibration
from .captions import STYLE_PLACE, SUBJECT_PLACES, layout_of, placeholders, regions_of
from .contexts import Pairing
from .lora_use import LoraUse
from .regions import Area
from .runs import is_chosen

T = TypeVar("T")
# Text -> positions of its words' tokens in its context, without start, end and padding.
TokenPositions = Callable[[str], Sequence[int]]
# Text -> a key that texts of one length share.
Length = Callable[[str], Hashable]
_PREFIXED = 0.5  # share of the captions
_MOST_PREFIXES = 4  # of one caption
_MOST_THINGS = 4  # that together stand in for one subject
_MOST_COMMAS = 12
_TRIES = 10
_CUT = "\0"  # in no caption


@dataclass(frozen=True)
class Member:
    """One LoRA of a scene.

    Args:
        lora: Number of the LoRA in the merge.
        caption: Caption of its teacher, where something ordinary replaces every other trigger.
        pairing: The tokens of this caption that answer to tokens of the scene's: its words, the end
            and the padding.
        area: Its part of the picture; None: it has none to itself.
    """

    lora: int
    caption: str
    pairing: Pairing
    area: Area | None = None


@dataclass(frozen=True)
class Scene:
    """A caption with several triggers, and its members.

    Args:
        caption: Caption of the student.
    """

    caption: str
    members: tuple[Member, ...]


def make_scenes(
    loras: Sequence[LoraUse],
    calibration: Calibration,
    token_positions: TokenPositions | None,
    length: Length | None = None,
) -> list[Scene]:
    """Return scenes in which each LoRA takes part ``trajectories`` times on average.

    The kinds of forms (two subjects, three, two and a style) take turns, in random forms with and
    without a prefix. The LoRAs that have met least often so far meet next; in the long run, in all
    orders.

    Args:
        token_positions: See `TokenPositions`; None: words cannot be paired, and only forms are used
            whose subjects lie apart.
        length: See `model.PictureTokens`; None: captions of all lengths share a call.

    Raises:
        CalibrationError: No form fits these LoRAs, a trigger whose tokens cannot be told from its
            neighbours', or one that is so long that nothing ordinary can stand in for it.
    """
    subjects, styles = (
        [k for k, lora in enumerate(loras) if lora.kind == kind] for kind in ("subject", "style")
    )
    possible = [
        form for form in calibration.scene_forms if token_positions is not None or layout_of(form)
    ]
    rng = random.Random(calibration.seed)
    met: Counter[tuple[int, int]] = Counter()
    draws = [
        zip(
            shuffled(forms, rng),
            _casts(groups, met, rng),
            prefixes(calibration, rng),
            strict=False,
        )
        for forms, groups in _forms_and_groups(possible, subjects, styles)
    ]
    if not draws:
        raise CalibrationError(
            f"none of the scene forms fits {len(subjects)} subjects and {len(styles)} styles; give "
            f"{label('scene_forms')} that do, say which LoRAs are subjects, or set "
            f"{setting_to('scene_weight', 0)}"
        )
    writer = _SceneWriter(loras, calibration, token_positions, length, rng)
    scenes: list[Scene] = []
    members = 0
    for draw in itertools.cycle(draws):
        form, cast, prefix = next(draw)
        scenes.append(writer.scene(form, cast, prefix))
        members += len(scenes[-1].members)
        if members >= calibration.trajectories * len(loras):
            break
    return scenes


# The LoRAs of a scene, in no order: subjects, and styles.
_Group = tuple[tuple[int, ...], tuple[int, ...]]


def _forms_and_groups(
    scene_forms: Sequence[str], subjects: Sequence[int], styles: Sequence[int]
) -> list[tuple[list[str], list[_Group]]]:
    """Return the kinds of scene forms that these LoRAs can fill: the forms of a kind, and every
    choice of LoRAs for it.
    """
    kinds: dict[tuple[int, int], list[str]] = {}
    for form in scene_forms:
        names = placeholders(form)
        of_styles = names.count(STYLE_PLACE)
        kinds.setdefault((len(names) - of_styles, of_styles), []).append(form)
    possible = []
    for (of_subjects, of_styles), forms in kinds.items():
        choices = itertools.product(
            itertools.combinations(subjects, of_subjects), itertools.combinations(styles, of_styles)
        )
        if groups := list(choices):
            possible.append((forms, groups))
    return possible


def _casts(
    groups: Sequence[_Group], met: Counter[tuple[int, int]], rng: random.Random
) -> Iterator[tuple[int, ...]]:
    """Yield LoRAs for the places of one kind of forms, subjects first: always a group whose LoRAs
    have met least often. The orders of a group take turns.

    Args:
        met: How often each two LoRAs have met so far, in scenes of all kinds; is kept up to date.
    """
    pairs, orders = {}, {}
    for group in groups:
        subjects, styles = group
        pairs[group] = list(itertools.combinations(subjects + styles, 2))
        every = itertools.product(itertools.permutations(subjects), itertools.permutations(styles))
        orders[group] = shuffled([first + last for first, last in every], rng)
    while True:
        group = min(groups, key=lambda group: (sum(met[p] for p in pairs[group]), rng.random()))
        met.update(pairs[group])
        yield next(orders[group])


def prefixes(calibration: Calibration, rng: random.Random) -> Iterator[str]:
    """Yield a prefix for one scene form after the other: nothing, or random words."""
    known = calibration.scene_prefixes
    for i in itertools.count():
        if known and is_chosen(i, _PREFIXED):
            count = min(rng.randint(1, _MOST_PREFIXES), len(known))
            yield " ".join(rng.sample(known, count)) + " "
        else:
            yield ""


def shuffled(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Yield all items in random order, again and again."""
    while True:
        yield from rng.sample(items, len(items))


@dataclass
class _SceneWriter:
    """Writes the captions of a scene."""

    loras: Sequence[LoraUse]
    calibration: Calibration
    token_positions: TokenPositions | None
    length: Length | None
    rng: random.Random

    def scene(self, form: str, cast: Sequence[int], prefix: str) -> Scene:
        """Return the scene of a form after a prefix.

        Args:
            cast: The LoRAs for its places, subjects first.
        """
        names = placeholders(form)
        layout = layout_of(form)
        numbered = sorted(names, key=[*SUBJECT_PLACES, STYLE_PLACE].index)
        words = {name: self.loras[k].called for name, k in zip(numbered, cast, strict=True)}
        regions = regions_of(form) if layout else {}
        form = prefix.replace("{", "{{").replace("}", "}}") + form  # its braces are just text
        members = []
        for name, k in zip(numbered, cast, strict=True):
            alone = self.alone(form, words, name)
            pairing = self.pairing(form, alone, words, name)
            area = Area(layout, len(names), regions[name]) if layout else None
            members.append(Member(k, form.format(**alone), pairing, area))
        return Scene(form.format(**words), tuple(members))

    def alone(self, form: str, words: Mapping[str, str], own: str) -> dict[str, str]:
        """Return a teacher's words for the places of a form: its own LoRA's, and something ordinary
        in all others, with as many tokens in all as the student reads.
        """
        others = [name for name in placeholders(form) if name != own]
        if self.length is None:
            things = shuffled(self.calibration.companions, self.rng)
            styles = shuffled(self.calibration.ordinary_styles, self.rng)
            stand_ins = {name: next(styles if name == STYLE_PLACE else things) for name in others}
            return {**words, **stand_ins}
        wanted = self.length(form.format(**words))
        first, *rest = others
        for _ in range(_TRIES):
            ordinary = dict(zip(rest, self.things(), strict=False))
            for thing in self.things():
                alone = {**words, **ordinary, first: thing}
                if self.length(form.format(**alone)) == wanted:
                    return alone
        raise CalibrationError(
            f"nothing ordinary has as many tokens as {words[first]!r} in the caption "
            f"{form.format(**words)!r}, in whose place it would be read. Say in fewer words what "
            "the LoRA is called, or write companions of that length"
        )

    def things(self) -> Iterator[str]:
        """Yield texts of many lengths: ordinary things in random order, first alone, then several
        joined, then with commas.
        """
        companions = ("it", *self.calibration.companions)
        for count in range(1, min(_MOST_THINGS, len(companions)) + 1):
            for _ in range(len(companions) * count):
                yield " and ".join(self.rng.sample(companions, count))
        for text, commas in itertools.product(companions, range(_MOST_COMMAS)):
            yield text + " ," * commas

    def pairing(
        self, form: str, alone: Mapping[str, str], words: Mapping[str, str], own: str
    ) -> Pairing:
        """Return which tokens of a form's two captions answer to each other.

        Args:
            alone: What the teacher reads in its places.
            words: What the student reads there.
        """
        if self.token_positions is None:
            return Pairing()
        student, student_end = _place(self.token_positions, form, words, own)
        teacher, teacher_end = _place(self.token_positions, form, alone, own)
        return Pairing(tuple(zip(teacher, student, strict=True)), (teacher_end, student_end))


def _place(
    token_positions: TokenPositions, form: str, words: Mapping[str, str], own: str
) -> tuple[Sequence[int], int]:
    """Return the positions of the tokens of one place's words in the caption of a form, and of the
    caption's end, after all words.
    """
    # filled in before it is cut, since a prefix may hold the name of a place in braces
    before, _, after = form.format(**{**words, own: _CUT}).partition(_CUT)
    texts = [before, words[own], after]
    start, count, rest = (len(token_positions(text)) for text in texts)
    whole = token_positions("".join(texts))
    if len(whole) != start + count + rest:
        raise CalibrationError(
            f"the tokens of {words[own]!r} cannot be told from their neighbours in "
            f"{''.join(texts)!r}: the tokenizer joins them. Set spaces around "
            "{...} in the scene form, or change the trigger"
        )
    return whole[start : start + count], whole[-1] + 1
