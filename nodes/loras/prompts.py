"""The prompts of LoRA files: written by the user, or made of the trigger words that a file's
metadata names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...iteris_core.errors import IterisError
from .. import host
from ..sockets import LoraEntry


def lines(text: str) -> tuple[str, ...]:
    """Return the non-empty lines of a text field."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def entry_of_file(
    lora_name: str,
    strength_model: float,
    strength_clip: float,
    prompts: Sequence[str],
    weight: float = 1.0,
) -> LoraEntry:
    """Return a LoRA file to merge, its prompts filled in; one whose strengths are 0 is left out
    later, and needs none.

    Raises:
        AdapterError: The file cannot be read.
        CalibrationError: No prompts, and the file names no trigger words.
    """
    from ...iteris_core.files.headers import lora_header
    from ...iteris_core.files.trigger_words import fill_in

    triggers = lora_header(host.lora_path(lora_name)).triggers
    if not (strength_model or strength_clip):
        return LoraEntry(lora_name, strength_model, strength_clip, tuple(prompts), weight)
    filled = fill_in(lora_name, prompts, triggers)
    source = "" if filled == tuple(prompts) else triggers.source
    return LoraEntry(lora_name, strength_model, strength_clip, filled, weight, source)


def triggers_of(entry: LoraEntry) -> tuple[str, ...]:
    """Return the trigger words that a LoRA's file names; none for one that is in no file."""
    from ...iteris_core.files.headers import lora_header

    return (
        lora_header(host.lora_path(entry.lora_name)).triggers.triggers
        if entry.tensors is None
        else ()
    )


def told(entries: Sequence[LoraEntry], note: str = "") -> dict[str, list[Any]]:
    """Return what a node shows about its LoRAs: as text, and as JSON for the pack's own web
    extension.
    """
    facts = [
        {
            "name": e.lora_name,
            "prompts": list(e.prompts),
            "source": e.prompts_from,
            "strengths": [e.strength_model, e.strength_clip],
        }
        for e in entries
    ]
    return {
        "text": ["\n".join([*map(_told, entries), *filter(None, [note])])],
        "iteris_loras": facts,
    }


def _told(entry: LoraEntry) -> str:
    source = (
        f", its trigger words from the file ({entry.prompts_from})" if entry.prompts_from else ""
    )
    prompts = "".join(f"\n  {prompt}" for prompt in entry.prompts)
    return (
        f"{entry.lora_name} at {entry.strength_model:g} / {entry.strength_clip:g}{source}:{prompts}"
    )


def about_lora(name: str) -> dict[str, Any]:
    """Return what a LoRA's file tells about itself, as JSON for the browser; what is wrong is told
    in ``error``.
    """
    from ...iteris_core.files.headers import lora_header
    from ...iteris_core.files.trigger_words import default_prompts

    answer: dict[str, Any] = {
        "name": name,
        "trigger_words": [],
        "prompts": [],
        "rank": 0,
        "base": "",
        "error": None,
    }
    if name not in host.lora_names():
        return answer | {
            "error": f"{name!r} is not in ComfyUI's list of LoRAs; press R to refresh it"
        }
    try:
        header = lora_header(host.lora_path(name))
    except IterisError as error:
        return answer | {"error": str(error)}
    return answer | {
        "trigger_words": list(header.triggers.words),
        "prompts": list(default_prompts(header.triggers)),
        "rank": header.rank,
        "base": header.base,
    }
