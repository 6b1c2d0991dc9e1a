"""Pictures of the nodes: covers, and tables of pictures with labels."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

_PREVIEW_SIDE = 1024
_CELL = 512  # pixels of a cell's width at most
_MOST_SIDE = 8192  # of a table; cells become smaller then
_GAP = 4
_BACKGROUND = (24, 24, 27)
_INK = (235, 235, 235)
_QUIET = (170, 170, 175)
_LETTERS = (12, 26)  # smallest and largest size
_MOST_CHARACTERS = 400  # of a label, before it is cut to its place
_ELLIPSIS = "\u2026"


@dataclass(frozen=True)
class Labelled:
    """A row of a table.

    Args:
        name: Its name, which is cut to its place.
        names: The names of its pictures.
        pictures: (height, width, channels) each, from 0 to 1.
    """

    name: str
    names: Sequence[str]
    pictures: Sequence[Tensor]


def image_of(picture: Tensor, most: int) -> Image:
    """Return a picture from 0 to 1 in RGB, with no side longer than `most` pixels.

    Args:
        picture: Picture (height, width, channels): grey, RGB, or either with an alpha channel,
            which is ignored.
    """
    from PIL import Image

    picture = picture[..., :3] if picture.shape[-1] > 2 else picture[..., :1].expand(-1, -1, 3)
    pixels = (picture.float().nan_to_num(0).clamp(0, 1) * 255).round().byte().cpu().contiguous()
    image = Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes())
    image.thumbnail((most, most))
    return image


def png_of(picture: Tensor) -> bytes:
    """Return a picture as a PNG file for lists of LoRAs; see `image_of`."""
    file = io.BytesIO()
    image_of(picture, _PREVIEW_SIDE).save(file, "PNG")
    return file.getvalue()


def table(rows: Sequence[Labelled], facts: str = "") -> Tensor:
    """Return rows of pictures as one picture, (1, height, width, 3) from 0 to 1.

    A strip above each row names it, and below that every picture has its own name.

    Args:
        rows: The rows, at least one; all pictures are of one size.
        facts: The line at the bottom; an empty one takes no room.
    """
    from PIL import Image, ImageDraw

    height, width = rows[0].pictures[0].shape[:2]
    columns = max(len(row.pictures) for row in rows)
    cell = min(width, _CELL, _MOST_SIDE // columns - _GAP)
    high = _MOST_SIDE // len(rows)  # nothing is drawn higher than it can be shown
    letters = max(_LETTERS[0], min(cell // 20, high // 8, _LETTERS[1]))
    strip = 2 * letters
    bottom = strip if facts else 0
    most = (_MOST_SIDE - bottom) // len(rows) - 2 * strip - _GAP
    cell, tall = fitting(width, height, cell, max(1, most))
    across = columns * (cell + _GAP) + _GAP
    room = across - 4 * _GAP
    end = len(rows) * (2 * strip + tall + _GAP)
    size = (across, end + bottom)
    whole = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(whole)
    for number, row in enumerate(rows):
        top = number * (2 * strip + tall + _GAP)
        _write(pen, row.name, (2 * _GAP, top + strip / 2), room, letters, anchor="lm", fill=_QUIET)
        _paste_row(whole, pen, row, top, (cell, tall), letters)
    _write(pen, facts, (2 * _GAP, end + strip / 2), room, letters, anchor="lm", fill=_QUIET)
    pixels = torch.frombuffer(bytearray(whole.tobytes()), dtype=torch.uint8)
    return (pixels.float() / 255).reshape(1, size[1], size[0], 3)


def _paste_row(
    whole: Image, pen: Any, row: Labelled, top: int, size: tuple[int, int], letters: int
) -> None:
    """Paste a row's pictures side by side, each below its name.

    Args:
        size: Width and height of each picture.
    """
    from PIL import Image

    width, _ = size
    strip = 2 * letters
    for column, (name, picture) in enumerate(zip(row.names, row.pictures, strict=True)):
        left = _GAP + column * (width + _GAP)
        middle = (left + width / 2, top + 1.5 * strip)
        _write(pen, name, middle, width, letters, anchor="mm", fill=_INK)
        image = image_of(picture, max(picture.shape[:2]))
        whole.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top + 2 * strip))


def fitting(width: int, height: int, most_width: int, most_height: int) -> tuple[int, int]:
    """Return the size of a picture after it was made to fit, never larger than it is.

    >>> fitting(1024, 768, 512, 512)
    (512, 384)
    """
    share = min(1.0, most_width / width, most_height / height)
    return max(1, round(width * share)), max(1, round(height * share))


def _write(
    pen: Any, text: str, place: tuple[float, float], room: int, size: int, **more: Any
) -> None:
    font = _font(size)
    pen.text(place, shortened(plain_line(text), room, font.getlength), font=font, **more)


@functools.cache
def _font(size: int) -> FreeTypeFont:
    """Return Pillow's own font."""
    from PIL import ImageFont

    return ImageFont.load_default(size)  # type: ignore[return-value]


def plain_line(text: str) -> str:
    """Return a text as one line that can be drawn, whatever it holds.

    >>> plain_line("a  cat\\n\\x00 on a mat")
    'a cat on a mat'
    """
    text = text[:_MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shortened(text: str, room: float, length: Callable[[str], float]) -> str:
    """Return a text that fits its room: what is too long is cut out of the middle, since names of
    files often differ at their ends.

    >>> shortened("sks_dog-000010", 9, len)
    'sks_…0010'
    """
    if length(text) <= room:
        return text
    kept = len(text)
    while kept:
        kept -= 1
        start = text[: (kept + 1) // 2].rstrip()
        end = text[len(text) - kept // 2 :].lstrip()
        if length(f"{start}{_ELLIPSIS}{end}") <= room:
            return f"{start}{_ELLIPSIS}{end}"
    return ""
