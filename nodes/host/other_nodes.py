"""What other nodes have changed about a MODEL and a CLIP besides their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...iteris_core import CalibrationError, SolveError
from ...iteris_core.errors import OutOfMemoryError

# Options of a MODEL that its samplers alone look at.
_OF_SAMPLERS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
)
_IN_MODEL = ("patches", "patches_replace")
# The host's kinds of wrappers that are around one call of the model; others are around sampling.
_AROUND_CALLS = ("apply_model", "diffusion_model")
# The key under which the host's own node wraps a MODEL to run it compiled.
_COMPILED = "torch.compile"
_CHARACTERS = 40  # of a name
_DEEPEST = 6  # dicts and lists of functions; the host's have four


@dataclass(frozen=True)
class BaseChanges:
    """What other nodes have changed.

    Args:
        clip_skip: The layer where the text encoders stop, from the end; None: as they come.
        in_model: Who has changed the model's forward pass, such as ``FreeU``, and what it calls
            that.
        in_samplers: The same of changes that its samplers alone make.
        has_few_steps: Whether it is sampled as LCM models are.
        hooks: How many hooks, such as LoRAs, the CLIP puts on each prompt for the MODEL.
    """

    clip_skip: int | None = None
    in_model: tuple[str, ...] = ()
    in_samplers: tuple[str, ...] = ()
    has_few_steps: bool = False
    hooks: int = 0


# Kind of wrapper -> key -> wrappers.
Wrappers = Mapping[str, Mapping[Any, Sequence[Any]]]


def base_changes(model: Any, clip: Any) -> BaseChanges:
    """Return what other nodes have changed about a MODEL and a CLIP besides their weights."""
    options = model.model_options
    sampling = model.object_patches.get("model_sampling")
    in_calls, left_out = wrappers_of(model)
    injections = {key: [each.inject for each in of] for key, of in model.injections.items()}
    return BaseChanges(
        clip.layer_idx,
        (
            *functions_in({**options.get("transformer_options", {}), "wrappers": in_calls}),
            # what puts itself into a MODEL while it is loaded, such as a LoRA not on its weights
            *_named({"injections": injections}, ("injections",)),
        ),
        _named({**options, "wrappers": left_out}, (*_OF_SAMPLERS, "wrappers")),
        any(kind.__name__ == "LCM" for kind in type(sampling).__mro__),
        len(clip.apply_hooks_to_conds or ()),
    )


def functions_in(transformer_options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return who put functions into a MODEL's forward pass."""
    return _named(transformer_options, (*_IN_MODEL, "wrappers"))


@contextmanager
def naming_changes(model: Any, clip: Any) -> Iterator[None]:
    """Name what other nodes have changed about a MODEL in an error about what it draws.

    Raises:
        CalibrationError, SolveError: The error, with the names.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (CalibrationError, SolveError) as error:
        names = base_changes(model, clip).in_model
        if not names:
            raise
        raise type(error)(
            f"{error}. MODEL carries changes of other nodes: {', '.join(names)}. One of them may "
            "be the cause, such as one that cuts pictures into parts, or expects what is there "
            "only while a picture is sampled. Connect MODEL from before its node, and put that "
            "node after the merge"
        ) from error


def wrappers_of(model: Any) -> tuple[Wrappers, Wrappers]:
    """Return the wrappers of a MODEL that are around each call of it when it is measured, and the
    ones that are left out.

    Left out are wrappers of sampling, and all others under the same keys, which need them, such as
    EasyCache's; and what runs it compiled, since its layers must be called one by one.
    """
    found: dict[str, dict[Any, list[Any]]] = {}
    for wrappers in (
        model.model_options.get("transformer_options", {}).get("wrappers", {}),
        model.wrappers,
    ):
        for kind, by_key in wrappers.items():
            for key, functions in by_key.items():
                if functions:
                    found.setdefault(kind, {}).setdefault(key, []).extend(functions)
    around_sampling = {key for kind in found if kind not in _AROUND_CALLS for key in found[kind]}

    def chosen(*, in_calls: bool) -> Wrappers:
        kinds = {
            kind: {
                key: functions
                for key, functions in by_key.items()
                if (key not in around_sampling and key != _COMPILED) is in_calls
            }
            for kind, by_key in found.items()
        }
        return {kind: by_key for kind, by_key in kinds.items() if by_key}

    return chosen(in_calls=True), chosen(in_calls=False)


def _named(options: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return who put functions under some names of options, each once."""
    found: dict[str, None] = {}
    for name in names:
        for place, function in _functions(name, options.get(name), _DEEPEST):
            found[f"{_author(function)} ({place[:_CHARACTERS]})"] = None
    return tuple(found)


def _functions(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield the functions in an option, each with the last name that leads to it."""
    if not levels or value is None:
        return
    if isinstance(value, Mapping):
        for inner, item in value.items():
            # besides names there are places: (block, number)
            yield from _functions(inner if isinstance(inner, str) else name, item, levels - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _functions(name, item, levels - 1)
    elif callable(value):
        yield name, value


def _author(function: Any) -> str:
    """Return the class or the function that a function was written in."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name.partition(".")[0][:_CHARACTERS]
