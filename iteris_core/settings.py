"""Settings: frozen pydantic dataclasses whose fields declare type, bounds, meaning and name.

    @settings
    class Sampling:
        steps: Annotated[int, Field(ge=1, le=200, title="sampling_steps", description="...")] = 3

The checks of a constructor, the reader of recipes, the options of the command line and the inputs
of ComfyUI's nodes all come from these declarations, so a value has the same bounds wherever it
comes from. The title is what front ends call a field whose name is a word of the method. Every
number has an upper bound, every text and list a largest size: settings come from strangers' recipes
and workflows, too, and are refused before any work.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import is_dataclass
from numbers import Real
from typing import Annotated, Any, TypeVar

import torch
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from .errors import ConfigError

Settings = TypeVar("Settings")
PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
MOST_CHARACTERS = 4000  # of a text; a prompt of 4 pieces of 75 tokens has about 1500
MOST_ITEMS = 1000  # of a list; the longest list of our own has 69
MOST_SEEDS = 1 << 32
MOST_TOKENS = 1 << 20  # of a text; language models read a thousandth to all of it
MOST_AT_ONCE = 1 << 12  # samples of a call; GPUs hold a few dozen
TRIGGER = "{trigger}"  # what a file's trigger words take the place of
TOGETHER = 0.3  # the usual scene_weight
_MOST_SHOWN = 60  # characters of a value in an error
_MOST_NAMES = 12
_STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, str_max_length=MOST_CHARACTERS
)
_LAX = ConfigDict(allow_inf_nan=False, str_max_length=MOST_CHARACTERS)
_NAMES: ContextVar[Mapping[str, str]] = ContextVar("names of settings")


def _precision(value: Any) -> Any:
    value = PRECISIONS.get(value, value) if isinstance(value, str) else value
    if isinstance(value, torch.dtype) and value not in PRECISIONS.values():
        raise ValueError("not a precision of weights")
    return value


# A list becomes a tuple, as which it can be hashed.
Texts = Annotated[tuple[str, ...], Field(strict=False, max_length=MOST_ITEMS)]
Precision = Annotated[
    InstanceOf[torch.dtype],
    BeforeValidator(_precision),
    WithJsonSchema({"enum": list(PRECISIONS)}),
]


@contextlib.contextmanager
def labelled(names: Mapping[str, str]) -> Iterator[None]:
    """Let all texts that are made meanwhile call settings as a front end does.

    Args:
        names: Field of the settings -> its name there. ``field=value`` may name a value.
    """
    before = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(before)


def label(name: str) -> str:
    """Return what a setting is called in a text for the user, see `labelled`; without a front end
    that calls it otherwise, its own name.
    """
    return _NAMES.get({}).get(name, name)


def value_label(name: str, value: Any) -> str:
    """Return what a value of a setting is called in a text for the user; see `label`."""
    text = str(value)
    return _NAMES.get({}).get(f"{name}={text}", text)


def setting_to(name: str, value: Any) -> str:
    """Return a setting and the value that it is to get, as in "scene_weight to 0"; see `label`."""
    return f"{label(name)} to {value_label(name, value)}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: type[Settings]) -> type[Settings]:
    """Make a class a frozen dataclass of settings, whose constructor takes keywords alone.

    Nothing is converted but whole numbers to floats, names to precisions and lists to tuples. An
    attribute ``NOUN`` names the thing whose settings these are in errors, with its ``name``.

    The constructor raises:
        ConfigError: Names the field, what was found, and what may be there.
    """
    made: Any = dataclass(kind, frozen=True, kw_only=True, config=_STRICT)
    construct = made.__init__

    @functools.wraps(construct)
    def construct_or_tell(self: Any, **given: Any) -> None:
        given = {name: _plain(value) for name, value in given.items()}
        try:
            construct(self, **given)
        except ValidationError as error:
            raise _told(made, given, error) from None

    made.__init__ = construct_or_tell
    return made  # type: ignore[no-any-return]


def declared(kind: type) -> Mapping[str, FieldInfo]:
    """Return the fields of a class of settings by their names: default, title and description."""
    fields: Mapping[str, FieldInfo] = vars(kind)["__pydantic_fields__"]
    return fields


def names_of(*kinds: type) -> dict[str, str]:
    """Return what front ends call the fields of settings, for `labelled`."""
    return {name: item.title or name for kind in kinds for name, item in declared(kind).items()}


def schema_of(item: FieldInfo) -> dict[str, Any]:
    return TypeAdapter(item.rebuild_annotation()).json_schema()


def alternatives(schema: Mapping[str, Any]) -> list[Any]:
    """Return the schemas of a union, or the schema itself."""
    found: list[Any] = schema.get("anyOf", [schema])
    return found


def words_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the words that a schema names as values."""
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def bounds(kind: type, name: str) -> dict[str, float]:
    """Return the smallest and the largest value of a number, as ``min`` and ``max`` of a widget; a
    bound that the number itself must not reach is left out.
    """
    ends = {"minimum": "min", "maximum": "max"}
    parts = alternatives(schema_of(declared(kind)[name]))
    return {ends[key]: part[key] for part in parts for key in ends if key in part}


