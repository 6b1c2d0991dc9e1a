"""Metadata of a merged LoRA for other programs, as kohya and ModelSpec 1.0.1 define it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from torch import Tensor

from ..adapters import Adapter
from .families import Family
from .limits import MERGED_CHARACTERS, NAME_CHARACTERS, first, json_value
from .tensors import serialized

RECIPE_KEY = "iteris.recipe"  # the report's settings, as JSON; see `diffusion.recipe`
_SHORT_START = 0x100000
_SHORT_BYTES = 0x10000
_SHORT_DIGITS = 8
_MOST_MERGED = 100  # LoRAs of a merge


def base_metadata(family: Family, prediction_type: str) -> dict[str, str]:
    """Return what ModelSpec says about a base model besides its architecture."""
    side = family.resolution
    metadata = {
        "modelspec.implementation": family.implementation,
        "modelspec.prediction_type": prediction_type,
        "modelspec.resolution": f"{side}x{side}",
    }
    return {key: value for key, value in metadata.items() if value}


def merged_metadata(
    title: str, adapters: Sequence[Adapter], triggers: Sequence[str]
) -> dict[str, str]:
    """Return the metadata of a merge of LoRAs, besides their base model's; without a date: equal
    merges have equal files.

    Args:
        adapters: LoRAs whose titles are taken over.
        triggers: Trigger phrases of the LoRAs, each once.
    """
    metadata = {
        "ss_output_name": title,
        "modelspec.title": title,
        "modelspec.merged_from": ", ".join(map(_title, adapters)),
        "modelspec.trigger_phrase": ", ".join(triggers),
    }
    return {key: value for key, value in metadata.items() if value}


@dataclass(frozen=True)
class Origin:
    """Of which LoRAs a file is a merge, as far as it says so.

    Args:
        names: Their files, or else their titles.
        is_preview: Whether nothing was measured.
    """

    names: tuple[str, ...] = ()
    is_preview: bool = False


def origin_of(metadata: Mapping[str, str]) -> Origin:
    """Return what a file's recipe says of its origin, or else what it states for all programs."""
    try:
        recipe = json_value(metadata.get(RECIPE_KEY, ""))
        loras = [
            str(lora["file"] or lora["name"])
            for lora in recipe["loras"][:_MOST_MERGED]
            if lora["strength_model"] or lora["strength_clip"]
        ]
        is_preview = recipe["config"].get("measured") is False
    except (ValueError, AttributeError, TypeError, LookupError):
        stated = metadata.get("modelspec.merged_from", "")[:MERGED_CHARACTERS]
        return Origin(tuple(filter(None, stated.split(", "))))
    return Origin(tuple(first(loras, MERGED_CHARACTERS)), is_preview)


def _title(adapter: Adapter) -> str:
    title = adapter.metadata.get("modelspec.title", "")
    return title if title and len(title) <= NAME_CHARACTERS else adapter.name


def short_hash(file: BinaryIO) -> str:
    """Return the first digits of the SHA-256 of the 64 KiB from 1 MiB on, as in early A1111."""
    file.seek(_SHORT_START)
    return hashlib.sha256(file.read(_SHORT_BYTES)).hexdigest()[:_SHORT_DIGITS]


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes that A1111's extensions and kohya's trainers recognise a LoRA by, even
    after its metadata was changed.

    Both are of the file as it would be with ``ss_*`` metadata alone: the SHA-256 of what follows
    the header, and the `short_hash` (sd-scripts' ``precalculate_safetensors_hashes``).
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header, data = serialized(tensors, kept)
    model = hashlib.sha256(data).hexdigest()
    return {
        "sshs_model_hash": model,
        "sshs_legacy_hash": short_hash(io.BytesIO(header + data)),
        "modelspec.hash_sha256": f"0x{model}",
    }
