"""Small worlds of drawn pictures, where base models, LoRAs and judges are trained and compared."""

from __future__ import annotations

from importlib import import_module

from .world import World

NAMES = ("words", "xl", "flow", "single")


def find_world(name: str) -> World:
    """Return a world by its name."""
    world = import_module(f".{name}", __name__).WORLD
    assert isinstance(world, World)
    return world
