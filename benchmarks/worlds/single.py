"""The world "single": "flow" with text and picture in a single stream."""

from __future__ import annotations

from dataclasses import replace

from . import flow
from .flow_model import SingleModel

WORLD = replace(flow.WORLD, name="single", model=SingleModel)
