"""LoRA stacks in the shapes in which other packs pass them on: tuples, lists, dicts, and ``<lora:name:1.0>`` in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..iteris_core import IterisError

_NAMES = ("lora_name", "lora", "name", "file", "file_name", "filename", "path")
_MODEL_STRENGTHS = ("strength_model", "model_strength", "model_weight", "strength", "weight")
_CLIP_STRENGTHS = ("strength_clip", "clip_strength", "clip_weight", "strengthTwo", "strength_two", "clipStrength")
_SWITCHES = ("on", "enabled", "active")
_TAG = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::([^:<>]*))?[^<>]*>", re.IGNORECASE)
_NOTHING = ("", "none", "[none]")


@dataclass(frozen=True)
class StackedLora:
    """One LoRA of a stack, by the name that the stack has for it."""

    name: str
    strength_model: float
    strength_clip: float


def read_stack(stack: Any) -> list[StackedLora]:
    """Return the LoRAs of a stack that are switched on.

    Args:
        stack: A text, an entry, or any nesting of lists and dicts of entries. An entry is ``(name, model strength, clip
            strength)``, of which the strengths may be missing, or a dict with the names that other packs use.

    Raises:
        IterisError: Something in it is none of these.
    """
    return list(_entries(stack, "the stack"))


def _entries(value: Any, where: str) -> Iterator[StackedLora]:
    if value is None:
        return
    if isinstance(value, str):
        yield from read_text(value)
    elif isinstance(value, Mapping):
        name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
        if name is None:
            yield from _nested(value, where)
        elif all(value.get(key) is not False for key in _SWITCHES):
            model = _number(value, _MODEL_STRENGTHS, 1.0, where)
            yield from _entry(name, model, _number(value, _CLIP_STRENGTHS, model, where))
    elif isinstance(value, Sequence):
        if value and isinstance(value[0], str) and not _TAG.search(value[0]) and all(_is_number(v) for v in value[1:3]):
            model, clip = [*value[1:3], *[None] * 2][:2]
            model = 1.0 if model is None else float(model)
            yield from _entry(value[0], model, model if clip is None else float(clip))
        else:
            for i, item in enumerate(value):
                yield from _entries(item, f"{where}[{i}]")
    else:
        raise IterisError(
            f"{where} is {value!r}, a {type(value).__name__}; a LoRA is (name, model strength, clip strength), a dict with "
            "'lora' and 'strength', or a text with <lora:name:1.0>. Connect the LORA_STACK output of a stacker"
        )


def _nested(value: Mapping[str, Any], where: str) -> Iterator[StackedLora]:
    """Read a dict of entries; other values beside them are settings of the stacker."""
    inner = {key: item for key, item in value.items() if isinstance(item, (Mapping, list, tuple))}
    if value and not inner:
        raise IterisError(
            f"{where} has {', '.join(map(repr, list(value)[:5]))}, and none of the names that a LoRA file goes by "
            f"({', '.join(_NAMES)}). Connect the LORA_STACK output of a stacker"
        )
    for key, item in inner.items():
        yield from _entries(item, f"{where}[{key!r}]")


def read_text(text: str) -> list[StackedLora]:
    """Return the LoRAs that a text names as ``<lora:name:model strength:clip strength>``; other words are left out."""
    found = []
    for tag in _TAG.finditer(text):
        try:
            model = float(tag[2]) if tag[2] else 1.0
            found += _entry(tag[1], model, float(tag[3]) if tag[3] else model)
        except ValueError:
            raise IterisError(f"{tag[0]}: a strength is no number; write <lora:name:1.0> or <lora:name:1.0:0.8>") from None
    return found


def _entry(name: str, strength_model: float, strength_clip: float) -> list[StackedLora]:
    name = name.strip()
    return [] if name.lower() in _NOTHING else [StackedLora(name, strength_model, strength_clip)]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(entry: Mapping[str, Any], keys: Sequence[str], otherwise: float, where: str) -> float:
    value = next((entry[key] for key in keys if entry.get(key) is not None), otherwise)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise IterisError(f"{where} has the strength {value!r}, which is no number; write one such as 1.0") from None


def find_name(wanted: str, names: Sequence[str]) -> str:
    """Return the file that a stack means: the name itself, or one without its folder or suffix if only one file fits.

    Raises:
        IterisError: No file, or more than one.
    """
    wanted = wanted.replace("\\", "/")
    shown = {name: name.replace("\\", "/") for name in names}
    tests = (
        lambda name: name == wanted,
        lambda name: name.removesuffix(".safetensors") == wanted,
        lambda name: wanted.endswith("/" + name),  # an absolute path
        lambda name: name.rpartition("/")[2] in (wanted, f"{wanted}.safetensors"),
    )
    for fits in tests:
        found = [name for name, plain in shown.items() if fits(plain)]
        if len(found) == 1:
            return found[0]
        if found:
            raise IterisError(f"{wanted!r} is the name of {len(found)} files: {', '.join(found)}. Write the folder with it")
    raise IterisError(
        f"{wanted!r} is in none of ComfyUI's loras folders; check the spelling in the stack, or put the file there and press R "
        "to refresh the lists"
    )


def prompts_by_name(text: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return each LoRA's prompts from one text: ``name: prompt`` is for one of them, a line with ``{trigger}`` for all.

    Args:
        text: One prompt per line; may be empty.
        names: Of the LoRAs, as shown in reports: the path without the suffix. A line may leave the folder out.

    Raises:
        IterisError: A line that is for no LoRA, or for several.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    for number, line in enumerate(text.splitlines(), 1):
        start, colon, prompt = (part.strip() for part in line.partition(":"))
        start = start.replace("\\", "/").removesuffix(".safetensors")
        meant = [name for name in names if name == start] or [name for name in names if name.rpartition("/")[2] == start]
        if colon and len(set(meant)) == 1:
            found[meant[0]] += [prompt] if prompt else []
        elif len(names) == 1 or "{trigger}" in line:
            for name in found:
                found[name] += [line.strip()] if line.strip() else []
        elif line.strip():
            which = (
                f"{start!r} is the name of {len(set(meant))} of them" if meant else f"{line.strip()[:40]!r} begins with none"
            )
            raise IterisError(
                f"prompts, line {number}: which LoRA is it for? {which}. Write '{names[0]}: {line.strip()[:40]}', or put "
                f"{{trigger}} into a line that is for all; the LoRAs are {', '.join(dict.fromkeys(names))}"
            )
    return {name: tuple(prompts) for name, prompts in found.items()}
