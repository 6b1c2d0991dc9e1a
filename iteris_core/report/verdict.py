"""The verdict on a merge: how much of each LoRA it kept, a word for it, and what to do about it.

What a merge kept of a LoRA is 1 minus the error of the network's output on the LoRA's own prompts
that the merge has not seen. It counts what is missing and what was added alike: where a merge is
only too weak, it is the measured strength, and it is never more than that. Of the check's figures
this error goes along with recognition best over all worlds, and measured strength does not (rank
correlations of 0.3 to 0.5, and -0.2 to 0.1; "What the check on unseen prompts says" in
benchmarks/RESULTS.md).

The bounds of the levels are chosen, not derived. In 200 rows of merges whose pictures a recogniser
judged ("The levels of the verdict" there), concepts were recognised in 0.94 of the pictures from
0.75 on, in 0.52 between, and in 0.01 below 0.3, by the median. These rows have the error of whole
pictures, by method, and the check has that of single steps, by LoRA: a level is a hint, and a
picture is the proof.

Other runs of the check would have found something else. So what was kept has a range, the standard
error over the runs times Student's t, meant to be right nine times in ten ("How sure the verdict
is" there: 0.83 to 0.91 were). Where it reaches over a bound, the level is only the likeliest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..settings import called

Level = Literal["good", "weak", "lost"]
_BEST_FIRST: tuple[Level, ...] = ("good", "weak", "lost")

# What to do: check the merge on unseen prompts; merge by IterIS and not by the method that is
# named; make more sampling runs; allow a higher rank; give the LoRA more weight; use the merge at a
# higher strength; merge at lower strengths; weaken the LoRA that is named; merge fewer at once;
# write other prompts.
AdviceKind = Literal[
    "check",
    "method",
    "runs",
    "rank",
    "weight",
    "stronger",
    "weaker",
    "apart",
    "fewer",
    "prompts",
]

GOOD_FROM = 0.75
LOST_BELOW = 0.3
# Fewer sampling runs of a LoRA were not measured (rows "trajectories" in RESULTS.md).
_FEWEST_RUNS = 5
# A LoRA is behind another one that kept so much more.
_BEHIND = 0.1
# Of this many LoRAs on, fewer are easier to merge.
_MANY = 3
# Student's t that 19 of 20 do not exceed, for 1, 2, ... degrees of freedom.
_STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)


@dataclass(frozen=True)
class Advice:
    """What to do about a merge, or about what it kept of a LoRA.

    Args:
        kind: What to do.
        names: What it names: the method, or the LoRA that gets in the way; empty for the others.
    """

    kind: AdviceKind
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What a merge kept of one LoRA.

    Args:
        lora: Name of the LoRA.
        kept: 1 is all of it; 0 is nothing, or worse than nothing.
        level: A word for it.
        between: The lowest and the highest that it may be, as far as the check's runs tell; None if
            they are too few to tell.
        levels: The levels of this range, the best first.
        advice: What to do about it; None where it is good, or the verdict's advice is for all.
        unread: Share of its file that was not read, and so is not in the merge; 0: hardly any.
    """

    lora: str
    kept: float
    level: Level
    between: tuple[float, float] | None
    levels: tuple[Level, ...]
    advice: Advice | None = None
    unread: float = 0.0


