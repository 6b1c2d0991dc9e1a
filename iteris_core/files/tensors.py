"""Safetensors files: read without pickle, and identified by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import AdapterError
from .budget import budget
from .file_header import (
    LENGTH_BYTES,
    BeyondLimits,
    Damaged,
    Layout,
    Place,
    UnknownType,
    read_layout,
)

_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_BLOCK_BYTES = 1 << 20


def check_readable(path: Path) -> None:
    """Refuse a path that is no whole safetensors file, without reading its tensors.

    Raises:
        AdapterError: The file is missing, a pickle, truncated or something else, or has more of
            something than is read (see `limits`); names the next step.
    """
    with opened(path):
        pass


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Layout]]:
    """Open a safetensors file, and read its header.

    Raises:
        AdapterError: See `check_readable`.
    """
    with _one_sentence(path):
        if not path.is_file():
            raise AdapterError(
                f"{path.name}: there is no such file ({path}); give the path of a .safetensors file"
            )
        if _is_pickle(path):
            raise AdapterError(
                f"{path.name}: this is a pickle file, which can run code when it is opened; IterIS "
                "reads only .safetensors. Convert it with a tool that you trust, or download the "
                "safetensors version"
            )
        with path.open("rb") as file:
            yield file, _layout(file, path.name)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn what a disk can answer into an error that names the file.

    Raises:
        AdapterError: See above.
    """
    try:
        yield
    except OSError as error:
        raise AdapterError(
            f"{path.name}: the file cannot be read ({error.strerror or error}); look at its path "
            "and its permissions"
        ) from error


def _layout(file: BinaryIO, name: str) -> Layout:
    size = os.fstat(file.fileno()).st_size
    try:
        return read_layout(file, size)
    except Damaged as error:
        raise AdapterError(
            f"{name}: not a whole safetensors file ({size} bytes; {error}); the download was "
            "probably cut off. Download it again"
        ) from error
    except UnknownType as error:
        raise AdapterError(
            f"{name}: {error}. Use a version of it in float32, float16, bfloat16 or float8"
        ) from error
    except BeyondLimits as error:
        raise AdapterError(
            f"{name}: {error}. No adapter is known that needs so much, so the file is damaged or "
            "made to do harm; use another"
        ) from error


def _is_pickle(path: Path) -> bool:
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        # a header's length may begin with the same bytes as a pickle, but only a header begins with
        # a brace
        return start.startswith(_PICKLE_STARTS) and file.read(1) != b"{"


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    The tensors are copies in memory: what happens to the file afterwards does not change them.

    Raises:
        AdapterError: See `check_readable`; also a file that is changed while it is read.
    """
    path = Path(path)
    with budget(path, path), opened(path) as (file, layout):
        before = os.fstat(file.fileno())
        in_order = sorted(layout.places.items(), key=lambda item: item[1].start)
        read = {key: _tensor(file, layout.start, place) for key, place in in_order}
        after = os.fstat(file.fileno())
    whole = {key: tensor for key, tensor in read.items() if tensor is not None}
    if len(whole) < len(read) or version(before) != version(after):
        raise AdapterError(
            f"{path.name}: the file was changed while it was read; wait until the program that "
            "writes it has finished, and start again"
        )
    return {key: whole[key] for key in layout.places}, dict(layout.metadata)


def _tensor(file: BinaryIO, start: int, place: Place) -> Tensor | None:
    """Return a tensor of a file; None where the file ends before it does."""
    content = bytearray(place.end - place.start)
    if not content:
        return torch.empty(place.shape, dtype=place.dtype)
    file.seek(start + place.start)
    if file.readinto(content) < len(content):  # type: ignore[attr-defined]
        return None
    return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)


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
