"""The files of LoRAs for two models that share the noise levels, such as Wan 2.2's: which model a
file is for, by its name and its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from .words import VIDEO_MERGE

if TYPE_CHECKING:
    from torch import Tensor

Noise = Literal["high", "low"]
OTHER: Mapping[Noise, Noise] = {"high": "low", "low": "high"}
LOW_INPUT = "model_low_noise"
LOW_SOCKET = f"{LOW_INPUT} of {VIDEO_MERGE}"
# What marks the file of an expert by itself, and what marks it only if the other one's is there.
_SURE = re.compile(r"(?<![a-z])(high|low)[-_ ]?noise(?![a-z])", re.IGNORECASE)
_LIKELY = re.compile(r"(?<![a-z])(high|low|h|l)(?![a-z])|(high|low)(?=noise)", re.IGNORECASE)
_SWAPPED = {"high": "low", "low": "high", "h": "l", "l": "h"}
# How ai-toolkit begins the keys of a file with the LoRAs of both.
_COMBINED = re.compile(r"(?:^|\.)transformer_([12])\.")


def _swapped(found: re.Match[str]) -> str:
    word = _SWAPPED[found[0].lower()]
    if found[0].isupper():
        return word.upper()
    return word.capitalize() if found[0][0].isupper() else word


def partner_of(file: str, files: Iterable[str]) -> str | None:
    """Return the file for the other expert, by its name; None: there is none.

    >>> partner_of("dog-H.safetensors", ["dog-L.safetensors"])
    'dog-L.safetensors'
    """
    plain = {name.lower(): name for name in files}
    for found in _LIKELY.finditer(file):
        other = file[: found.start()] + _swapped(found) + file[found.end() :]
        if other.lower() in plain:
            return plain[other.lower()]
    return None


def expert_of(file: str, files: Iterable[str]) -> Noise | None:
    """Return the expert that a file is for, by its name; None: it is for both, or nothing tells.

    >>> expert_of("a_high_noise.safetensors", []), expert_of("low_poly.safetensors", [])
    ('high', None)
    """
    if found := _SURE.search(file):
        return "high" if found[1].lower() == "high" else "low"
    other = partner_of(file, files)
    if other is None:
        return None
    return "high" if file[_difference(file, other)].lower() == "h" else "low"


def _difference(name: str, other: str) -> int:
    """Return where two names begin to differ."""
    pairs = zip(name.lower(), other.lower(), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), -1)


def without_mark(name: str, other: str) -> str:
    """Return what the names of the two files of a LoRA have in common.

    >>> without_mark("styles/low_poly_dog_H", "styles/low_poly_dog_L")
    'styles/low_poly_dog'
    """
    differs = _difference(name, other)
    marks = [*_SURE.finditer(name), *_LIKELY.finditer(name)]
    mark = next((found for found in marks if found.start() <= differs < found.end()), None)
    bare = name if mark is None else name[: mark.start()] + name[mark.end() :]
    return re.sub(r"[-_ ]{2,}", "_", bare).strip("-_ ") or name


def split_by_expert(
    tensors: Mapping[str, Tensor],
) -> Mapping[Noise, Mapping[str, Tensor]] | None:
    """Return the tensors for each expert of a file with the LoRAs of both; None: it is not one."""
    split: dict[Noise, dict[str, Tensor]] = {"high": {}, "low": {}}
    for key, tensor in tensors.items():
        found = _COMBINED.search(key)
        if found is None:
            return None
        expert: Noise = "high" if found[1] == "1" else "low"
        split[expert][key.replace(f"transformer_{found[1]}.", "", 1)] = tensor
    return split if tensors else None


def named_expert(texts: Iterable[str]) -> Noise | None:
    """Return the one expert that names of files mention; None: none, or both."""
    found = {match[1].lower() for text in texts if (match := _SURE.search(text))}
    return None if len(found) != 1 else "high" if found == {"high"} else "low"
