"""What other nodes have changed about a MODEL and a CLIP beside their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Options of a MODEL that its samplers alone look at.
_OF_SAMPLERS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
)
_IN_MODEL = ("patches", "patches_replace", "wrappers")
_LETTERS = 40  # of a name
_DEEPEST = 6  # dicts and lists of functions; the host's have four


@dataclass(frozen=True)
class BaseChanges:
    """What other nodes have changed.

    Args:
        clip_skip: The layer at which the text encoders stop, from the end; None: as they come.
        in_model: Who has changed the model's forward pass, such as ``FreeU``, and what it calls
            that.
        in_samplers: The same of changes that its samplers alone make.
        has_few_steps: Whether it is sampled as LCM models are.
    """

    clip_skip: int | None = None
    in_model: tuple[str, ...] = ()
    in_samplers: tuple[str, ...] = ()
    has_few_steps: bool = False


def base_changes(model: Any, clip: Any) -> BaseChanges:
    """Return what other nodes have changed about a MODEL and a CLIP beside their weights."""
    options = model.model_options
    of_transformer = options.get("transformer_options") or {}
    sampling = model.object_patches.get("model_sampling")
    return BaseChanges(
        clip.layer_idx,
        tuple(_named(of_transformer, _IN_MODEL)),
        tuple(_named(options, _OF_SAMPLERS)),
        any(kind.__name__ == "LCM" for kind in type(sampling).__mro__),
    )


def _named(options: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return who put functions under some names of options, each once."""
    found: dict[str, None] = {}
    for name in names:
        for place, function in _functions(name, options.get(name), _DEEPEST):
            found[f"{_author(function)} ({place[:_LETTERS]})"] = None
    return list(found)


def _functions(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield the functions in an option, each with the last name that leads to it."""
    if not levels or value is None:
        return
    if isinstance(value, Mapping):
        for inner, item in value.items():
            # beside names there are places: (block, number)
            yield from _functions(inner if isinstance(inner, str) else name, item, levels - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _functions(name, item, levels - 1)
    elif callable(value):
        yield name, value


def _author(function: Any) -> str:
    """Return the class or the function in which a function was written."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name.partition(".")[0][:_LETTERS]
