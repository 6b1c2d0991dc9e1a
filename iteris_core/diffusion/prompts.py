"""Prompts of LoRAs: the phrase for what one shows, and what a model reads of one that was written
for other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import CalibrationError
from ..settings import shown

_PICTURE_OF = re.compile(
    r"^(an? )?(photo(graph)?|picture|image|painting|drawing|portrait) of (?=\S)", re.IGNORECASE
)
_ARTICLE = re.compile(r"^(an?|the|some) (?=\S)", re.IGNORECASE)
# Where a noun phrase of a prompt begins or ends. Spaces are looked at once, however many there are.
_BOUNDARY = re.compile(
    r"(?:(?<!\s)\s+)?[,.;:!?()|]\s*|(?<![\w-])(of|in|on|at|to|with|without|from|by|for|near|behind|beside|under|"
    r"over|above|below|inside|between|against|through|next|and|or|while|as|is|are|that|who|wearing|"
    r"holding|sitting|standing|lying|walking|running|jumping|flying|riding|driving|playing|sleeping|"
    r"eating|reading|looking|smiling|posing)(?![\w-])\s*",
    re.IGNORECASE,
)
# A learned token (textual inversion), whose name may have signs that end a phrase elsewhere.
_LEARNED = re.compile(r"embedding:[^\s,]+", re.IGNORECASE)


def subject_in(prompt: str, trigger_words: Iterable[str]) -> str:
    """Return the phrase of a prompt that holds a trigger word; without one, the whole prompt
    without "a photo of" and the like.

    >>> subject_in("best quality, a photo of a sks dog on the beach, 4k", ("sks",))
    'a sks dog'
    >>> subject_in("a photo of a sks dog on the beach", ())
    'a sks dog on the beach'
    >>> subject_in("a photo of embedding:sks.v2 dog on the beach", ("sks.v2",))
    'embedding:sks.v2 dog'
    """
    prompt = _PICTURE_OF.sub("", prompt.strip())
    learned = [found.span() for found in _LEARNED.finditer(prompt)]
    boundaries = [
        boundary
        for boundary in _BOUNDARY.finditer(prompt)
        if not any(start < boundary.end() and boundary.start() < end for start, end in learned)
    ]
    for trigger in trigger_words:
        found = _words(trigger).search(prompt)
        if found:
            starts = [0, *(boundary.end() for boundary in boundaries)]
            start = max(start for start in starts if start <= found.start())
            ends = (boundary.start() for boundary in boundaries)
            end = next((end for end in ends if end >= found.end()), None)
            return prompt[start:end].strip()
    return prompt


def says(prompt: str, phrase: str) -> bool:
    """Whether a prompt has a phrase in it, whatever its article."""
    return _words(_ARTICLE.sub("", phrase)).search(prompt) is not None


def _words(phrase: str) -> re.Pattern[str]:
    """Return a pattern that finds a phrase, and no part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)


# What other programs act on in a prompt, and a model would read as words: prompts are pasted from
# pages where they are full of it.

# Tags that load another file, which is connected as a LoRA here.
_TAG = re.compile(r"<(?:lora|lyco|loha|hypernet):[^<>\n]*>", re.IGNORECASE)
# Words that cut a prompt into parts of their own. In a prompt of capitals they are words.
_CUT = re.compile(r"\b(?:BREAK|AND|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b")
# Of these a program draws one at random: {a|b}, and __name__ from a list.
_BRACES = re.compile(r"\{[^{}\n]*\}")
_WILDCARD = re.compile(r"(?<!\w)__[\w./-]{1,80}?__(?!\w)")
_COMMAS = re.compile(r"(?<!\s)\s*,(?:\s*,)+\s*")  # each run of blanks is looked at once
_SPACES = re.compile(r"[ \t]{2,}")


def plain_prompts(owner: str, prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return prompts as a model reads them, and what was taken out of them.

    Args:
        owner: Whose prompts they are, for errors, such as "LoRA 'cat': its".

    Raises:
        CalibrationError: A prompt has several readings; shows it.
    """
    read = []
    taken: list[str] = []
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
    # without any prompt left, the error is about an empty one
    return tuple(read) or ("",) * bool(taken), tuple(dict.fromkeys(taken))


def _check_one_reading(owner: str, prompt: str) -> None:
    choice = next((found for found in _BRACES.findall(prompt) if "|" in found), None)
    wildcard = _WILDCARD.search(prompt)
    several = choice or (wildcard and wildcard.group())
    if several:
        raise CalibrationError(
            f"{owner} prompt {shown(prompt)} has {shown(several)}, which would be another prompt "
            "each time. Write one prompt a line"
        )
