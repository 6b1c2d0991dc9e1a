"""The verdict on a merge: what it kept of each LoRA, a word for it, whether two of them will be in
one picture, and what to do.

What a merge kept of a LoRA is how much of it the merge's pictures show, relative to the LoRA's own
pictures, on prompts of the LoRA and from seeds that the merge has not seen (`diffusion.drawn`). The
bounds of the words were fitted to what a recogniser saw in merges of a small world, good and bad
ones, and tried in worlds that were used for nothing else (docs/method.md has how often each
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

from ..settings import called

Level = Literal["good", "weak", "lost"]
_BEST_FIRST: tuple[Level, ...] = ("good", "weak", "lost")
Chance = Literal["likely", "uncertain", "unlikely"]
FidelityKind = Literal["own", "together", "base"]
# How a merge was made: from files alone, from layers that were measured, or polished after that.
Effort = Literal["estimated", "measured", "polished"]

# What to do: measure, and not merge the files alone; check the merge on unseen prompts; merge by
# IterIS and not by the named method; allow a higher rank; merge fewer at once. Each of them helped
# where it was tried (docs/method.md, "Advice"). Where none explains a loss, pictures come
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
# Runs that a range allows for besides those that were made, and what is kept in them: that much, or
# less, in pictures that do not show a LoRA at all.
_FAILING = 2
_FAILED = 0.2
# A run counts for no more than this, so that none makes up for others.
_MOST = 1.5
# A range that says nothing: the pictures disagree. The page has the same bound (web/report.js).
_SAYS_NOTHING = 0.8
# How far pictures of one LoRA usually differ (0.21 and 0.30 in the two worlds that judged this
# range), and how many runs that counts for: the spread of two runs alone says next to nothing.
_USUAL_SPREAD = 0.25
_USUAL_RUNS = 4
# Student's t that 19 of 20 do not exceed, for `_USUAL_RUNS` degrees of freedom and more.
_STUDENT = (2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)


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
        between: The lowest and the highest that it may be, as far as the check's runs tell; None if
            they are too few to tell.
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
class RunFidelity:
    """One sampling run of a task at the end of the network.

    In a picture that the merge drew (`diffusion.drawn`), `strength` is how much it shows of the
    LoRA, relative to pictures of the LoRA alone, and `error` is how far that is from 1. In all
    others:

    Args:
        error: ``||student - teacher|| / ||teacher - base||`` of the network's output, 0 is perfect,
            1 is no better than the base model. Where the teacher wears nothing: ``||student -
            base|| / ||stacked - base||``, what the merged adapter changes there, relative to what
            all adapters stacked would change.
        strength: ``<student - base, teacher - base> / ||teacher - base||^2``, how much of the
            teacher's effect is there, 1 is all of it; None where the teacher wears nothing.
    """

    error: float
    strength: float | None

    @property
    def kept(self) -> float:
        """The strength, at most `_MOST`; of a LoRA without an effect, how little was done
        instead.
        """
        kept = 1 - self.error if self.strength is None else self.strength
        return max(0.0, min(_MOST, kept)) if math.isfinite(kept) else 0.0


@dataclass(frozen=True)
class TaskFidelity:
    """One task at the end of the network, see `fidelity.fidelity`.

    Args:
        output_error: The mean error of its runs.
        strength: Their mean strength; None where the teacher wears nothing.
        kind: What the samples show: a LoRA's own prompts, several LoRAs in one picture, or the base
            model's prompts.
        runs: The sampling runs that the samples come from.
    """

    task: str
    output_error: float
    strength: float | None
    samples: int
    kind: FidelityKind = "own"
    runs: tuple[RunFidelity, ...] = ()

    @classmethod
    def of(cls, task: str, runs: Sequence[RunFidelity], samples: int) -> TaskFidelity:
        """Return the figures of a task's runs; each counts alike."""
        error = statistics.fmean(run.error for run in runs)
        strengths = [run.strength for run in runs if run.strength is not None]
        strength = statistics.fmean(strengths) if strengths else None
        return cls(task, error, strength, samples, runs=tuple(runs))

    @property
    def each_run(self) -> tuple[RunFidelity, ...]:
        """The runs; the means, where they are not told."""
        return self.runs or (RunFidelity(self.output_error, self.strength),)

    @property
    def kept(self) -> float:
        """What was kept of the LoRA, 0 to 1: the mean over runs."""
        return _within(statistics.fmean(run.kept for run in self.each_run))

    @property
    def between(self) -> tuple[float, float] | None:
        """The range of what was kept, see `Kept`.

        Student's t over the runs, whose spread is moderated by the usual one (G. Smyth, 2004,
        doi:10.2202/1544-6115.1027); and as low as two more runs would take it that do not show the
        LoRA, since few runs do not tell that it fails on some of its prompts. In a simulation it
        holds in 0.87 of the checks or more where one prompt in five fails (2, 3, 4 or 8 runs).
        """
        runs = len(self.runs)
        if runs < 2:
            return None
        found = [run.kept for run in self.runs]
        mean = statistics.fmean(found)
        freedom = runs - 1 + _USUAL_RUNS
        squares = (runs - 1) * statistics.variance(found) + _USUAL_RUNS * _USUAL_SPREAD**2
        student = _STUDENT[min(runs - 1, len(_STUDENT) - 1)]
        reach = student * (squares / freedom / runs) ** 0.5
        failing = (self.kept * runs + _FAILED * _FAILING) / (runs + _FAILING)
        return _within(min(mean - reach, failing)), _within(mean + reach)


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
    # what explains a loss of any LoRA
    for_all = None if made.method == "iteris" else Advice("method", (made.method,))
    levels_of_all = [level_of(found.kept) for found in own]
    loras = []
    for found, level in zip(own, levels_of_all, strict=True):
        is_told = level == "lost" or not made.on_transformer
        advice = None
        if level != "good" and is_told and for_all is None:
            advice = Advice(_advice(found, levels_of_all, made))
        between = found.between
        levels = _levels(*between) if between else (level,)
        share = unread.get(found.task, 0.0)
        loras.append(Kept(found.task, found.kept, level, between, levels, advice, share, is_told))
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


