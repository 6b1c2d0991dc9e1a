"""The LoRA of a row, with the prompts, the trigger words and the kind that its file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ..settings import TRIGGER
from .lora_use import Kind, LoraUse, with_prompts

if TYPE_CHECKING:
    from ..files.trigger_words import TriggerWords
    from .lora_rows import Row

_SEARCHED = 8  # words of a file: a subject may have many, for its clothes and their styles
# What tells kinds apart: as words, and between "_" and digits.
_STYLE = re.compile(r"(?<![a-z])(?:art)?styles?(?![a-z])", re.IGNORECASE)
_LIKE_STYLE = re.compile(
    r"(?<![a-z])(?:aesthetic|blueprint|comic|drawing|illustration|line ?art|painting|pixel ?art|"
    r"sketch|watercolou?r)s?(?![a-z])",
    re.IGNORECASE,
)
_LIKE_SUBJECT = re.compile(
    r"(?<![a-z0-9])(?:animal|bird|boy|building|car|cat|character|child|clothe|creature|dog|doll|"
    r"dragon|dress|face|female|flower|fox|girl|hair|horse|house|kitten|male|man|men|monster|outfit|"
    r"owl|person|plant|puppy|robot|shoe|sword|toy|vehicle|weapon|woman|women)s?(?![a-z])",
    re.IGNORECASE,
)


def use_as_written(row: Row, name: str, file: str | None, more: Sequence[str] = ()) -> LoraUse:
    """Return the LoRA of a row as written, without words from a file, which it may not have.

    Raises:
        ConfigError: Weights of blocks or patterns of layers that cannot be read.
    """
    return LoraUse(
        name=name,
        file=file,
        sha256="",
        strength_model=row.strength_model,
        strength_clip=row.strength_clip,
        prompts=(*row.prompts, *more),
        weight=row.priority,
        kind=row.kind or "subject",
        blocks=row.blocks,
        without=row.without,
    )


def use_of(
    row: Row, name: str, file: str, triggers: TriggerWords, more: Sequence[str] = ()
) -> LoraUse:
    """Return the LoRA of a row as it is to be merged, its prompts and what it is called filled in
    as far as its file names trigger words, see `check_prompts`.

    Raises:
        CalibrationError: A prompt needs trigger words, and the file names none.
        ConfigError: Weights of blocks or patterns of layers that cannot be read.
    """
    from ..files.trigger_words import with_trigger  # the pack's import reads no files

    use = use_as_written(row, name, file, more)
    if row.kind is None:
        use = replace(use, kind=likely_kind(file, triggers) or use.kind)
    called = row.called
    if TRIGGER in called and triggers.triggers:
        called = with_trigger(called, triggers.triggers[0])
    return replace(with_prompts(use, triggers), trigger=called)


def likely_kind(file: str, triggers: TriggerWords) -> Kind | None:
    """Return what a LoRA's file name and its trigger words say about its kind; None: nothing. A
    style may have been trained on people, so tags do not make a subject.
    """
    if triggers.kind:
        return cast(Kind, triggers.kind)
    names = [file, *triggers.triggers]
    if any(map(_STYLE.search, [file, *triggers.words[:_SEARCHED]])):
        return "style"
    if any(map(_LIKE_SUBJECT.search, names)):
        return "subject"
    return "style" if any(map(_LIKE_STYLE.search, names)) else None