def checked(place: str, value: Any, hint: Any) -> Any:
    """Return a value if it is of a type, which may have bounds.

    Raises:
        ConfigError: Shows the place, the value, and what may be there.
    """
    return _validated(place, value, TypeAdapter(hint, config=_STRICT))


def from_text(place: str, text: str, item: FieldInfo) -> Any:
    """Return the value of a field from a word of the command line.

    Raises:
        ConfigError: Shows the place, the word, and what may be there.
    """
    has_none = {"type": "null"} in alternatives(schema_of(item))
    if has_none and text.lower() == "none":
        return None
    return _validated(place, text, TypeAdapter(item.rebuild_annotation(), config=_LAX))


def from_json(place: str, values: Any, kind: type[Settings]) -> Settings:
    """Return settings from JSON, which anybody may have edited.

    Args:
        place: Place of the values in errors, such as a file's name.
        values: Object, field -> value; a missing field has its default.

    Raises:
        ConfigError: The values are not an object, a field is unknown or missing, or a value has the
            wrong type or is outside its bounds.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{place} is {shown(values)}; it must be an object, {{name: value, ...}}")
    items = declared(kind)
    for name in sorted(set(values) - set(items)):
        raise ConfigError(
            f"{place} has the setting {shown(name)}, unknown to this version of IterIS; update it"
        )
    for name, item in items.items():
        if name not in values and item.is_required():
            raise ConfigError(f"{place} has no {name!r}; it must be {described(schema_of(item))}")
    inner = {name: item.annotation for name, item in items.items() if is_dataclass(item.annotation)}
    read = {
        name: from_json(f"{place}: {name}", value, inner[name]) if name in inner else value
        for name, value in values.items()
    }
    try:
        with labelled({}):  # a file has the fields' own names
            return kind(**read)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _told(kind: type, given: Mapping[str, Any], error: ValidationError) -> Exception:
    """Return an error of a constructor in our own words."""
    first = error.errors(include_url=False)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, Exception) and not first["loc"]:  # of __post_init__
        return own
    name = str(first["loc"][0])
    if name not in given or name not in declared(kind):  # a mistake of the program
        return TypeError(f"{kind.__name__}: {first['msg']}: {name}")
    noun = getattr(kind, "NOUN", None)
    whose = f"{noun} {shown(given.get('name'))}: " if noun else ""
    expected = described(schema_of(declared(kind)[name]))
    return ConfigError(f"{whose}{label(name)} is {shown(given[name])}; it must be {expected}")


def _validated(place: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_python(_plain(value))
    except ValidationError:
        expected = described(adapter.json_schema())
        raise ConfigError(f"{place} is {shown(value)}; it must be {expected}") from None


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's."""
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else value


def described(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        parts = [described(part) for part in schema["anyOf"]]
        has_commas = len(parts) > 2 or "," in parts[0]
        return ", ".join(parts[:-1]) + (", or " if has_commas else " or ") + parts[-1]
    if words := words_of(schema):
        return " or ".join(map(repr, words))
    kind = schema.get("type", "object")
    if kind in ("integer", "number"):
        return _number_in_words(schema)
    if kind == "array":
        items = described(schema["items"])
        return f"a list, each item {items}, of {schema['maxItems']} items at most"
    if kind == "object" and "additionalProperties" in schema and "properties" not in schema:
        return f"an object, each value {described(schema['additionalProperties'])}"
    if kind == "string":
        most = schema.get("maxLength", MOST_CHARACTERS)
        return f"a text of {schema.get('minLength', 0)} to {most} Unicode characters"
    return {"boolean": "true or false", "null": "none"}.get(kind, "an object")


def _number_in_words(schema: Mapping[str, Any]) -> str:
    number = "a whole number" if schema["type"] == "integer" else "a number"
    if "multipleOf" in schema:
        number = f"a multiple of {schema['multipleOf']}"
    ends = {
        "minimum": " from {}",
        "exclusiveMinimum": " above {}",
        "maximum": " to {}" if "minimum" in schema else ", up to {}",
        "exclusiveMaximum": " to below {}",
    }
    return number + "".join(ends[key].format(schema[key]) for key in ends if key in schema)


def shown(value: Any) -> str:
    """Return a value for an error, shortened."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists in lists, numbers of more than 4300 digits
        text = f"a value of type {type(value).__name__}, too large to show"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def some_of(names: Iterable[str]) -> str:
    """Return a list of names for a sentence, shortened."""
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return f"{', '.join(every[:_MOST_NAMES])}{more}"
