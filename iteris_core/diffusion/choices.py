"""What a calibration chooses: captions of its tasks, and noise levels whose latents are kept."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from ..errors import CalibrationError
from ..files.trigger_words import has_words
from .calibration import Calibration
from .lora_use import LoraUse

# The multiples of each, modulo 1, cover an interval evenly, however many there are. Together they
# cover a square evenly, so that the choices made by one do not depend on those made by the other.
_GOLDEN_RATIO = 0.6180339887
_SQUARE_ROOT_OF_11 = 3.3166247904


def own_captions(lora: LoraUse, calibration: Calibration, seed: int) -> list[str]:
    """Return one caption per trajectory: a LoRA's prompts in turn, some of them replaced by their
    subject next to an ordinary thing.

    Raises:
        CalibrationError: No prompt, or one without words.
    """
    prompts = lora.prompts
    if not prompts or not all(map(has_words, prompts)):
        raise CalibrationError(
            "a prompt is empty, or of punctuation only; write at least one that contains "
            "the LoRA's trigger words"
        )
    rng = random.Random(seed)
    starts = staggered(len(prompts))
    captions = []
    for i in range(calibration.trajectories):
        turn, which = divmod(i, len(prompts))
        caption = prompts[which]
        if is_chosen(turn, calibration.composition_share, starts[which]):
            form = rng.choice(calibration.compositions)
            subject = lora.subject_of(caption)
            caption = form.format(prompt=subject, thing=rng.choice(calibration.companions))
        captions.append(caption)
    return captions


def is_chosen(index: int, share: float, start: float = 0.0) -> bool:
    """Whether item `index` falls in an evenly spread `share`; `start`, from 0 to below 1,
    shifts the pattern.
    """
    return math.floor((index + 1) * share + start) > math.floor(index * share + start)


def staggered(rows: int) -> list[float]:
    """Return a start for each row, for `is_chosen`, so that the share is right over all rows
    together, and does not correlate with the levels that `kept_levels` keeps.
    """
    starts = [0.0] * rows
    for rank, row in enumerate(sorted(range(rows), key=lambda row: row * _SQUARE_ROOT_OF_11 % 1)):
        starts[row] = rank / rows
    return starts


def base_captions(calibration: Calibration) -> list[str]:
    """Return captions for the preserve task, one per trajectory; none without such a task."""
    if not calibration.preserve_weight:
        return []
    known = calibration.preserve_captions
    return [known[i % len(known)] for i in range(calibration.trajectories)]


def kept_levels(calibration: Calibration, run: int) -> list[int]:
    """Return the noise levels that a sampling run keeps: evenly spread, with pure noise at 0, and
    staggered from one run to the next.
    """
    stride = calibration.levels / calibration.timesteps
    offset = (run * _GOLDEN_RATIO) % 1
    return [int((i + offset) * stride) for i in range(calibration.timesteps)]


def path_to(calibration: Calibration, kept: Sequence[int]) -> list[int]:
    """Return the noise levels that a run steps through, from pure noise to the last that it keeps.

    Its steps are only about as long as those of a whole run of ``calibration.sampling_steps``,
    since it stops at each level that it keeps.
    """
    path = [0]
    for level in kept:
        first = path[-1]
        steps = math.ceil((level - first) * calibration.sampling_steps / calibration.levels - 0.5)
        steps = max(steps, int(level > first))
        path += [first + (level - first) * step // steps for step in range(1, steps + 1)]
    return path
