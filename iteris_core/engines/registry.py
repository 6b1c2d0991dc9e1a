"""The engines by their names in the settings."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Engine as EngineName
from .iterate import iterate
from .problem import Engine
from .sweep import sweep

ENGINES: Mapping[EngineName, Engine] = {"sweep": sweep, "iterate": iterate}
