"""Safetensors files: read without pickle and within limits, written so that equal content has equal
bytes, and known by their hash.

The library safetensors reads and writes the tensors. It is given bytes and not a path, since it
would map the file into memory: if the file then shrinks, the process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import AdapterError, SaveError
from . import limits

_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_LENGTH_BYTES = 8  # of a header's length, at the start of a file
_ALIGNMENT = 8  # of the first tensor
_BLOCK_BYTES = 1 << 20
_METADATA = "__metadata__"
_TYPES = frozenset(
    ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"]
)


class _BeyondLimits(Exception):
    """What a file has more of than is read."""


@dataclass(frozen=True)
class _Header:
    """What a file says before its tensors: key -> shape by key, the metadata, and see `version`."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    version: tuple[int, int]


# --- reading ---


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors without content (on the device ``meta``), and its
    metadata.

    Raises:
        AdapterError: The file is missing, a pickle, truncated or something else, or has more of
            something than is read (see `limits`); names the next step.
    """
    with _opened(path) as (_, header):
        pass
    tensors = {key: torch.empty(shape, device="meta") for key, shape in header.shapes.items()}
    return tensors, dict(header.metadata)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    The tensors are copies in memory: what happens to the file afterwards does not change them.

    Raises:
        AdapterError: See `read_header`; also a file that is changed while it is read.
    """
    path = Path(path)
    with _opened(path) as (file, header):
        _, size = header.version
        if size > limits.FILE_BYTES:
            raise AdapterError(
                f"{path.name}: the file has {size} bytes, and an adapter of at most "
                f"{limits.FILE_BYTES} is read. It is probably a whole model; choose a LoRA"
            )
        file.seek(0)
        content = file.read()
        if len(content) != size or version(os.fstat(file.fileno())) != header.version:
            raise AdapterError(
                f"{path.name}: the file was changed while it was read; wait until the program that "
                "writes it has ended, and try again"
            )
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise _damaged(path.name, len(content), error) from error
    return {key: tensors[key] for key in header.shapes}, dict(header.metadata)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, _Header]]:
    with _one_sentence(path):
        if not path.is_file():
            raise AdapterError(
                f"{path}: there is no such file; give the path of a .safetensors file"
            )
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            # a header's length may begin like a pickle, but only a header begins with a brace
            is_pickle = start.startswith(_PICKLE_STARTS) and file.read(1) != b"{"
            if is_pickle or path.suffix in _PICKLE_SUFFIXES:
                raise AdapterError(
                    f"{path.name}: this is a pickle file, which can run code when it is opened; "
                    "IterIS reads only .safetensors. Convert it with a tool that you trust, or "
                    "download the safetensors version"
                )
            yield file, _header(file, path.name)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn what a disk can answer into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise AdapterError(
            f"{path.name}: the file cannot be read ({error.strerror or error}); look at its path "
            "and its permissions"
        ) from error


def _damaged(name: str, size: int, error: object) -> AdapterError:
    return AdapterError(
        f"{name}: not a whole safetensors file ({size} bytes; {error}); the download was probably "
        "cut off. Download it again"
    )


def _header(file: BinaryIO, name: str) -> _Header:
    status = os.fstat(file.fileno())
    size = status.st_size
    file.seek(0)
    try:
        entries, metadata = _entries(file, size)
    except _BeyondLimits as error:
        raise AdapterError(
            f"{name}: {error}. No adapter is known that needs so much, so the file is damaged or "
            "made to do harm; use another"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(name, size, error) from error
    odd = next((key for key, entry in entries.items() if entry["dtype"] not in _TYPES), None)
    if odd is not None:
        raise AdapterError(
            f"{name}: {odd!r} is of the type {entries[odd]['dtype']!r:.20}, which is not read. Use "
            "a version of it in float32, float16, bfloat16 or float8"
        )
    # the library checks, when they are read, that the tensors fill the file one after the other
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if file.tell() + end != size:
        raise _damaged(name, size, f"the tensors need {end} bytes, and it has {size - file.tell()}")
    shapes = {key: tuple(entry["shape"]) for key, entry in sorted(entries.items())}
    return _Header(shapes, metadata, version(status))


def _entries(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a header says of the tensors, by key, and the metadata."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if _LENGTH_BYTES + length > size:
        raise ValueError("the header is longer than the file")
    _check_most("the header has", length, limits.HEADER_BYTES, "bytes")
    entries = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the metadata are not texts")
    for text in (*entries, *metadata, *metadata.values()):
        text.encode("utf-8")  # half a character has no bytes
    for key, entry in entries.items():
        _check_entry(key, entry)
    return entries, metadata


def _check_entry(key: str, entry: Any) -> None:
    name = repr(key[:60])
    fields = entry if isinstance(entry, dict) else {}
    shape: Any = fields.get("shape")
    places: Any = fields.get("data_offsets")
    is_whole = isinstance(fields.get("dtype"), str) and _are_counts(shape) and _are_counts(places)
    if not is_whole or len(places) != 2:
        raise ValueError(f"{name} has no type, no shape or no place in the file")
    _check_most(f"the key {name}... has", len(key), limits.KEY_CHARACTERS, "characters")
    _check_most(f"{key!r} has", len(shape), limits.DIMENSIONS, "dimensions")
    numbers = math.prod(max(side, 1) for side in shape)
    _check_most(f"{key!r} has sides that make", numbers, limits.NUMBERS, "numbers")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_most(what: str, found: int, most: int, unit: str) -> None:
    if found > most:
        raise _BeyondLimits(f"{what} {found} {unit}, and at most {most} are read")


def version(status: os.stat_result) -> tuple[int, int]:
    """Return what tells one content of a file from another: its time and its size."""
    return status.st_mtime_ns, status.st_size


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits.

    Raises:
        AdapterError: It cannot be read; perhaps it is not there any more.
    """
    digest = hashlib.sha256()
    with _one_sentence(path), path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# --- writing ---


def serialized(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, memoryview]:
    """Return the header and the data of a safetensors file: those that the library writes, but for
    the order of the metadata, which is random there and fixed here.

    Raises:
        SaveError: The header would be larger than what is read again.
    """
    # tensors that share memory are refused by the library
    whole = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    content = save(whole)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    header |= json.loads(content[_LENGTH_BYTES:start])
    # half a character of a stranger's metadata has no bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > limits.HEADER_BYTES:
        raise SaveError(
            f"the file's header would have {len(text)} bytes, and at most {limits.HEADER_BYTES} "
            "can be read again; merge with fewer or shorter prompts"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, memoryview(content)[start:]
