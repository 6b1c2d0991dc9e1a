"""Safetensors files: read without pickle and within limits, written so that equal content has equal
bytes, and known by their hash.

The library safetensors reads and writes the tensors. It is given their bytes, and the path only to
look at the header: what it maps into memory ends the process if the file then shrinks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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


# --- reading ---


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors without content (on the device ``meta``), and its
    metadata.

    Raises:
        AdapterError: The file is missing, a pickle, truncated or something else, or has more than
            is read (see `limits`); names the next step.
    """
    path = Path(path)
    entries, metadata = _header(path)
    try:
        tensors = {
            key: torch.empty(entry["shape"], device="meta")
            for key, entry in sorted(entries.items())
        }
    except RuntimeError as error:  # sides that make more numbers than torch can count
        raise _damaged(path, error) from error
    return tensors, metadata


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors, on the CPU in their own precision, and its metadata.

    The tensors are copies in memory: what happens to the file afterwards does not change them.

    Raises:
        AdapterError: See `read_header`.
    """
    path = Path(path)
    entries, metadata = _header(path)
    size = path.stat().st_size
    if size > limits.FILE_BYTES:
        raise AdapterError(
            f"{path.name}: the file has {size} bytes, and an adapter of at most "
            f"{limits.FILE_BYTES} is read. It is probably a whole model; choose a LoRA"
        )
    try:
        with _one_sentence(path):
            tensors = load(path.read_bytes())
        return {key: tensors[key] for key in sorted(entries)}, metadata
    except (SafetensorError, KeyError) as error:  # the latter if it was written meanwhile
        raise _damaged(path, error) from error


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a whole file says of its tensors, by key, and its metadata."""
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
            length = int.from_bytes(start, "little")
            if limits.HEADER_BYTES < length < path.stat().st_size:
                raise AdapterError(
                    f"{path.name}: the header has {length} bytes, and at most "
                    f"{limits.HEADER_BYTES} are read. No adapter is known that needs so much, so "
                    "the file is damaged or made to do harm; use another"
                )
            file.seek(_LENGTH_BYTES)
            text = file.read(min(length, limits.HEADER_BYTES))
        try:
            entries = json.loads(text)
            if not isinstance(entries, dict):
                raise ValueError("the header is not an object")
            metadata = entries.pop(_METADATA, None) or {}
            for key, entry in entries.items():
                _check_entry(path, key, entry)
            with safe_open(path, framework="pt"):  # refuses what is not whole
                pass
        except (SafetensorError, ValueError, RecursionError) as error:
            raise _damaged(path, error) from error
    return entries, metadata


def _check_entry(path: Path, key: str, entry: Any) -> None:
    if len(key) > limits.KEY_CHARACTERS:
        raise AdapterError(
            f"{path.name}: the key {key[:60]!r}... has {len(key)} characters, and at most "
            f"{limits.KEY_CHARACTERS} are read. Use another LoRA"
        )
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if isinstance(dtype, str) and dtype not in _TYPES:
        raise AdapterError(
            f"{path.name}: {key!r} is of the type {dtype!r:.20}, which is not read. Use a version "
            "of it in float32, float16, bfloat16 or float8"
        )


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


def _damaged(path: Path, error: Exception) -> AdapterError:
    return AdapterError(
        f"{path.name}: not a whole safetensors file ({path.stat().st_size} bytes; {error}); the "
        "download was probably cut off. Download it again"
    )


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
