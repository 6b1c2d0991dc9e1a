"""The header of a safetensors file: what metadata it has, and where each tensor lies.

It is read here and not by the library, since the library maps a file into memory: whoever then
shortens the file ends the process. The rules are the library's: tensors lie one behind the other,
without gaps, and fill the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeGuard

import torch

from . import limits
from .budget import spend
from .layout import DTYPES

LENGTH_BYTES = 8  # of a header's length, at the start of a file
_METADATA = "__metadata__"
_TYPES = {name: dtype for dtype, name in DTYPES.items() if not dtype.is_complex}
_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Damaged(ValueError):
    """What is wrong with a file that is no whole safetensors file."""


class UnknownType(ValueError):
    """A tensor of a type that is not read."""


class BeyondLimits(ValueError):
    """What a file has more of than is read."""


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    Args:
        dtype: Type of its numbers.
        shape: Shape of the tensor.
        start: Its first byte, counted from the end of the header.
        end: The byte behind its last.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """The content of a header.

    Args:
        places: Key -> place of the tensor, by their keys.
        metadata: The metadata.
        start: The byte of the file at which the tensors begin.
    """

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    start: int


def read_layout(file: BinaryIO, size: int) -> Layout:
    """Read the header of a safetensors file.

    Args:
        file: The file, at its start.
        size: Its bytes.

    Raises:
        Damaged: It is no whole safetensors file.
        UnknownType: A tensor is of a type that is not read.
        BeyondLimits: See `limits`.
    """
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    start = LENGTH_BYTES + length
    if size < LENGTH_BYTES or start > size:
        raise Damaged("the header is longer than the file")
    if length > limits.HEADER_BYTES:
        raise BeyondLimits(
            f"its header has {length} bytes, of which {limits.HEADER_BYTES} are read"
        )
    spend(length)
    raw = file.read(length)
    try:
        places, metadata = _parsed(raw.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the header is no JSON: {error}") from None
    _check_places(places, size - start)
    return Layout(dict(sorted(places.items())), metadata, start)


def _parsed(text: str) -> tuple[dict[str, Place], dict[str, str]]:
    """Return the tensors and the metadata of a header.

    It is parsed entry by entry, so that neither its length nor its nesting sets the memory.
    """
    places: dict[str, Place] = {}
    metadata: dict[str, str] = {}

    def entry(key: str, at: int) -> int:
        spend()
        if key == _METADATA:
            return _object(text, at, field)
        value, end = _tensor(text, at)
        if len(key) > limits.KEY_LETTERS:
            raise BeyondLimits(
                f"the key {key[:60]!r}... has {len(key)} letters; {limits.KEY_LETTERS} are read"
            )
        if key in places:
            raise Damaged(f"two tensors have the key {key!r}")
        if len(places) == limits.TENSORS:
            raise BeyondLimits(f"it has more than {limits.TENSORS} tensors")
        places[key] = _place(key, value)
        return end

    def field(name: str, at: int) -> int:
        if len(metadata) == limits.METADATA_FIELDS:
            raise BeyondLimits(f"its metadata has more than {limits.METADATA_FIELDS} fields")
        metadata[name], end = _string(text, at)
        return end

    position = _blank(text, _object(text, 0, entry))
    if position != len(text):
        raise Damaged("something follows the header's last brace")
    return places, metadata


def _object(text: str, position: int, value: Callable[[str, int], int]) -> int:
    """Read an object from its brace on, and return the position behind it.

    Args:
        text: JSON.
        position: Position of the brace.
        value: Function (name, position) -> position behind the value that begins there.
    """
    position = _after(text, position, "{")
    if text[position : position + 1] == "}":
        return position + 1
    while True:
        name, position = _string(text, position)
        position = _after(text, _blank(text, position), ":")
        position = _blank(text, value(name, position))
        if text[position : position + 1] == "}":
            return position + 1
        position = _after(text, position, ",")


def _string(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] != '"':
        raise Damaged(f"the header has no text where one must be (letter {position})")
    value, end = _DECODER.raw_decode(text, position)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Damaged(f"the header has half a letter: {error.reason}") from None
    return value, end


def _tensor(text: str, position: int) -> tuple[Any, int]:
    """Return the entry of a tensor: an object without objects in it."""
    end = text.find("}", position, position + limits.ENTRY_LETTERS) + 1
    if text[position : position + 1] != "{" or not end:
        raise Damaged(f"the header has no tensor where one must be (letter {position})")
    return json.loads(text[position:end]), end


def _place(key: str, entry: Mapping[str, Any]) -> Place:
    shape = entry.get("shape")
    offsets = entry.get("data_offsets")
    dtype = entry.get("dtype")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise Damaged(f"{key!r} has no shape or no place in the file")
    if not isinstance(dtype, str):
        raise Damaged(f"{key!r} has no type")
    if dtype not in _TYPES:
        raise UnknownType(f"{key!r} is of the type {dtype!r:.20}, which is not read")
    if len(shape) > limits.DIMENSIONS:
        raise BeyondLimits(
            f"{key!r} has {len(shape)} dimensions, of which {limits.DIMENSIONS} are read"
        )
    if math.prod(max(side, 1) for side in shape) > limits.NUMBERS:
        raise BeyondLimits(f"{key!r} has sides that make more than {limits.NUMBERS} numbers")
    return Place(_TYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_places(places: Mapping[str, Place], size: int) -> None:
    """Refuse tensors that do not fill the bytes behind the header, one behind the other."""
    end = 0
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != end or place.end < place.start:
            raise Damaged(f"{key!r} does not begin where the tensor before it ends")
        if place.end - place.start != math.prod(place.shape) * place.dtype.itemsize:
            raise Damaged(f"{key!r} has another size than its shape {place.shape}")
        end = place.end
    if end != size:
        raise Damaged(f"the tensors have {end} bytes, but {size} follow the header")


def _blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _after(text: str, position: int, letter: str) -> int:
    """Return the position of what follows a letter that must be here."""
    position = _blank(text, position)
    if text[position : position + 1] != letter:
        raise Damaged(f"the header has no {letter!r} where one must be (letter {position})")
    return _blank(text, position + 1)
