"""Pictures of two LoRAs each, to check a merge.

There is no LoRA that can draw both. So the picture is made by both, each in its half. There each
reads the caption with an ordinary thing in the place of the other, and that is what the merged LoRA
is compared with when it reads the caption with both triggers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..tasks import Sample
from .calibration import Calibration
from .captions import SUBJECT_PLACES, layout_of, placeholders, regions_of
from .lora_use import LoraUse
from .model import DenoiserRow
from .plans import Contexts, TaskPlan
from .regions import region_masks
from .samples import Reading
from .sampling import Latents, Part, Run
from .scenes import by_kind

# The part of a run, from pure noise on, at whose levels a check compares outputs: they say more
# about what is drawn than later ones, and the runs are 40 % shorter (docs/why.md).
LOOKED_AT = 0.6
# Half of the captions begin in a way that no caption of a merge does.
_OPENINGS = ("", "a view of ")


@dataclass(frozen=True)
class HalfPicture:
    """One LoRA's half of a picture of two.

    Args:
        number: Number of the picture in the check.
        form: Its caption form, which says where the LoRAs are.
        place: Place of the LoRA in the form.
        both: Caption with both triggers.
        caption: Caption that the LoRA's teacher reads.
    """

    number: int
    form: str
    place: str
    both: str
    caption: str

    def region(self, shape: Sequence[int]) -> Tensor:
        """Return the mask (height, width) of the half in latents of a shape."""
        layout = layout_of(self.form)
        assert layout is not None  # see `make_together_plans`
        return region_masks(layout, 2, *shape[-2:])[regions_of(self.form)[self.place]]


@dataclass(frozen=True, eq=False)
class TogetherPlan(TaskPlan):
    """The plan of one LoRA's halves; all pictures of two share the number."""

    halves: tuple[HalfPicture, ...]

    def readings(self) -> list[Reading]:
        captions = [text for half in self.halves for text in (half.caption, half.both)]
        return self.with_negative(captions)

    def drawn_in(self) -> list[Run]:
        return [self._run(half) for half in self.halves]

    def runs(self, contexts: Contexts) -> dict[Run, Part]:
        negative = self.negative(contexts)
        return {
            self._run(half): Part(
                self.mix,
                contexts[self, Reading.of(half.caption)].teacher,
                negative,
                half.region,
            )
            for half in self.halves
        }

    def samples(self, contexts: Contexts, latents: Latents) -> list[Sample]:
        return [
            Sample(
                DenoiserRow(x, sigma, contexts[self, Reading.of(half.caption)].teacher),
                DenoiserRow(x, sigma, contexts[self, Reading.of(half.both)].student),
            )
            for half, (x, sigma) in self._kept(latents)
        ]

    def masks(self, latents: Latents) -> list[Tensor]:
        """Return the mask (height, width) of each sample's half."""
        return [half.region(latents.shape) for half, _ in self._kept(latents)]

    def _kept(self, latents: Latents) -> list[tuple[HalfPicture, tuple[Tensor, Tensor]]]:
        return [(half, kept) for half in self.halves for kept in latents.kept[self._run(half)]]

    def _run(self, half: HalfPicture) -> Run:
        return self.run("together", half.number)


def make_together_plans(
    loras: Sequence[LoraUse],
    calibration: Calibration,
    number: int,
) -> list[TogetherPlan]:
    """Return a plan for each subject that meets another; none without two subjects, or without
    forms and things for their captions.

    Each meets others about ``calibration.held_out`` times.

    Args:
        calibration: The calibration of the check, with its own seed.
        number: The number of the plans, which no other plan of the check has.
    """
    subjects, _ = by_kind(loras)
    forms = [  # that place two subjects apart
        form
        for form in calibration.scene_forms
        if sorted(placeholders(form)) == sorted(SUBJECT_PLACES[:2]) and layout_of(form)
    ]
    if len(subjects) < 2 or not (forms and calibration.companions):
        return []
    chance = random.Random(calibration.seed)
    pairs = list(itertools.permutations(subjects, 2))
    chance.shuffle(pairs)
    count = -(-calibration.held_out * len(subjects) // 2)
    halves: dict[int, list[HalfPicture]] = {}
    met = dict.fromkeys(subjects, 0)
    turns = dict.fromkeys(pairs, 0)
    for picture in range(count):
        # the LoRAs that have met least, then the order that came up least
        pair = min(pairs, key=lambda pair: (sum(met[k] for k in pair), turns[pair]))
        for k in pair:
            met[k] += 1
        turns[pair] += 1
        opening = _OPENINGS[(picture + picture // len(pairs)) % len(_OPENINGS)]
        form = opening + chance.choice(forms)
        words = {place: loras[k].called for place, k in zip(SUBJECT_PLACES[:2], pair, strict=True)}
        both = form.format(**words)
        for place, k in zip(SUBJECT_PLACES[:2], pair, strict=True):
            thing = chance.choice(calibration.companions)
            alone = {other: word if other == place else thing for other, word in words.items()}
            half = HalfPicture(picture, form, place, both, form.format(**alone))
            halves.setdefault(k, []).append(half)
    return [
        TogetherPlan(
            f"{loras[k].name} beside another LoRA",
            {k: 1.0},
            1.0,
            number,
            calibration,
            tuple(of_lora),
            looked_at=LOOKED_AT,
        )
        for k, of_lora in sorted(halves.items())
    ]
