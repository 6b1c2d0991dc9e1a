"""Files next to a LoRA's: the words that other programs keep there, and a picture."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from .limits import PICTURE_BYTES, SIDECAR_BYTES, json_value
from .trigger_words import phrases

# That of LoRA Manager comes first: its user may have edited the words. The other one, of several
# downloaders, is what Civitai said.
_WORDS = (".metadata.json", ".civitai.info")
PICTURES = (
    *(".preview" + ending for ending in (".png", ".jpg", ".jpeg", ".webp")),
    *(".png", ".jpg", ".jpeg", ".webp"),
)
_START_BYTES = 12  # that tell pictures apart


def words_beside(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the name of the first file next to a LoRA's that lists its trigger words, and the
    words as written there; empty where there is none that can be read.
    """
    for sidecar in sidecars(path):
        words = _listed_beside(_content(sidecar, SIDECAR_BYTES))
        if words:
            return sidecar.name, words
    return "", ()


def sidecars(path: Path) -> Iterator[Path]:
    """Yield the files next to a LoRA's that may list its trigger words."""
    yield from map(path.with_suffix, _WORDS)


def picture_beside(path: Path) -> tuple[bytes, str] | None:
    """Return the picture next to a LoRA's file and its media type; None where there is none.

    A picture is a PNG, JPEG or WebP by its first bytes, whatever its name says.
    """
    for picture in map(path.with_suffix, PICTURES):
        content = _content(picture, PICTURE_BYTES)
        if kind := _kind(content):
            return content, kind
    return None


def has_picture(path: Path) -> bool:
    """Whether `picture_beside` finds one."""
    pictures = map(path.with_suffix, PICTURES)
    return any(_kind(_content(picture, PICTURE_BYTES, _START_BYTES)) for picture in pictures)


def _content(path: Path, most: int, count: int = -1) -> bytes:
    """Return the first bytes of a plain file, by default all; nothing of a larger one, and of what
    is not a plain file or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return b""
        with path.open("rb") as file:
            return file.read(most if count < 0 else count)
    except (OSError, ValueError):  # the latter of names that no file can have
        return b""


def _listed_beside(content: bytes) -> tuple[str, ...]:
    try:
        value = json_value(content.decode("utf-8-sig"))
    except ValueError:
        return ()
    inner = value.get("civitai") if isinstance(value, dict) else None
    lists = [of.get("trainedWords") for of in (value, inner) if isinstance(of, dict)]
    return phrases(next((words for words in lists if words and isinstance(words, list)), []))


def _kind(start: bytes) -> str:
    """Return the media type of a picture that begins so; empty: it is not a picture."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if start.startswith(b"RIFF") and start[8:12] == b"WEBP" else ""
