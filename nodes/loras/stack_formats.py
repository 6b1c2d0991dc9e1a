"""LoRA stacks in the formats of other packs: tuples, lists, and prompts with tags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from ...iteris_core import IterisError
from ...iteris_core.diffusion.lora_rows import TAG, Row, tagged
from ...iteris_core.settings import shown

_NOTHING = ("", "none", "[none]")
_DEEPEST = 16  # lists in a stack; known ones have three


def read_stack(stack: Any) -> list[Row]:
    """Return the LoRAs of a stack that are switched on.

    Args:
        stack: A text with tags, an entry, or any nesting of lists of entries. An entry is ``(name,
            model strength, clip strength)``, where the strengths may be missing, or a name alone.

    Raises:
        IterisError: Something in it is not one of these.
    """
    return list(_entries(stack, "the stack"))


def _entries(value: Any, where: str, depth: int = 0) -> Iterator[Row]:
    if depth > _DEEPEST:
        raise IterisError(
            f"the stack has lists in lists, {_DEEPEST} deep; it probably holds itself. Connect the "
            "LORA_STACK output of a stacker"
        )
    if value is None:
        return
    if isinstance(value, str):
        for tag in TAG.finditer(value):  # a prompt, whose other words are ignored
            if _is_named(tag[1]):
                yield tagged(tag, where)
    elif isinstance(value, (list, tuple)):
        yield from _of_list(value, where, depth + 1)
    else:
        raise IterisError(
            f"{where} is {shown(value)}, a {type(value).__name__}; a LoRA is (name, model "
            "strength, clip strength), or a text with <lora:name:1.0>. Connect the LORA_STACK "
            "output of a stacker"
        )


def _of_list(value: Sequence[Any], where: str, depth: int) -> Iterator[Row]:
    name = value[0] if value else None
    strengths = value[1:3]
    is_name = name is None or (isinstance(name, str) and not TAG.search(name))
    if len(value) > 1 and is_name and all(map(_is_number, strengths)):
        if _is_named(name):
            blocks = _block_weights(value[3] if len(value) > 3 else None, where)
            model, clip = [*strengths, None][:2]
            model = 1.0 if model is None else _strength(model, where)
            clip = model if clip is None else _strength(clip, where)
            yield _entry(name, model, clip, where, blocks)
        return
    for i, item in enumerate(value):
        inside = f"{where}[{i}]"
        if isinstance(item, str) and not TAG.search(item):
            yield from [_entry(item, 1.0, 1.0, inside)] if _is_named(item) else []
        else:
            yield from _entries(item, inside, depth)


def _entry(
    name: str, strength_model: float, strength_clip: float, where: str, blocks: str = ""
) -> Row:
    for strength in (strength_model, strength_clip):
        if not math.isfinite(strength):
            raise IterisError(
                f"{where}: {shown(name.strip())} has the strength {strength}; write a number "
                "such as 1.0"
            )
    return Row(name.strip(), strength_model, strength_clip, blocks=blocks, where=where)


def _block_weights(value: Any, where: str) -> str:
    """Return weights of blocks as a text; empty where an entry has none."""
    if isinstance(value, str):
        return "" if value.strip().lower() in _NOTHING else value.strip()
    if isinstance(value, (list, tuple)) and value:
        return ",".join(f"{_strength(item, where):g}" for item in value)
    return ""


def _is_named(name: str | None) -> TypeGuard[str]:
    return name is not None and name.strip().lower() not in _NOTHING


def _is_number(value: Any) -> bool:
    """Whether a value is a strength. None counts as a strength that is not given."""
    if isinstance(value, str):
        try:
            return float(value) is not None
        except ValueError:
            return False
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _strength(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of tensors
        raise IterisError(
            f"{where} has the strength {shown(value)}, which is not a number; write one such as 1.0"
        ) from None
