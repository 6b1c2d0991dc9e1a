"""Pictures from files and folders. No other module opens pictures, which may come from anybody."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from ..errors import CalibrationError

# Pillow's other formats are not tried, whatever a file is called: EPS starts another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MOST_PIXELS = 40_000_000  # with 8 bytes a pixel while it is read; BLIP and CLIP read 384 x 384
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What Pillow's readers of these formats raise about damaged files.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, RuntimeError, NotImplementedError),
    *(LookupError, TypeError, ArithmeticError, struct.error, zlib.error),
)


def pictures_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)


def open_picture(source: Path | bytes) -> Any:
    """Return a `PIL.Image.Image` in RGB.

    Args:
        source: A file, or the bytes of one.

    Raises:
        CalibrationError: It is not a picture in one of four formats, is damaged, or has more than
            40 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    place = "a picture in the parquet file" if isinstance(source, bytes) else source
    if isinstance(source, Path) and not source.is_file():  # also a device, which has no end
        raise CalibrationError(f"{place}: there is no such file; give a picture")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked below, and colours
            with Image.open(file, formats=_FORMATS) as picture:
                width, height = picture.size
                if width * height <= _MOST_PIXELS:
                    return picture.convert("RGB")
    except Image.DecompressionBombError:
        pass
    except _UNREADABLE as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise CalibrationError(
            f"{place}: cannot be read as a picture{why}; give a file in one of the formats "
            f"{', '.join(_FORMATS)}"
        ) from error
    raise CalibrationError(
        f"{place}: has more than {_MOST_PIXELS // 10**6} million pixels, which are not read; make "
        "it smaller, since the model sees a small version of it alone"
    )
