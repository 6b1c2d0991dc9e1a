"""The world "single": the world "flow" with a transformer that joins text and picture in a single
stream.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from . import flow
from .world import World


def new_model(**sizes: int) -> Any:
    """Return the untrained model."""
    from .flow_model import new_single_model

    return new_single_model(flow.make_tokenizer(), **sizes)


def load_model(folder: Path) -> Any:
    from .flow_model import SingleModel, load_flow_model

    return load_flow_model(folder, SingleModel)


WORLD: World = replace(flow.WORLD, name="single", new_model=new_model, load_model=load_model)
