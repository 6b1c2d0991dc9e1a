"""Dataclasses of settings, whose fields declare their meaning, type and bounds.

The checks of a value, the reader of recipes, the options of the command line and the bounds of
ComfyUI's widgets are made of these declarations. So a value has the same bounds wherever it comes
from. Every number has an upper bound, every text and list a largest size: settings come from
strangers' recipes and workflows, too, and are refused before any work.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from .errors import ConfigError

Settings = TypeVar("Settings")
PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
MOST_LETTERS = 4000  # of a text; a prompt of 4 pieces of 75 tokens has about 1500
MOST_ITEMS = 1000  # of a list; the longest list of our own has 69
MOST_SEEDS = 1 << 32
MOST_TOKENS = 1 << 20  # of a text; language models read a thousandth to all of it
MOST_AT_ONCE = 1 << 12  # samples of a call; GPUs hold a few dozen
_MOST_SHOWN = 60  # characters of a value in an error
_WORDS = {
    str: f"a text of {MOST_LETTERS} Unicode characters at most",
    bool: "true or false",
    NoneType: "none",
}
_METADATA_KEY = "setting"
_NAMES: ContextVar[Mapping[str, str]] = ContextVar("names of settings")


@contextlib.contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Let all texts that are made meanwhile call settings as a front end does.

    Args:
        names: Field of the settings -> its name there. ``field=value`` may name a value.
    """
    before = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(before)


def called(name: str) -> str:
    """Return what a setting is called in a text for the user, see `calling`; its own name without a
    front end that calls it otherwise.
    """
    return _NAMES.get({}).get(name, name)


def called_value(name: str, value: Any) -> str:
    """Return what a value of a setting is called in a text for the user; see `called`."""
    text = str(value)
    return _NAMES.get({}).get(f"{name}={text}", text)


def setting_to(name: str, value: Any) -> str:
    """Return a setting and the value that it is to get, as in "scene_weight to 0"; see `called`."""
    return f"{called(name)} to {called_value(name, value)}"


@dataclass(frozen=True)
class Setting:
    """The declaration of a field besides its name, type and default: its help and its bounds.

    Args:
        help: One line about the meaning.
        at_least: Smallest value of a number.
        above: Value that a number must exceed.
        at_most: Largest value of a number.
        below: Value that a number must not reach.
        multiple_of: Number of which a whole number is a multiple.
    """

    help: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    multiple_of: int | None = None

    def allows(self, number: Any) -> bool:
        """Whether a finite number is inside the bounds."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (self.multiple_of is None or number % self.multiple_of == 0)
        )

    def described(self, kind: type) -> str:
        """Return the allowed numbers of a kind in words."""
        if self.multiple_of is not None:
            ends = {" from {}": self.at_least, " to {}": self.at_most}
            known = [words.format(end) for words, end in ends.items() if end is not None]
            return f"a multiple of {self.multiple_of}{''.join(known)}"
        number = "a whole number" if kind is int else "a number"
        if self.at_least is not None and self.at_most is not None:
            return f"{number} from {self.at_least} to {self.at_most}"
        if self.at_least is not None and self.below is not None:
            return f"{number} from {self.at_least} to below {self.below}"
        if self.above is not None and self.at_most is not None:
            return f"{number} above {self.above}, and {self.at_most} at most"
        finite = "a whole number" if kind is int else "a finite number"
        bounds = {
            "{} or more": self.at_least,
            "above {}": self.above,
            "{} at most": self.at_most,
            "below {}": self.below,
        }
        known = [words.format(bound) for words, bound in bounds.items() if bound is not None]
        return ", ".join([finite, *known])


_UNDECLARED = Setting()  # of a field that was not made by `setting`


@dataclass(frozen=True)
class Declared:
    """One field of a dataclass of settings.

    Args:
        name: Name of the field.
        hint: Type of its value.
        setting: Declaration of the field.
        is_required: Whether it has no default.
    """

    name: str
    hint: Any
    setting: Setting
    is_required: bool

    def check(self, place: str, value: Any) -> None:
        """Refuse a value of the wrong type or outside its bounds.

        Raises:
            ConfigError: Shows the place, the value, and what may stand there.
        """
        if not _fits(value, self.hint, self.setting):
            raise ConfigError(f"{place} is {shown(value)}; it must be {self.described}")

    @property
    def described(self) -> str:
        """The allowed values, in words."""
        return _described(self.hint, self.setting)


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
) -> Any:
    """Declare a field of a dataclass of settings: its default, and see `Setting`."""
    about = Setting(help, at_least, above, at_most, below, multiple_of)
    return field(default=default, metadata={_METADATA_KEY: about})


def declared(kind: type) -> tuple[Declared, ...]:
    """Return the fields of a dataclass of settings."""
    return _declared(kind)


@functools.cache
def _declared(kind: Any) -> tuple[Declared, ...]:
    hints = get_type_hints(kind)
    return tuple(
        Declared(
            item.name,
            hints[item.name],
            item.metadata.get(_METADATA_KEY, _UNDECLARED),
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(kind)
    )


def bounds(kind: type, name: str) -> dict[str, float]:
    """Return the smallest and the largest value of a number, as ``min`` and ``max`` of a widget; a
    bound that the number itself must not reach is left out.
    """
    (found,) = [item.setting for item in declared(kind) if item.name == name]
    ends = {"min": found.at_least, "max": found.at_most}
    return {end: value for end, value in ends.items() if value is not None}


def check(settings: Any) -> None:
    """Refuse settings of which one has the wrong type or is outside its bounds.

    Args:
        settings: Dataclass; its fields that were declared with `setting` are checked.

    Raises:
        ConfigError: Shows the setting, its value, and what may stand there.
    """
    for item in declared(type(settings)):
        if item.setting is not _UNDECLARED:
            item.check(called(item.name), getattr(settings, item.name))


def from_json(place: str, values: Any, kind: type[Settings]) -> Settings:
    """Return settings from JSON, which anybody may have edited.

    Args:
        place: Place of the values in errors, such as a file's name.
        values: Object, field -> value; a missing field has its default.
        kind: Dataclass of the settings.

    Raises:
        ConfigError: The values are not an object, a field is unknown or missing, or a value has the
            wrong type or is outside its bounds.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{place} is {shown(values)}; it must be an object, {{name: value, ...}}")
    items = {item.name: item for item in declared(kind)}
    for name in sorted(set(values) - set(items)):
        raise ConfigError(
            f"{place} has the setting {shown(name)}, unknown to this version of IterIS; update it"
        )
    for name, item in items.items():
        if name not in values and item.is_required:
            raise ConfigError(f"{place} has no {name!r}; it must be {item.described}")
    read = {
        name: _from_json(f"{place}: {name}", value, items[name]) for name, value in values.items()
    }
    try:
        return kind(**read)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _from_json(place: str, value: Any, item: Declared) -> Any:
    if is_dataclass(item.hint) and isinstance(item.hint, type):
        return from_json(place, value, item.hint)
    if item.hint is torch.dtype and isinstance(value, str):
        value = PRECISIONS.get(value, value)
    item.check(place, value)
    return tuple(value) if isinstance(value, list) else value


