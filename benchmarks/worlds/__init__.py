"""Small worlds of drawn pictures, where base models, LoRAs and judges are trained and compared."""

from __future__ import annotations

from dataclasses import replace

from . import flow, words
from .flow_model import SingleModel
from .unet_model import EpsilonModel, XlModel

WORLDS = {
    world.name: world
    for world in (
        words.WORLD,
        replace(words.WORLD, name="epsilon", model=EpsilonModel),
        replace(words.WORLD, name="xl", model=XlModel),
        flow.WORLD,
        replace(flow.WORLD, name="single", model=SingleModel),
    )
}
