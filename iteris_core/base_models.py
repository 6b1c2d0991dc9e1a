"""Base models of `transformers` and `diffusers`, loaded from a folder or the hub and spread over
devices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from .errors import ConfigError

DeviceMap = Literal["none", "auto", "balanced"]
_OF_WEIGHTS = 0.5  # of a GPU's free memory, where a model is spread; rows and sums need the rest


def whole_model(auto_class: Any, source: str, what: str, **options: Any) -> nn.Module:
    """Load a model, and refuse one whose files lack weights: transformers would draw them at
    random. Nothing is opened by pickle, and no code of the model's own is run. For the arguments
    see `loaded`.

    Raises:
        ConfigError: It cannot be loaded, or not all of it.
    """
    folder = Path(source)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{source}: its weights are a pickle (.bin), which can run code when it is opened; "
            "only .safetensors are read. Save the model again with save_pretrained, where you "
            "trust it, or download its safetensors version"
        )
    safe = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    model: nn.Module
    model, found = loaded(auto_class.from_pretrained, source, what, **safe, **options)
    lost = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lost:
        raise ConfigError(
            f"{source}: {what} cannot be loaded whole: {len(lost)} of its weights, such as "
            f"{lost[0]}, are missing or of another size, and would be random numbers. Download it "
            "again, or give the folder that save_pretrained wrote"
        )
    return model


def placed(model: nn.Module, device: str, device_map: DeviceMap = "none") -> nn.Module:
    """Return a model from the CPU on a device, ready to be measured; or spread over all GPUs by
    accelerate: ``auto`` fills one after the other, ``balanced`` all alike. What has no room stays
    on the host, and is on a GPU while it is used.

    Raises:
        ConfigError: The device cannot be used, or the model cannot be spread.
    """
    model = model.eval().requires_grad_(False)
    if device_map != "none":
        return _spread(model, device_map)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that it is not there
        raise ConfigError(
            f"device {device!r} cannot be used: {first_line(error)}. Choose another, such as 'cpu'"
        ) from error


def _spread(model: nn.Module, device_map: DeviceMap) -> nn.Module:
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory, get_max_memory
    except ImportError as error:
        raise ConfigError(
            f"device_map {device_map!r} needs accelerate, which cannot be imported "
            f"({first_line(error)}); pip install accelerate, or leave it out"
        ) from error
    blocks = list(getattr(model, "_no_split_modules", None) or ())
    memory = {
        device: free if device == "cpu" else int(_OF_WEIGHTS * free)
        for device, free in get_max_memory().items()
    }
    if device_map == "balanced":
        memory = get_balanced_memory(model, memory, no_split_module_classes=blocks)
    places = infer_auto_device_map(model, memory, no_split_module_classes=blocks)
    if "disk" in places.values():
        raise ConfigError(
            f"device_map {device_map!r} finds no room for the whole model on GPUs and host "
            "together; use a machine with more memory, or a smaller dtype"
        )
    return cast(nn.Module, dispatch_model(model, places))


def loaded(load: Callable[..., Any], source: str, what: str, **options: Any) -> Any:
    """Return ``load(source, **options)``.

    Args:
        load: Loading function of `transformers` or `diffusers`.
        what: Name of the loaded thing in errors, such as "a tokenizer".

    Raises:
        ConfigError: It cannot be loaded; says why, and what to give instead.
    """
    if Path(source).is_absolute() and not Path(source).exists():
        raise ConfigError(
            f"{source}: there is no such folder; give the folder of a base model, or its name on "
            "the hub"
        )
    try:
        return load(source, **options)
    except Exception as error:  # whatever the libraries raise where files are missing or damaged
        raise ConfigError(
            f"{source}: {what} cannot be loaded from there ({first_line(error)}); give the folder "
            "that save_pretrained wrote, or a name on the hub"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