def from_text(place: str, text: str, item: Declared) -> Any:
    """Return a setting from a word of the command line.

    Args:
        place: Place of the word in errors, such as an option's name.
        text: The word.
        item: Field of the setting.

    Raises:
        ConfigError: It has the wrong type, or is outside the bounds.
    """
    value: Any = text
    for part in alternatives(item.hint):
        try:
            value = _from_word(text, part)
            break
        except (ValueError, KeyError):
            continue
    item.check(place, value)
    return value


def _from_word(text: str, hint: Any) -> Any:
    """Return the value of a word as one type; a ValueError or KeyError if it has none."""
    if get_origin(hint) is Literal:
        return {choice: choice for choice in get_args(hint)}[text]
    if hint is torch.dtype:
        return PRECISIONS[text]
    if hint is bool:
        return {"true": True, "false": False}[text.lower()]
    if hint is NoneType:
        return {"none": None}[text.lower()]
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def alternatives(hint: Any) -> Sequence[Any]:
    """Return the types of a union, or the type itself."""
    is_union = bool(get_args(hint)) and not _is_whole(get_origin(hint))
    return get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any, setting: Setting) -> bool:
    origin = get_origin(hint)
    of = get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in of
    if origin is tuple:
        return (
            isinstance(value, (list, tuple))
            and len(value) <= MOST_ITEMS
            and all(_fits(v, of[0], setting) for v in value)
        )
    if _is_mapping(origin):
        return isinstance(value, Mapping) and all(_fits(v, of[1], setting) for v in value.values())
    if of:
        return any(_fits(value, part, setting) for part in of)
    if hint is int or hint is float:
        return _is_number(value, hint) and setting.allows(value)
    if hint is torch.dtype:
        return isinstance(value, torch.dtype) and value in PRECISIONS.values()
    if hint is str:
        return is_text(value, MOST_LETTERS)
    return isinstance(value, hint)


def is_text(value: Any, most: int) -> bool:
    """Whether a value is a text of so many characters at most, without unpaired surrogates,
    which JSON can hold and no tokenizer reads.
    """
    if not isinstance(value, str) or len(value) > most:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, Integral)
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # JSON has whole numbers that no float can hold
        return False


def _described(hint: Any, setting: Setting) -> str:
    origin = get_origin(hint)
    of = get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin is tuple:
        return f"a list, each item {_described(of[0], setting)}, of {MOST_ITEMS} items at most"
    if _is_mapping(origin):
        return "an object, each value " + _described(of[1], setting)
    if of:
        parts = [_described(part, setting) for part in of]
        has_commas = len(parts) > 2 or "," in parts[0]
        return ", ".join(parts[:-1]) + (", or " if has_commas else " or ") + parts[-1]
    if hint is int or hint is float:
        return setting.described(hint)
    if hint is torch.dtype:
        return " or ".join(PRECISIONS)
    return "an object" if is_dataclass(hint) else _WORDS.get(hint, f"a {hint.__name__}")


def _is_whole(origin: Any) -> bool:
    """Whether the arguments of a type are not alternatives."""
    return origin is Literal or origin is tuple or _is_mapping(origin)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def shown(value: Any) -> str:
    """Return a value for an error, shortened."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists in lists, numbers of more than 4300 digits
        text = f"a value of type {type(value).__name__}, too large to show"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
