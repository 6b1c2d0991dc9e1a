"""The world "epsilon": "words" by a UNet that predicts the noise."""

from __future__ import annotations

from dataclasses import replace

from . import words
from .unet_model import EpsilonModel

WORLD = replace(words.WORLD, name="epsilon", model=EpsilonModel)
