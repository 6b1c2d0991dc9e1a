"""Small worlds of drawn pictures, where base models, LoRAs and judges are trained and compared."""

from __future__ import annotations

from dataclasses import replace

from .world import World

NAMES = ("words", "epsilon", "xl", "flow", "single")


def find_world(name: str) -> World:
    """Return a world by its name."""
    from . import flow, flow_model, unet_model, words

    worlds = (
        words.WORLD,
        replace(words.WORLD, name="epsilon", model=unet_model.EpsilonModel),
        replace(words.WORLD, name="xl", model=unet_model.XlModel),
        flow.WORLD,
        replace(flow.WORLD, name="single", model=flow_model.SingleModel),
    )
    return worlds[NAMES.index(name)]
