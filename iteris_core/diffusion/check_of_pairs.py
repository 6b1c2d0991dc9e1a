"""Pictures of two LoRAs each, to check a merge.

No LoRA can draw both. So both make the picture, each in its half, where it reads the caption with
an ordinary thing in the place of the other. The merged LoRA reads the caption with both triggers,
and is compared with them.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
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

# The first part of a run, where a check compares outputs: its noise levels say more about what is
# drawn than later ones, and the runs are 40 % shorter (docs/why.md).
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
    """The plan of one LoRA's halves; all such plans have the same `number`."""

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
        number: Number of all these plans, and of no other plan of the check.
    """
    subjects, _ = by_kind(loras)
    forms = [  # that place two subjects apart
        form
        for form in calibration.scene_forms
        if sorted(placeholders(form)) == sorted(SUBJECT_PLACES[:2]) and layout_of(form)
    ]
    if len(subjects) < 2 or not (forms and calibration.companions):
        return []
    rng = random.Random(calibration.seed)
    pairs = list(itertools.permutations(subjects, 2))
    rng.shuffle(pairs)
    count = -(-calibration.held_out * len(subjects) // 2)
    halves: dict[int, list[HalfPicture]] = {}
    for picture, pair in enumerate(itertools.islice(_meeting(pairs), count)):
        opening = _OPENINGS[(picture + picture // len(pairs)) % len(_OPENINGS)]
        form = opening + rng.choice(forms)
        words = {place: loras[k].called for place, k in zip(SUBJECT_PLACES[:2], pair, strict=True)}
        both = form.format(**words)
        for place, k in zip(SUBJECT_PLACES[:2], pair, strict=True):
            thing = rng.choice(calibration.companions)
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


def _meeting(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield pairs of LoRAs, without end: those that have met least, in the order that came up least
    so far.
    """
    met: Counter[int] = Counter()
    turns: Counter[tuple[int, int]] = Counter()
    while True:
        pair = min(pairs, key=lambda pair: (sum(met[k] for k in pair), turns[pair]))
        met.update(pair)
        turns[pair] += 1
        yield pair