@dataclass(frozen=True)
class Against:
    """A merge of several LoRAs against what is done without one; None is not measured.

    Args:
        leak: How much the LoRAs get into each other's prompts, the mean over pairs of
            `MergeReport.interference`.
        leak_stacked: The same of all LoRAs stacked.
        base: What the merge changes on the base model's prompts, relative to what all LoRAs stacked
            change there.
        average: What a plain average keeps of the LoRAs, the mean.
    """

    leak: float | None = None
    leak_stacked: float | None = None
    base: float | None = None
    average: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on a merge.

    Args:
        loras: What it kept of each LoRA; empty if it was not checked on unseen prompts.
        against: It against what is done without it.
        advice: What to do about the merge as a whole, and so about all that was not kept; None if
            there is nothing.
        good_from: What is kept of a LoRA is good from here on.
        lost_below: It is lost below here.
    """

    loras: tuple[Kept, ...] = ()
    against: Against = Against()
    advice: Advice | None = None
    good_from: float = GOOD_FROM
    lost_below: float = LOST_BELOW


@dataclass(frozen=True)
class Measured:
    """What was measured of one LoRA on its own prompts that the merge has not seen.

    Args:
        lora: Name of the LoRA.
        error: Error of the network's output, 1 is no better than the base model.
        strength: How much of the LoRA's effect is there; None where it has none.
        averaged: The error of the LoRAs' plain average; None where there is one LoRA.
        runs: Number of sampling runs on which it was measured.
        deviation: Standard error of the error over the runs; None: they are too few for one.
    """

    lora: str
    error: float
    strength: float | None
    averaged: float | None = None
    runs: int = 0
    deviation: float | None = None

    @property
    def kept(self) -> float:
        return _kept(self.error)

    @property
    def between(self) -> tuple[float, float] | None:
        """The range of what was kept, see `Kept`."""
        if self.deviation is None:
            return None
        reach = _STUDENT[min(self.runs - 1, len(_STUDENT)) - 1] * self.deviation
        return _kept(self.error + reach), _kept(max(0.0, self.error - reach))

    @property
    def is_mostly_weak(self) -> bool:
        """Whether a missing strength is more than half of the squared error."""
        missing = 0.0 if self.strength is None else max(0.0, 1 - self.strength)
        return missing**2 > self.error**2 / 2


@dataclass(frozen=True)
class Circumstances:
    """How a merge was made, as far as advice depends on it.

    Args:
        method: Name of the method that the user chose.
        runs: Number of sampling runs of a LoRA; None if it was not measured in sampling runs.
        can_check: Whether it could have been checked on unseen prompts, and was not asked to be.
        cut: What a cut to a requested rank costs, the median over layers; 0: none was requested.
        leaks: (LoRA, other LoRA) -> how much the other one gets into its prompts, stacked and
            merged.
        unread: Name of a LoRA -> share of its file that was not read, where that is much.
    """

    method: str = "iteris"
    runs: int | None = None
    can_check: bool = False
    cut: float = 0.0
    leaks: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    unread: Mapping[str, float] = field(default_factory=dict)


def verdict_of(
    measured: Sequence[Measured], base: float | None, circumstances: Circumstances
) -> Verdict:
    """Return the verdict on a merge.

    Args:
        measured: What was measured of each LoRA; empty if the merge was not checked.
        base: See `Against`.
        circumstances: How the merge was made.
    """
    against = _against(measured, base, circumstances.leaks)
    if not measured:
        return Verdict((), against, Advice("check") if circumstances.can_check else None)
    best = max(found.kept for found in measured)
    together = _advice_for_all(circumstances)
    loras = []
    for found in measured:
        level = level_of(found.kept)
        advice = None
        if level != "good" and together is None:
            advice = _advice(found, best, len(measured), circumstances)
        between = found.between
        levels = _levels(*between) if between else (level,)
        unread = circumstances.unread.get(found.lora, 0.0)
        loras.append(Kept(found.lora, found.kept, level, between, levels, advice, unread))
    is_good = all(kept.level == "good" for kept in loras)
    return Verdict(tuple(loras), against, None if is_good else together)


def level_of(kept: float) -> Level:
    """Return the word for what was kept of a LoRA."""
    if kept < LOST_BELOW:
        return "lost"
    return "good" if kept >= GOOD_FROM else "weak"


def _levels(lowest: float, highest: float) -> tuple[Level, ...]:
    """Return the levels of a range, the best first."""
    worst, best = (_BEST_FIRST.index(level_of(kept)) for kept in (lowest, highest))
    return _BEST_FIRST[best : worst + 1]


def lines_of(verdict: Verdict) -> list[str]:
    """Return the verdict in sentences for the user: one a LoRA, and one about the merge."""
    lines = [line_of(kept) for kept in verdict.loras]
    if verdict.advice is not None:
        lines.append(_sentence(verdict.advice))
    found = verdict.against
    parts = []
    if found.leak is not None and found.leak_stacked is not None:
        stacked = _percent(found.leak_stacked)
        parts.append(f"the LoRAs leak into each other {_percent(found.leak)}, stacked {stacked}")
    if found.base is not None:
        parts.append(f"the base model changes {_percent(found.base)} of what stacking changes")
    if found.average is not None:
        parts.append(f"a plain average keeps {_percent(found.average)}")
    return [*lines, "; ".join(parts)] if parts else lines


_ADVICE: dict[AdviceKind, str] = {
    "check": "not checked on unseen prompts: set {held_out} to 1 or more",
    "method": "merge with iteris instead of {0}",
    "runs": "make more sampling runs, 20 are usual",
    "rank": "allow a higher rank or a larger file",
    "weight": "raise its {weight}",
    "stronger": "load the merge at a higher strength, or lower {preserve_weight}",
    "weaker": "lower the strengths",
    "apart": "lower the strength of {0}, which gets into its prompts",
    "fewer": "merge fewer LoRAs at once, or write prompts closer to how you use it",
    "prompts": "write prompts closer to how you use it",
}


def line_of(kept: Kept) -> str:
    """Return what was kept of a LoRA in a sentence for the user, with what to do about it."""
    advice = "" if kept.advice is None else f": {_sentence(kept.advice)}"
    between = "" if kept.between is None else f" ({_range(*kept.between)})"
    likely = "likely " if len(kept.levels) > 1 else ""
    unread = f", {_percent(kept.unread)} of its file not read" if kept.unread else ""
    level = f"{likely}{kept.level}{unread}{advice}"
    return f"{kept.lora}: kept {_percent(kept.kept)}{between}, {level}"


def _sentence(advice: Advice) -> str:
    names = {name: called(name) for name in ("held_out", "weight", "preserve_weight")}
    return _ADVICE[advice.kind].format(*advice.names, **names)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _range(lowest: float, highest: float) -> str:
    return f"{100 * lowest:.0f} to {100 * highest:.0f}"


def _kept(error: float) -> float:
    return max(0.0, 1 - error) if math.isfinite(error) else 0.0


def _against(
    measured: Sequence[Measured],
    base: float | None,
    leaks: Mapping[tuple[str, str], tuple[float, float]],
) -> Against:
    names = {name for pair in leaks for name in pair}
    if len(measured) == 1 or len(names) == 1:
        return Against()  # nobody stacks one LoRA
    stacked, merged = zip(*leaks.values(), strict=True) if leaks else ((), ())
    averages = [_kept(found.averaged) for found in measured if found.averaged is not None]
    changed = [] if base is None else [base]
    return Against(*map(_mean, (merged, stacked, changed, averages)))


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing, or of what is not finite."""
    return statistics.mean(values) if values and all(map(math.isfinite, values)) else None


def _advice_for_all(made: Circumstances) -> Advice | None:
    """Return what explains a loss of any LoRA, if there is such a thing."""
    if made.method != "iteris":
        return Advice("method", (made.method,))
    if made.runs is not None and made.runs < _FEWEST_RUNS:
        return Advice("runs")
    return None


def _advice(found: Measured, best: float, loras: int, made: Circumstances) -> Advice:
    """Return what to do about a LoRA of which little was kept: the first that explains it."""
    if made.cut >= found.error / 2:
        return Advice("rank")
    if found.is_mostly_weak:
        return Advice("weight" if best - found.kept >= _BEHIND else "stronger")
    if not found.error <= 1:  # NaN is no good error either
        return Advice("weaker")
    others = {other: leak for (lora, other), (_, leak) in made.leaks.items() if lora == found.lora}
    worst = max(others, key=lambda other: others[other], default=None)
    if worst is not None and others[worst] >= found.error / 2:
        return Advice("apart", (worst,))
    return Advice("fewer" if loras >= _MANY else "prompts")
