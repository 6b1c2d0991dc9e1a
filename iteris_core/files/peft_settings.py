"""``adapter_config.json`` of a PEFT adapter: read, and what it says about one layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError

CONFIG_FILE = "adapter_config.json"


def read_settings(folder: Path) -> dict[str, Any]:
    """Return ``adapter_config.json`` of a folder.

    Raises:
        AdapterError: It is missing, or not what PEFT writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = (
            "there is no such folder" if not folder.is_dir() else f"the folder has no {CONFIG_FILE}"
        )
        raise AdapterError(
            f"{folder.name}: {found} ({folder}); give the folder that PEFT's save_pretrained wrote"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(
            f"{folder.name}: {CONFIG_FILE} cannot be read ({error}); download it again"
        ) from error
    if not isinstance(settings, dict):
        raise AdapterError(
            f"{folder.name}: {CONFIG_FILE} is a {type(settings).__name__}, not an object; download "
            "it again"
        )
    return settings


def scale_at(name: str, settings: Mapping[str, Any], path: str, rank: int) -> float:
    """Return what PEFT multiplies one layer's ``up @ down`` with.

    Args:
        name: Of the adapter, for errors.
        settings: As `read_settings` returns them.
        path: Of the layer.
        rank: Of its factors.

    Raises:
        AdapterError: The settings announce another rank, or hold no number.
    """
    announced = _at(name, settings, "rank_pattern", "r", path)
    if announced != rank:
        raise AdapterError(
            f"{name}: {path!r} has rank {rank}, but {CONFIG_FILE} says {announced:g}; config and "
            "weights are not of one adapter"
        )
    alpha = _at(name, settings, "alpha_pattern", "lora_alpha", path)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _at(name: str, settings: Mapping[str, Any], pattern: str, default: str, path: str) -> float:
    """Return a setting at one layer, by PEFT's rule: the first pattern that matches the end of the
    path, else the default.
    """
    patterns = settings.get(pattern) or {}
    if not isinstance(patterns, Mapping):
        raise AdapterError(
            f"{name}: {pattern} of {CONFIG_FILE} is a {type(patterns).__name__}; it must be an "
            "object, pattern -> number"
        )
    try:
        value = patterns.get(
            matching_pattern(patterns, path), settings.get(default, 8)
        )  # 8: PEFT's own default of both
    except re.error as error:
        raise AdapterError(
            f"{name}: {pattern} of {CONFIG_FILE} holds a broken pattern ({error}); repair it"
        ) from error
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AdapterError(
            f"{name}: {CONFIG_FILE} gives {value!r} as {default} of {path!r}; it must be a number"
        )
    return value


def matching_pattern(patterns: Iterable[str], path: str) -> str | None:
    """Return the first pattern that matches a path's end, from a dot or the start on, as PEFT does;
    None if none.
    """
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), None)
