"""JSON out of files that come from strangers."""

from __future__ import annotations

import json
from typing import Any

from .budget import spend
from .limits import JSON_LEVELS, JSON_SEPARATORS


def json_value(text: str) -> Any:
    """Return the value of a text of JSON, in memory and time in proportion to the limits.

    Raises:
        ValueError: The text is no JSON, or has too many values or levels.
    """
    spend(len(text))
    separators = text.count(",") + text.count("[") + text.count("{")
    if separators > JSON_SEPARATORS:
        raise ValueError(f"about {separators} values, of which {JSON_SEPARATORS} are read")
    too_deep = f"more than {JSON_LEVELS} levels of lists and objects"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(JSON_LEVELS + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(too_deep)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
