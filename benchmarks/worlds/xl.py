"""The world "xl": "words" by a small SDXL."""

from __future__ import annotations

from dataclasses import replace

from . import words
from .unet_model import XlModel

WORLD = replace(words.WORLD, name="xl", model=XlModel)
