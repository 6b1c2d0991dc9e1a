"""The verdict on a merge: what it kept of each LoRA, a word for it, whether two of them will be in
one picture, and what to do.

What a merge kept of a LoRA is how much of it the merge's pictures show, relative to the LoRA's own
pictures, on prompts of the LoRA and from seeds that the merge has not seen (`diffusion.drawn`). The
bounds of the words were fitted to what a recogniser saw in merges of a small world, good and bad
ones, and tried in worlds that were used for nothing else (docs/report.md has how often each
word is right).

Other pictures would have shown something else. So what was kept has a range, which is meant to be
right nine times in ten, see `TaskFidelity.between`. Where it includes a bound, the word is only the
likeliest; where it is nearly all that there is, no word is told, though the level counts. On a
transformer *good* was never right there: only *lost* is told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .runs import FidelityKind, TaskFidelity

Level = Literal["good", "weak", "lost"]
_BEST_FIRST: tuple[Level, ...] = ("good", "weak", "lost")
Chance = Literal["likely", "uncertain", "unlikely"]
# How a merge was made: from files alone, from layers that were measured, or polished after that.
Effort = Literal["estimated", "measured", "polished"]

# What to do: measure, and not merge the files alone; check the merge on unseen prompts; merge by
# IterIS and not by the named method; allow a higher rank; merge fewer at once. Each of them helped
# where it was tried (docs/report.md, "Advice"). Where none explains a loss, pictures come
# first, and then a higher priority, a polish, or no merge. Where two may not be seen in one
# picture, measure them together; where they were, only pictures tell.
AdviceKind = Literal[
    "measure",
    "check",
    "method",
    "rank",
    "fewer",
    "priority",
    "polish",
    "alone",
    "together",
    "compare",
]

GOOD_FROM = 0.68
LOST_BELOW = 0.65
# Mean error of two subjects in pictures of both: up to the first, both are likely to be seen; from
# the second on, they are not; between them it is uncertain.
TOGETHER_UP_TO = 0.55
APART_FROM = 0.85
# From this many LoRAs on, fewer are easier to merge.
_MANY = 3
# A range that says nothing: pictures disagree, or are too few (web/report.js has the same bound).
_SAYS_NOTHING = 0.8


@dataclass(frozen=True)
class Advice:
    """What to do about a merge, or about what it kept of a LoRA.

    Args:
        names: What it names: the method; empty for the others.
    """

    kind: AdviceKind
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What a merge kept of one LoRA.

    Args:
        kept: 1 is all of it; 0 is nothing, or worse than nothing.
        between: The lowest and the highest that it may be, as far as the check's runs tell; None
            where these are not known one by one.
        levels: The levels of this range, the best first.
        advice: What to do about it; None where it is good or not told, or the verdict's advice is
            for all.
        unread: Share of its file that was not read, and so is not in the merge; 0: hardly any.
        is_told: Whether its level is told; on a transformer only "lost" is.
    """

    lora: str
    kept: float
    level: Level
    between: tuple[float, float] | None
    levels: tuple[Level, ...]
    advice: Advice | None = None
    unread: float = 0.0
    is_told: bool = True

    @property
    def is_uncertain(self) -> bool:
        """Whether it may be nearly anything."""
        return self.between is not None and self.between[1] - self.between[0] >= _SAYS_NOTHING

    @property
    def words(self) -> str:
        """Its level, as far as the check can tell: "good", "likely good" or "uncertain"."""
        if self.is_uncertain or not self.is_told:
            return "uncertain"
        return f"{'likely ' if len(self.levels) > 1 else ''}{self.level}"


@dataclass(frozen=True)
class Against:
    """A merge of several LoRAs against all of them stacked; None is not measured.

    Args:
        leak: How much the LoRAs get into each other's prompts, the mean over pairs of
            `MergeReport.interference`.
        leak_stacked: The same of all LoRAs stacked.
        base: What the merge changes on the base model's prompts, relative to what all LoRAs stacked
            change there.
    """

    leak: float | None = None
    leak_stacked: float | None = None
    base: float | None = None


