"""Settings that come from JSON, which anybody may have edited: every value is checked before it is
used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from ..errors import ConfigError

Settings = TypeVar("Settings")
_PRECISIONS = ("float16", "bfloat16", "float32", "float64")
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
    NoneType: "null",
}
_MOST_LETTERS = 60  # of a value in an error


def from_json(place: str, values: Any, kind: type[Settings]) -> Settings:
    """Return a dataclass of settings, from what JSON says of it.

    Args:
        place: Where the values stand, for errors.
        values: An object, field -> value; what is left out has its default.
        kind: The dataclass.

    Raises:
        ConfigError: No object, an unknown or a missing field, or a value of the wrong type or out
            of its range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{place} is {shown(values)}; it must be an object, {{name: value, ...}}")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    for name in sorted(set(values) - set(known)):
        raise ConfigError(
            f"{place} has the setting {name!r}, unknown to this version of IterIS; update it"
        )
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{place} has no {name!r}; it must be {described(hints[name])}")
    read = {name: _value(f"{place}: {name}", value, hints[name]) for name, value in values.items()}
    try:
        return kind(**read)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _value(place: str, value: Any, hint: Any) -> Any:
    if is_dataclass(hint):
        return from_json(place, value, hint)
    if not fits(value, hint):
        raise ConfigError(f"{place} is {shown(value)}; it must be {described(hint)}")
    if hint is torch.dtype:
        return getattr(torch, value)
    return tuple(value) if isinstance(value, list) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type, such as ``int | None`` or ``tuple[str, ...]``, which is
    a list there.
    """
    origin = get_origin(hint)
    of = get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in of
    if origin is tuple:
        return isinstance(value, list) and all(fits(item, of[0]) for item in value)
    if _is_mapping(origin):
        return isinstance(value, dict) and all(fits(item, of[1]) for item in value.values())
    if of:
        return any(fits(value, part) for part in of)
    if hint is torch.dtype:
        return isinstance(value, str) and value in _PRECISIONS
    if hint is float:
        return (type(value) is int and abs(value) < 1 << 1000) or (
            type(value) is float and math.isfinite(value)
        )
    return type(value) is hint


def described(hint: Any) -> str:
    """Return in words what a type allows."""
    origin = get_origin(hint)
    of = get_args(hint)
    if origin is Literal:
        return _either([repr(choice) for choice in of])
    if origin is tuple:
        return "a list, each item " + described(of[0])
    if _is_mapping(origin):
        return "an object, each value " + described(of[1])
    if of:
        return _either([described(part) for part in of])
    if hint is torch.dtype:
        return _either(_PRECISIONS)
    return "an object" if is_dataclass(hint) else _WORDS[hint]


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def shown(value: Any) -> str:
    """Return a value for an error, shortened."""
    text = repr(value)
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 3] + "..."


def _either(choices: Sequence[str]) -> str:
    return " or ".join(choices)
