"""The door of the nodes: what comes through widgets and links is checked before anything is done.

ComfyUI checks the values of widgets. It does not check what comes through a link, and lets NaN
through.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field

from ..iteris_core import ConfigError
from ..iteris_core.settings import checked as checked_value
from ..iteris_core.settings import labelled, shown
from .sockets import ChosenLora, MergedLora
from .words import NAMES

Execute = TypeVar("Execute", bound=Callable[..., Any])
Fits = Callable[[Any], bool]

# A text field holds a hundred LoRAs with twenty long prompts each.
_TEXT = Annotated[str, Field(max_length=200_000)]
_WIDGETS = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "STRING": _TEXT}
_CHAIN = "LoRAs of this pack: connect the output LoRAs of 'LoRA to merge' or Load recipe"


def checked(execute: Execute) -> Execute:
    """Check a node's inputs by its schema before `execute` sees them, and let all messages call the
    core's settings as the nodes' inputs are called.

    The function then raises:
        ConfigError: Names the input, what came in, and what it must be.
    """

    named = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls: Any, *values: Any, **inputs: Any) -> Any:
        given = {**dict(zip(list(named.parameters)[1:], values, strict=False)), **inputs}
        with labelled(NAMES):
            return execute(cls, **fitting(cls.define_schema().inputs, given))

    return run  # type: ignore[return-value]


def fitting(declared: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a node, without optional ones that are None.

    Args:
        declared: Inputs of the node's schema.
        inputs: Name -> value, of any kind.

    Raises:
        ConfigError: An input of another kind or size than the schema says; names it.
    """
    given = {}
    for item in declared:
        value = inputs.get(item.id)
        if value is None and item.optional:
            continue
        given[item.id] = _checked(item, value)
    return given


def _checked(item: Any, value: Any) -> Any:
    kind = str(item.io_type)
    if kind in _WIDGETS:
        ends = Field(ge=getattr(item, "min", None), le=getattr(item, "max", None))
        return checked_value(item.id, value, Annotated[_WIDGETS[kind], ends])
    if kind == "COMBO":
        return _checked_choice(item, value)
    fits, expected = _sockets().get(kind, (lambda _: True, ""))
    if not fits(value):
        raise ConfigError(f"{item.id} is {shown(value)}; it must be {expected}")
    return value


def _checked_choice(item: Any, value: Any) -> Any:
    options = [option.replace("\\", "/") for option in item.options]
    if not isinstance(value, str) or value.replace("\\", "/") not in options:
        raise ConfigError(
            f"{item.id} is {shown(value)}, which is not in its list. Choose one of the list; press "
            "R to refresh lists of files"
        )
    return value


@functools.cache
def _sockets() -> Mapping[str, tuple[Fits, str]]:
    """Return type of a socket -> a test of its values, and what they must be, in words."""
    from ..iteris_core.diffusion.presets import Changes
    from ..iteris_core.diffusion.recipe import Recipe

    return {
        "MODEL": (_has("model", "patches"), "a MODEL, such as a checkpoint loader's"),
        "CLIP": (_has("patcher", "cond_stage_model"), "a CLIP, such as its loader's"),
        "CONDITIONING": (_is_conditioning, "a CONDITIONING, such as WanImageToVideo's positive"),
        "VAE": (_has("decode"), "a VAE, such as a checkpoint loader's"),
        "IMAGE": (_is_picture, "an IMAGE, (pictures, height, width, channels)"),
        "LORA_MODEL": (_is_state, "a LORA_MODEL: connect the output of Train LoRA"),
        "ITERIS_LORAS": (_is_chain, _CHAIN),
        "ITERIS_SETTINGS": (
            _is_a(Changes, Recipe),
            "the output 'settings' of Merge settings or Load recipe",
        ),
        "ITERIS_MERGED": (_is_a(MergedLora), "the output 'merged LoRA' of Merge LoRAs"),
    }


def _is_a(*kinds: type) -> Fits:
    return lambda value: isinstance(value, kinds)


def _has(*names: str) -> Fits:
    return lambda value: all(hasattr(value, name) for name in names)


def _is_conditioning(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else ()
    return isinstance(first, (list, tuple)) and len(first) == 2 and isinstance(first[1], Mapping)


def _is_picture(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.numel() > 0


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items()
    )


def _is_chain(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, ChosenLora) for item in value)