def lines_of(verdict: Verdict) -> list[str]:
    """Return the verdict in sentences for the user: what was not judged, one a LoRA, and some about
    the merge.
    """
    lines = []
    if verdict.unjudged is not None:
        lines.append(
            f"{verdict.unjudged}: not judged; look at pictures of it, merged and stacked; if the "
            "stack shows it better, use the stack"
        )
    lines += map(line_of, verdict.loras)
    if not all(kept.is_told for kept in verdict.loras):
        lines.append(
            "on models other than SDXL and SD1.5 this figure does not tell a good LoRA: look at "
            "pictures"
        )
    if verdict.together is not None:
        advice = verdict.together_advice
        to_do = "" if advice is None else f": {_sentence(advice)}"
        who = "both" if len(verdict.loras) == 2 else "two of them"
        lines.append(f"{who} together in one picture: {verdict.together}{to_do}")
    if verdict.advice is not None:
        lines.append(_sentence(verdict.advice))
    found = verdict.against
    parts = []
    if found.leak is not None and found.leak_stacked:
        by_files = "by their files, " if verdict.advice == Advice("measure") else ""
        less = _less(found.leak / found.leak_stacked)
        parts.append(f"{by_files}the LoRAs disturb each other {less} than stacked")
    if found.base is not None:
        parts.append(f"pictures of other things change {_less(found.base)} than stacked")
    return [*lines, "; ".join(parts)] if parts else lines


_ADVICE: dict[AdviceKind, str] = {
    "measure": "a preview: nothing was measured, and figures are estimates from the files. The "
    "preset Balanced measures and checks",
    "check": "not checked on unseen prompts: set {held_out} to 1 or more",
    "method": "merge with iteris instead of {0}",
    "rank": "allow a higher rank or a larger file",
    "fewer": "merge fewer LoRAs at once",
    "priority": "look at its pictures; if it does not show there, raise its priority",
    "polish": "look at pictures; if a LoRA does not show there, merge with the preset Polished, "
    "which takes 25 to 30 times as long with two LoRAs",
    "alone": "look at pictures; if a LoRA does not show there, use it unmerged",
    "together": "to get them into one picture, set {scene_weight} above 0",
    "compare": "look for both in pictures; only those can tell",
}


def line_of(kept: Kept) -> str:
    """Return what was kept of a LoRA in a sentence for the user, with what to do about it."""
    advice = "" if kept.advice is None else f": {_sentence(kept.advice)}"
    between = "" if kept.between is None else f" ({_range(*kept.between)})"
    if kept.is_uncertain:
        between = ", the check's pictures disagree"
    unread = f"; {_percent(kept.unread)} of its file not read" if kept.unread else ""
    return f"{kept.lora}: {kept.words}, kept {_percent(kept.kept)}{between}{unread}{advice}"


def _sentence(advice: Advice) -> str:
    names = {name: called(name) for name in ("held_out", "scene_weight")}
    return _ADVICE[advice.kind].format(*advice.names, **names)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _less(share: float) -> str:
    """Return a share of what stacking does as what is less than that, or more."""
    return f"{_percent(abs(1 - share))} {'more' if share > 1 else 'less'}"


def _range(lowest: float, highest: float) -> str:
    return f"{100 * lowest:.0f} to {100 * highest:.0f}"


def _within(share: float) -> float:
    return max(0.0, min(1.0, share))


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
    return "alone" if made.effort == "polished" else "polish"
