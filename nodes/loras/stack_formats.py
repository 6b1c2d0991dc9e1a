"""LoRA stacks in the formats of other packs: tuples, lists, dicts, and prompts with tags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from ...iteris_core import IterisError
from ...iteris_core.diffusion.lora_rows import TAG, Row, tagged
from ...iteris_core.settings import TRIGGER, shown, some_of

_NAMES = ("lora_name", "lora", "name", "file", "file_name", "filename", "path")
_MODEL_STRENGTHS = ("strength_model", "model_strength", "model_weight", "strength", "weight")
_CLIP_STRENGTHS = (
    "strength_clip",
    "clip_strength",
    "clip_weight",
    "strengthTwo",
    "strength_two",
    "clipStrength",
)
_SWITCHES = ("on", "enabled", "active")
_OFF = ("off", "false", "no", "0")
_STACKS = ("loras", "lora_stack", "lora_list", "stack", "items", "entries")
_BLOCK_WEIGHTS = ("lbw", "block_weight", "block_weights", "block_vector", "lora_block_weight")
_NOTHING = ("", "none", "[none]")
_DEEPEST = 16  # lists in a stack; known ones have three
_MOST_VALUES = 20_000  # of a stack; a LoRA takes up to 10


def read_stack(stack: Any) -> list[Row]:
    """Return the LoRAs of a stack that are switched on.

    Args:
        stack: A text, an entry, or any nesting of lists and dicts of entries. An entry is ``(name,
            model strength, clip strength)``, where the strengths may be missing, a name alone, or a
            dict with the names that other packs use.

    Raises:
        IterisError: Something in it is not one of these.
    """
    _check_size(stack)
    return list(_entries(stack, "the stack"))


def _check_size(stack: Any) -> None:
    """Refuse a stack that is nested too deep, as one that holds itself is, or too large.

    Raises:
        IterisError: Says which.
    """
    waiting = [(stack, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise IterisError(
                f"the stack has lists in lists, {_DEEPEST} deep, or {_MOST_VALUES} values; it "
                "probably holds itself. Connect the LORA_STACK output of a stacker"
            )
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, depth + 1) for item in value]


def _entries(value: Any, where: str) -> Iterator[Row]:
    if value is None:
        return
    if isinstance(value, str):
        yield from _in_prompt(value, where)
    elif isinstance(value, Mapping):
        yield from _of_dict(value, where)
    elif isinstance(value, (list, tuple)):
        yield from _of_list(value, where)
    else:
        raise IterisError(
            f"{where} is {shown(value)}, a {type(value).__name__}; a LoRA is (name, model "
            "strength, clip strength), a dict with 'lora' and 'strength', or a text with "
            "<lora:name:1.0>. Connect the LORA_STACK output of a stacker"
        )


def _of_dict(value: Mapping[str, Any], where: str) -> Iterator[Row]:
    if any(_is_off(value.get(key)) for key in _SWITCHES):
        return
    if any(
        isinstance(value.get(key), (Mapping, list, tuple)) for key in _STACKS
    ):  # a name next to it is the stack's own
        yield from _nested({key: item for key, item in value.items() if key in _STACKS}, where)
        return
    named = next(
        (key for key in _NAMES if value.get(key, 0) is None or isinstance(value.get(key), str)),
        None,
    )
    if named is None:
        yield from _nested(value, where)
    elif _is_named(value[named]):
        given = (_block_weights(value.get(key), where) for key in _BLOCK_WEIGHTS)
        blocks = next(filter(None, given), "")
        model = _number(value, _MODEL_STRENGTHS, 1.0, where)
        clip = _number(value, _CLIP_STRENGTHS, model, where)
        yield _entry(value[named], model, clip, where, blocks)


def _of_list(value: Sequence[Any], where: str) -> Iterator[Row]:
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
            yield from _entries(item, inside)


def _nested(value: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Read a dict of entries; other values besides them are settings of the stacker."""
    inner = {key: item for key, item in value.items() if isinstance(item, (Mapping, list, tuple))}
    if value and not inner:
        raise IterisError(
            f"{where} has {', '.join(map(shown, list(value)[:5]))}, and none of the names that a "
            f"LoRA file goes by ({', '.join(_NAMES)}). Connect the LORA_STACK output of a stacker"
        )
    for key, item in inner.items():
        yield from _entries(item, f"{where}[{shown(key)}]")


def _in_prompt(text: str, where: str) -> Iterator[Row]:
    """Yield the LoRAs that a prompt names; its other words are ignored."""
    for tag in TAG.finditer(text):
        if _is_named(tag[1]):
            yield tagged(tag, where)


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


def _is_off(switch: Any) -> bool:
    if isinstance(switch, str):
        return switch.strip().lower() in _OFF
    return isinstance(switch, (bool, int, float, Mapping, list, tuple)) and not switch


def _is_number(value: Any) -> bool:
    """Whether a value is a strength. None counts as a strength that is not given."""
    if isinstance(value, str):
        try:
            return float(value) is not None
        except ValueError:
            return False
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(entry: Mapping[str, Any], keys: Sequence[str], otherwise: float, where: str) -> float:
    value = next((entry[key] for key in keys if entry.get(key) is not None), otherwise)
    return _strength(value, where)


def _strength(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of tensors
        raise IterisError(
            f"{where} has the strength {shown(value)}, which is not a number; write one such as 1.0"
        ) from None


def prompts_by_name(
    text: str, names: Sequence[str], field: str = "prompts"
) -> dict[str, tuple[str, ...]]:
    """Return each LoRA's prompts from one text. ``name: prompt`` is for one LoRA, a line with
    ``{trigger}`` for all.

    Args:
        text: Prompts, one per line; may be empty.
        names: Names of the LoRAs, as in reports: the path without the suffix. A line may omit the
            folder, or have the LoRA's number instead, from 1 on. Two LoRAs of one name are the same
            file, and get the same prompts.
        field: The input that holds the text, for errors.

    Raises:
        IterisError: A line that is for no LoRA, or for several.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    numbered = {str(number): [name] for number, name in enumerate(names, 1)}
    names = list(found)
    ends: dict[str, list[str]] = {}
    for name in names:
        ends.setdefault(name.rpartition("/")[2], []).append(name)
    for number, line in enumerate(text.splitlines(), 1):
        start, colon, prompt = (part.strip() for part in line.partition(":"))
        start = start.replace("\\", "/").removesuffix(".safetensors")
        meant = [start] if start in found else ends.get(start) or numbered.get(start, [])
        if colon and len(meant) == 1:
            found[meant[0]] += [prompt] if prompt else []
        elif len(names) == 1 or TRIGGER in line:
            for name in found:
                found[name] += [line.strip()] if line.strip() else []
        elif line.strip():
            which = (
                f"{shown(start)} is the name of {len(meant)} of them"
                if meant
                else f"{line.strip()[:40]!r} begins with none"
            )
            raise IterisError(
                f"{field}, line {number}: which LoRA is it for? {which}. Write '{names[0]}: "
                f"{line.strip()[:40]}', or put {{trigger}} into a line that is for all; the LoRAs "
                f"are {some_of(names)}"
            )
    return {name: tuple(prompts) for name, prompts in found.items()}
