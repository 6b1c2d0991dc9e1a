"""What other programs act on in a prompt, and a model would read as words: prompts are pasted from
pages where they are full of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import CalibrationError
from ..settings import shown

# Tags that load another file, which is connected as a LoRA here.
_TAG = re.compile(r"<(?:lora|lyco|loha|hypernet):[^<>\n]*>", re.IGNORECASE)
# Words that cut a prompt into parts of their own. In a prompt of capitals they are words.
_CUT = re.compile(r"\b(?:BREAK|AND|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b")
# Of these a program draws one at random: {a|b}, and __name__ from a list.
_BRACES = re.compile(r"\{[^{}\n]*\}")
_WILDCARD = re.compile(r"(?<!\w)__[\w./-]{1,80}?__(?!\w)")
# The other lines of copied generation data: the negative prompt, which may have several lines, and
# settings, such as "Steps: 20, Sampler: Euler a, Seed: 1".
_NEGATIVE = re.compile(r"\s*Negative prompt:", re.IGNORECASE)
_SETTINGS = re.compile(r"\s*Steps:\s*\d+\s*,\s*[a-z][\w ]*:", re.IGNORECASE)
_COMMAS = re.compile(r"(?<!\s)\s*,(?:\s*,)+\s*")  # each run of blanks is looked at once
_SPACES = re.compile(r"[ \t]{2,}")


def plain(owner: str, prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return prompts as a model reads them, and what was taken out of them.

    Args:
        owner: Whose prompts they are, for errors, such as "LoRA 'cat': its".
        prompts: The prompts.

    Raises:
        CalibrationError: A prompt has several readings; shows it.
    """
    prompts, taken = _without_settings(prompts)
    read = []
    for prompt in prompts:
        _check_one_reading(owner, prompt)
        text = _TAG.sub("", prompt)
        cuts = any(map(str.islower, text)) or not _CUT.sub("", text).strip()
        found = [*_TAG.findall(prompt), *(_CUT.findall(text) if cuts else ())]
        text = _CUT.sub(",", text) if cuts else text
        if not found:
            read.append(prompt)
            continue
        taken += found
        text = _COMMAS.sub(", ", _SPACES.sub(" ", text)).strip(" ,\t")
        if text:
            read.append(text)
    # without any prompt left, the error is that of an empty one
    return tuple(read) or ("",) * bool(taken), tuple(dict.fromkeys(taken))


def _without_settings(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the lines that are prompts, and the others: those that a negative prompt goes on with
    are told whole, since they could have been prompts.
    """
    kept: list[str] = []
    taken = []
    negative: int | None = None  # how many lines were kept when a negative prompt began
    for line in lines:
        if _NEGATIVE.match(line):
            negative = len(kept)
            taken.append("Negative prompt: …")
        elif _SETTINGS.match(line):
            rest = [] if negative is None else kept[negative:]
            kept = kept[: len(kept) - len(rest)]
            negative = None
            taken += [*map(shown, rest), "Steps: …"]
        else:
            kept.append(line)
    return kept, taken


def _check_one_reading(owner: str, prompt: str) -> None:
    choice = next((found for found in _BRACES.findall(prompt) if "|" in found), None)
    wildcard = _WILDCARD.search(prompt)
    several = choice or (wildcard and wildcard.group())
    if several:
        raise CalibrationError(
            f"{owner} prompt {shown(prompt)} has {shown(several)}, for which "
            "other programs draw one of several texts, and a model reads the signs themselves. "
            "Write the texts that it shall be measured on, each as a prompt of its own"
        )
