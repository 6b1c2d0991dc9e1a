"""Layers measured and solved in order: the single sweep, and the paper's iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Engine as EngineName
    from .problem import Engine


def engine_of(name: EngineName) -> Engine:
    """Return the engine of a name in the settings; only this one is loaded."""
    if name == "iterate":
        from .iterate import iterate

        return iterate
    from .sweep import sweep

    return sweep