@dataclass(frozen=True)
class InStyle:
    """Subjects in the style of others, which no picture of the check shows."""

    subjects: tuple[str, ...]
    styles: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.subjects)} in the style of {', '.join(self.styles)}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a merge.

    Args:
        loras: What it kept of each LoRA; empty if it was not checked on unseen prompts.
        together: Whether two of its subjects will both be seen in one picture; None: not measured,
            or fewer than two.
        against: It against what is done without it.
        advice: What to do about the merge as a whole, and so about all that was not kept; None if
            there is nothing.
        good_from: What is kept of a LoRA is good from here on.
        lost_below: It is lost below here.
        together_advice: What to do where two may not be seen in one picture.
        unjudged: What was not judged, though each of its LoRAs was; None: there is nothing.
    """

    loras: tuple[Kept, ...] = ()
    together: Chance | None = None
    against: Against = Against()
    advice: Advice | None = None
    good_from: float = GOOD_FROM
    lost_below: float = LOST_BELOW
    together_advice: Advice | None = None
    unjudged: InStyle | None = None


@dataclass(frozen=True)
class Made:
    """How a merge was made.

    Args:
        cut: What a cut to a requested rank costs, the median over layers; 0: none was requested.
        has_scenes: Whether its LoRAs were measured together.
        on_transformer: Whether the diffusion model is a transformer.
    """

    method: str
    effort: Effort = "measured"
    cut: float = 0.0
    has_scenes: bool = False
    on_transformer: bool = False


def verdict_of(
    fidelity: Sequence[TaskFidelity],
    leaks: Mapping[tuple[str, str], tuple[float, float]],
    made: Made,
    *,
    can_check: bool,
    unread: Mapping[str, float],
    kinds: Mapping[str, str],
) -> Verdict:
    """Return the verdict on a merge.

    Args:
        fidelity: What was measured on unseen samples; empty if the merge was not checked.
        leaks: (task, LoRA) -> how much the LoRA gets into the task's prompts, stacked and merged.
        can_check: Whether it could have been checked on unseen prompts, and was not asked to be.
        unread: Name of a LoRA -> share of its file that was not read, where that is much.
        kinds: Name of a LoRA -> "subject" or "style".
    """
    own, together, base = (
        [entry for entry in fidelity if entry.kind == kind] for kind in get_args(FidelityKind)
    )
    against = _against(len(own), base, leaks)
    if not own:
        kind: AdviceKind = "measure" if made.effort == "estimated" else "check"
        return Verdict(against=against, advice=Advice(kind) if can_check else None)
    levels = [level_of(found.kept) for found in own]
    loras = [_kept(found, levels, made, unread.get(found.task, 0.0)) for found in own]
    # what explains a loss of any LoRA
    for_all = None if made.method == "iteris" else Advice("method", (made.method,))
    shared = {kept.advice for kept in loras}
    if for_all is None and len(loras) > 1 and len(shared) == 1:  # said once
        (for_all,) = shared
        loras = [replace(kept, advice=None) for kept in loras]
    is_good = all(kept.level == "good" or not kept.is_told for kept in loras)
    chance = _chance(together)
    of_two = None
    if chance in ("uncertain", "unlikely") and made.method == "iteris":
        of_two = Advice("compare" if made.has_scenes else "together")
    return Verdict(
        tuple(loras),
        chance,
        against,
        None if is_good else for_all,
        together_advice=of_two,
        unjudged=_in_style([found.task for found in own], kinds),
    )


def _kept(found: TaskFidelity, levels: Sequence[Level], made: Made, unread: float) -> Kept:
    """Return what was kept of one LoRA, with advice where the method does not explain a loss.

    Args:
        levels: Those of all LoRAs.
    """
    level = level_of(found.kept)
    between = found.between
    is_told = level == "lost" or not made.on_transformer
    advice = None
    if level != "good" and is_told and made.method == "iteris":
        advice = Advice(_advice(found, levels, made))
    of_range = _levels(*between) if between else (level,)
    return Kept(found.task, found.kept, level, between, of_range, advice, unread, is_told)


def _in_style(names: Sequence[str], kinds: Mapping[str, str]) -> InStyle | None:
    subjects, styles = (
        tuple(name for name in names if kinds.get(name) == kind) for kind in ("subject", "style")
    )
    return InStyle(subjects, styles) if subjects and styles else None


def level_of(kept: float) -> Level:
    """Return the word for what was kept of a LoRA."""
    if kept < LOST_BELOW:
        return "lost"
    return "good" if kept >= GOOD_FROM else "weak"


def _levels(lowest: float, highest: float) -> tuple[Level, ...]:
    """Return the levels of a range, the best first."""
    worst, best = (_BEST_FIRST.index(level_of(kept)) for kept in (lowest, highest))
    return _BEST_FIRST[best : worst + 1]


def _chance(together: Sequence[TaskFidelity]) -> Chance | None:
    """Return whether two subjects will both be seen, by the error of each in its half; None where
    that was not measured.
    """
    if len(together) < 2:
        return None
    errors = [
        min(1.0, run.error) if math.isfinite(run.error) else 1.0
        for found in together
        for run in found.each_run
    ]
    error = statistics.fmean(errors)
    if error <= TOGETHER_UP_TO:
        return "likely"
    return "unlikely" if error >= APART_FROM else "uncertain"


def _against(
    loras: int,
    base: Sequence[TaskFidelity],
    leaks: Mapping[tuple[str, str], tuple[float, float]],
) -> Against:
    measured = {lora for _, lora in leaks}
    between = {pair: leak for pair, leak in leaks.items() if pair[0] in measured}
    if loras == 1 or len({name for pair in between for name in pair}) == 1:
        return Against()  # nobody stacks one LoRA
    stacked, merged = zip(*between.values(), strict=True) if between else ((), ())
    return Against(*map(_mean, (merged, stacked, [entry.output_error for entry in base[:1]])))


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing, or of what is not finite."""
    return statistics.mean(values) if values and all(map(math.isfinite, values)) else None


def _advice(found: TaskFidelity, levels: Sequence[Level], made: Made) -> AdviceKind:
    """Return what to do about a LoRA that is not good: the first that explains it, or else what
    costs least.

    Args:
        levels: Those of all LoRAs.
    """
    if made.cut >= found.output_error / 2:
        return "rank"
    if len(levels) >= _MANY:
        return "fewer"
    if "good" in levels:
        return "priority"
    # on UNets a polish was no gain: docs/method.md
    return "polish" if made.on_transformer and made.effort != "polished" else "alone"
