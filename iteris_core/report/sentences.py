"""A verdict in sentences for the user."""

from __future__ import annotations

from ..settings import TOGETHER, label, setting_to
from .verdict import Advice, AdviceKind, Kept, Verdict


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
        if verdict.together == "uncertain" and advice == Advice("together"):
            to_do = f": look at a picture of them; {_sentence(advice)}"
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
    "together": "to get two subjects into one picture, set {together}",
    "compare": "measured together; look for both in pictures",
}


def line_of(kept: Kept) -> str:
    """Return what was kept of a LoRA in a sentence for the user, with what to do about it."""
    advice = "" if kept.advice is None else f": {_sentence(kept.advice)}"
    between = "" if kept.between is None else f" ({_range(*kept.between)})"
    if kept.is_uncertain:
        between = ", the check's pictures leave it open"
    unread = f"; {_percent(kept.unread)} of its file not read" if kept.unread else ""
    return f"{kept.lora}: {kept.words}, kept {_percent(kept.kept)}{between}{unread}{advice}"


def _sentence(advice: Advice) -> str:
    names = {"held_out": label("held_out"), "together": setting_to("scene_weight", TOGETHER)}
    return _ADVICE[advice.kind].format(*advice.names, **names)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _less(share: float) -> str:
    """Return a share of what stacking does as what is less than that, or more."""
    return f"{_percent(abs(1 - share))} {'more' if share > 1 else 'less'}"


def _range(lowest: float, highest: float) -> str:
    return f"{100 * lowest:.0f} to {100 * highest:.0f}"
