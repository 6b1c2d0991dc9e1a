"""Pictures from files and folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..errors import CalibrationError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files of a folder, by name."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)


def open_picture(source: Path | bytes) -> Any:
    """Return a `PIL.Image.Image` in RGB.

    Args:
        source: A file, or the bytes of one.

    Raises:
        CalibrationError: It is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        place = "a picture in the parquet file" if isinstance(source, bytes) else source
        raise CalibrationError(
            f"{place}: cannot be read as a picture ({error}); give a PNG or JPEG file"
        ) from error
