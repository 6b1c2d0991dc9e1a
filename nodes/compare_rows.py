"""What a comparison draws: the rows of its table, and the ways to draw each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..iteris_core import ConfigError
from ..iteris_core.report.records import Note
from .loras.prompts import lines

if TYPE_CHECKING:
    from ..iteris_core import Adapter
    from ..iteris_core.diffusion.lora_use import LoraUse

_MOST_PICTURES = 400  # of a table
BASE = 0  # the way without any LoRA


@dataclass(frozen=True)
class Row:
    """A prompt, and the ways to draw it.

    Args:
        prompt: Empty: none of the LoRAs has one.
        ways: Numbers of ways, see `worn_of`; the last one is the merge.
    """

    prompt: str
    ways: tuple[int, ...]

    @property
    def label(self) -> str:
        return self.prompt or "without a prompt"


def rows_of(text: str, uses: Sequence[LoraUse]) -> tuple[list[Row], list[Note]]:
    """Return the rows of the table, and notes about LoRAs without prompts and about what was taken
    out of the user's.

    Args:
        text: The user's prompts, one a line, each drawn in all ways; empty: see `own_rows`.

    Raises:
        CalibrationError: A prompt has several readings, see `plain_prompts`.
        ConfigError: A prompt is empty without its tags; or there is nothing to draw.
    """
    from ..iteris_core.diffusion.prompts import plain_prompts

    every = tuple(range(len(names_of(uses))))
    asked, taken = plain_prompts("the", lines(text))
    rows = [Row(prompt, every) for prompt in asked] or list(own_rows(uses))
    if not (rows and all(row.prompt for row in rows)) and (asked or not uses):
        raise ConfigError(
            "prompt has nothing to draw in it but tags and settings. Write one prompt a line"
            if asked
            else "the merged LoRA brings no prompts. Write one into prompt"
        )
    bare = [short(use.name) for use in uses if not (asked or use.prompts)]
    said = {
        f"without a prompt of its own: {', '.join(bare)}. Write one into prompt": bare,
        f"taken out of the prompts: {', '.join(taken)}": taken,
    }
    notes = [Note("prompts", text) for text, what in said.items() if what]
    return rows or [Row("", every)], notes


def check_pictures(rows: Sequence[Row]) -> None:
    """Refuse more pictures than anybody waits for.

    Raises:
        ConfigError: Says how many there are.
    """
    pictures = sum(len(row.ways) for row in rows)
    if pictures > _MOST_PICTURES:
        raise ConfigError(
            f"{len(rows)} prompts make {pictures} pictures, and at most {_MOST_PICTURES} are "
            "drawn. Write fewer prompts, one per line"
        )


def own_rows(uses: Sequence[LoraUse]) -> Iterator[Row]:
    """Yield the rows of LoRAs' own prompts: what shows most for its time.

    Each LoRA's first prompt is drawn by this LoRA, by all stacked, and by the merge: what it should
    be, what people do today, and what came out. On top all meet, next to the base model. No prompt
    is drawn twice: a merge and a LoRA of it may begin with the same one.
    """
    base, *alone = range(BASE, 1 + len(uses))
    last = range(1 + len(uses), len(names_of(uses)))
    ways: dict[str, list[int]] = {}
    if sum(bool(use.prompts) for use in uses) > 1:
        ways[meeting_of(uses)] = [base]
    for use, way in zip(uses, alone, strict=True):
        new = [prompt for prompt in use.prompts if prompt not in ways]
        for prompt in (new or use.prompts)[:1]:
            ways.setdefault(prompt, [] if len(uses) > 1 else [base]).append(way)
    for prompt, own in ways.items():
        yield Row(prompt, (*own, *last))


def meeting_of(uses: Sequence[LoraUse]) -> str:
    """Return a prompt where LoRAs meet: their subjects, in their styles, each once."""
    subjects, styles = (
        list(dict.fromkeys(use.called for use in uses if use.kind == kind and use.called))
        for kind in ("subject", "style")
    )
    *first, last = subjects or [""]
    meet = f"{', '.join(first)} and {last}" if first else last
    return ", ".join(part for part in [meet, *styles] if part)


def names_of(uses: Sequence[LoraUse], stack_strength: float = 1.0) -> list[str]:
    """Return the names of all ways to draw: the ways of `worn_of`, and the merge."""
    stacked = "stacked" if stack_strength == 1 else f"stacked at {stack_strength:g}"
    return ["base model", *map(name_of, uses), *([stacked] if len(uses) > 1 else []), "merged"]


def worn_of(loras: Sequence[Adapter], stack_strength: float = 1.0) -> list[list[Adapter]]:
    """Return what the model wears in each way but the merge: nothing, each LoRA alone, and all,
    where there are several.
    """
    stack = [lora.scaled(stack_strength) for lora in loras] if len(loras) > 1 else []
    return [[], *([lora] for lora in loras), *([stack] if stack else [])]


def name_of(use: LoraUse) -> str:
    """Return the name of a LoRA's pictures: its file's, with strengths that are not 1."""
    strengths = dict.fromkeys(f"{value:g}" for value in (use.strength_model, use.strength_clip))
    name = short(use.name)
    return name if list(strengths) == ["1"] else f"{name} {'/'.join(strengths)}"


def short(name: str) -> str:
    """Return a name without its folders."""
    return name.rpartition("/")[2] or name
