"""What lies beside a LoRA's file: the words that other programs keep there, and a picture."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .json_values import json_value
from .limits import LISTED_WORDS, PICTURE_BYTES, SIDECAR_BYTES, WORD_LETTERS

# That of LoRA Manager comes first: its user may have edited the words. The other one, of several
# downloaders, is what Civitai said.
_WORDS = (".metadata.json", ".civitai.info")
PICTURES = (
    *(".preview" + ending for ending in (".png", ".jpg", ".jpeg", ".webp")),
    *(".png", ".jpg", ".jpeg", ".webp"),
)
_START_BYTES = 12  # that tell pictures apart


def words_beside(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the name of the first file beside a LoRA's that lists its trigger words, and the words
    as they stand there; empty where there is none that can be read.
    """
    for sidecar in sidecars(path):
        words = _words(_content(sidecar, SIDECAR_BYTES))
        if words:
            return sidecar.name, words
    return "", ()


def sidecars(path: Path) -> Iterator[Path]:
    """Yield the files beside a LoRA's that may list its trigger words."""
    yield from map(path.with_suffix, _WORDS)


def picture_beside(path: Path) -> tuple[bytes, str] | None:
    """Return the picture beside a LoRA's file and its media type; None where there is none.

    What is no PNG, JPEG or WebP by its first bytes is none, whatever its name says.
    """
    for ending in PICTURES:
        picture = path.with_suffix(ending)
        kind = _kind(_content(picture, PICTURE_BYTES, _START_BYTES))
        content = _content(picture, PICTURE_BYTES) if kind else b""
        if content and kind == _kind(content):
            return content, kind
    return None


def has_picture(path: Path) -> bool:
    """Whether `picture_beside` finds one."""
    starts = (
        _content(path.with_suffix(ending), PICTURE_BYTES, _START_BYTES) for ending in PICTURES
    )
    return any(map(_kind, starts))


def _content(path: Path, most: int, count: int = -1) -> bytes:
    """Return the first bytes of a plain file, by default all; nothing of a larger one, and of what
    is no plain file or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return b""
        with path.open("rb") as file:
            return file.read(most if count < 0 else count)
    except (OSError, ValueError):  # the latter of names that no file can have
        return b""


def _words(content: bytes) -> tuple[str, ...]:
    try:
        value = json_value(content.decode("utf-8-sig")) if content else None
    except ValueError:
        return ()
    listed = _list(value) or _list(value.get("civitai") if isinstance(value, dict) else None)
    stripped = (word.strip(" ,\t\r\n") for word in listed[:LISTED_WORDS] if isinstance(word, str))
    return tuple(dict.fromkeys(word for word in stripped if 0 < len(word) <= WORD_LETTERS))


def _list(value: Any) -> list[Any]:
    words = value.get("trainedWords") if isinstance(value, dict) else None
    return words if isinstance(words, list) else []


def _kind(start: bytes) -> str:
    """Return the media type of a picture that begins so; empty: it is none."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    return ""
