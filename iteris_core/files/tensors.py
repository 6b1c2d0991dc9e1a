"""Safetensors files: read without pickle, and identified by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AdapterError

_LENGTH_BYTES = 8  # of a header's length, at the start of a file
_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_BLOCK_BYTES = 1 << 20


def check_readable(path: Path) -> None:
    """Refuse a path that is no whole safetensors file, without reading its tensors.

    Raises:
        AdapterError: The file is missing, a pickle, truncated or something else; names the next
            step.
    """
    with opened(path):
        pass


@contextlib.contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file, whose tensors are read when they are asked for, on the CPU.

    Raises:
        AdapterError: See `check_readable`.
    """
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
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise AdapterError(
            f"{path.name}: not a whole safetensors file ({path.stat().st_size} bytes; {error}); "
            "the download was probably cut off. Download it again"
        ) from error


def _is_pickle(path: Path) -> bool:
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        # a header's length may begin with the same bytes as a pickle, but only a header begins with
        # a brace
        return start.startswith(_PICKLE_STARTS) and file.read(1) != b"{"


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    Raises:
        AdapterError: See `check_readable`.
    """
    with opened(Path(path)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no dict)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
